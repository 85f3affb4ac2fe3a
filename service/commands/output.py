"""How the commands print their output: as JSON, or as aligned tables for people."""

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, TypeVar

import click
from sqlalchemy import Select

from service.database.engine import Base, db
from service.logs import escaped

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

Row = Mapping[str, Any]
Command = Callable[..., Any]
Record = TypeVar("Record", bound=Base)


def limit_option(default: int, most: int = 100_000) -> Callable[[Command], Command]:
    """The option --limit of a list; its rows are loaded with limited()."""
    return click.option("--limit", type=click.IntRange(1, most), default=default, show_default=True)


def limited(query: Select[Record], limit: int) -> Sequence[Record]:
    """The first `limit` records of a query; says on stderr if there are more."""
    found = db.session.scalars(query.limit(limit + 1)).all()
    if len(found) > limit:
        click.echo(f"these are the newest {limit}; there are more: --limit N", err=True)
    return found[:limit]


def show(data: Row | Sequence[Row], as_json: bool) -> None:
    """Print a dict or a list of dicts, as JSON or for people: a dict as one line for each name, a
    list as a table."""
    if as_json:
        click.echo(json.dumps(data, default=_plain))
    elif isinstance(data, Mapping):
        _print_aligned([[name, readable(value)] for name, value in data.items()])
    elif data:
        _print_aligned([list(data[0]), *([readable(v) for v in row.values()] for row in data)])
    else:
        click.echo("none")


def readable(value: Any) -> str:
    """A value as people read it; characters that would change the terminal are escaped."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    if isinstance(value, Mapping):
        return ", ".join(f"{readable(k)}={readable(v)}" for k, v in value.items()) or "-"
    if isinstance(value, list | tuple):
        return "; ".join(readable(item) for item in value) or "-"
    return escaped(str(value))


def show_deleted(table: str, count: int) -> None:
    """Print how far a deletion is."""
    click.echo(f"{table}: {count} deleted", err=True)


def row_of(record: Base, *names: str) -> dict[str, Any]:
    """Columns of a record as a row to show; `title=column` renames a column."""
    pairs = [(name.split("=")[0], name.split("=")[-1]) for name in names]
    return {title: getattr(record, column) for title, column in pairs}


def _plain(value: Any) -> str:
    """A time as ISO 8601 in UTC, as in the API."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else str(value)


def _print_aligned(lines: list[list[str]]) -> None:
    widths = [max(map(_columns, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, strict=True)
        click.echo(
            "  ".join(cell + " " * (width - _columns(cell)) for cell, width in cells).rstrip()
        )


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
