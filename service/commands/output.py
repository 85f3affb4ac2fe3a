"""How the commands print their output: as JSON, or as readable lines."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from service.database.engine import Base

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

Row = Mapping[str, Any]


def show(data: Row | Sequence[Row], as_json: bool) -> None:
    """Print a dict or a list of dicts, as JSON or as readable lines."""
    if as_json:
        click.echo(json.dumps(data, default=str))
        return
    rows = [data] if isinstance(data, Mapping) else data
    for row in rows:
        click.echo("  ".join(f"{k}={'-' if v is None else v}" for k, v in row.items()))
    if not rows:
        click.echo("none")


def row_of(record: Base, *names: str) -> dict[str, Any]:
    """Columns of a record as a row to show; `title=column` renames a column."""
    pairs = [(name.split("=")[0], name.split("=")[-1]) for name in names]
    return {title: getattr(record, column) for title, column in pairs}
