"""flask summary: the counts."""

import csv
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from flask.cli import with_appcontext
from sqlalchemy import Row, Select, func, select

from service.commands.arguments import MONTH, Period
from service.commands.output import as_json, show
from service.database import models
from service.database.columns import utcnow
from service.database.engine import db

_USERS = select(models.User.id.label("user_id"), models.User.name, models.User.daily_limit)
# Numbers that never received an SMS, and their share of a user's numbers
SILENT = ("without_sms", "share_without_sms")


@click.command()
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True)
@click.option("--month", type=MONTH, help="Instead of the last days: a month, such as 2026-11.")
@click.option(
    "--sort",
    type=click.Choice(["user_id", *models.COUNTERS, *SILENT]),
    default="user_id",
    show_default=True,
    help="What the users are sorted by; counts and shares from the highest down.",
)
@click.option("--csv", "as_csv", is_flag=True, help="A row for each user and day, with totals.")
@as_json
@with_appcontext
def summary(days: int, month: Period | None, sort: str, as_csv: bool, as_json: bool) -> None:
    """Count numbers, SMS, OTPs and webhooks: in total, per day, and per user. Days are UTC.

    A high share_without_sms means that a user does not use the numbers for OTPs.
    """
    today = utcnow().date()
    period = month or Period(today - timedelta(days=days - 1), today)
    if as_csv and as_json:
        raise click.UsageError("give --csv or --json")
    if as_csv:
        _print_csv(period)
        return
    users = _with_silent(_totals(models.UserSummary, period, models.COUNTERS, "user_id"), period)
    users.sort(key=lambda row: (row[sort], row["without_sms"]), reverse=sort != "user_id")
    parts: dict[str, Any] = {
        "total": _totals(models.SystemSummary, period, (*models.COUNTERS, "unmatched"))[0],
        "states": _states(),
        "days": _totals(models.SystemSummary, period, (*models.COUNTERS, "unmatched"), "day"),
        "users": users,
    }
    if as_json:
        show(parts, True)
        return
    for title, rows in parts.items():
        click.echo(f"{title}:")
        show(rows, False)


def _totals(
    model: type[models.UserSummary | models.SystemSummary],
    period: Period,
    counters: Sequence[str],
    by: str | None = None,
) -> list[dict[str, Any]]:
    """The sums of `counters` in a period: one row, or one for each value of the column `by`."""
    sums = [func.coalesce(func.sum(getattr(model, name)), 0).label(name) for name in counters]
    query = select(*sums).where(model.day.between(period.first, period.last))
    if by is not None:
        column = getattr(model, by)
        query = query.add_columns(column).group_by(column).order_by(column)
    return [_plain(row) for row in db.session.execute(query)]


def _plain(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    # MySQL sums are Decimals
    return {k: v if k in ("day", "user_id") else int(v) for k, v in row._mapping.items()}


def _with_silent(rows: list[dict[str, Any]], period: Period) -> list[dict[str, Any]]:
    """The users' rows with their name and limit, and how many of their numbers never got an SMS."""
    start, end = (
        datetime.combine(day, datetime.min.time(), UTC)
        for day in (period.first, period.last + timedelta(days=1))
    )
    numbers = models.PhoneNumber
    counted = select(numbers.user_id, func.count() - func.count(numbers.first_sms_at)).where(
        numbers.state == models.NumberState.ASSIGNED,
        numbers.assigned_at >= start,
        numbers.assigned_at < end,
    )
    silent = _pairs(counted.group_by(numbers.user_id))
    users = {row.user_id: row for row in db.session.execute(_USERS)}
    for row in rows:
        without = silent.get(row["user_id"], 0)
        row["without_sms"] = without
        row["share_without_sms"] = row["numbers"] and round(without / row["numbers"], 3)
    return [users[row["user_id"]]._asdict() | row for row in rows]


def _print_csv(period: Period) -> None:
    """What an operator bills from: a row for each user and day, then a total for each user, and one
    for all (RFC 4180)."""
    day, days = models.UserSummary, [*models.COUNTERS]
    users = {row.user_id: row for row in db.session.execute(_USERS)}
    query = select(day).where(day.day.between(period.first, period.last))
    rows = db.session.scalars(query.order_by(day.day, day.user_id))
    out = csv.writer(sys.stdout, lineterminator="\r\n")
    out.writerow(["day", "user_id", "name", "daily_limit", *days])
    totals: defaultdict[int | None, Counter[str]] = defaultdict(Counter)
    for row in rows:
        user, counts = users[row.user_id], {name: getattr(row, name) for name in days}
        out.writerow([row.day, user.user_id, _cell(user.name), user.daily_limit, *counts.values()])
        for key in (row.user_id, None):
            totals[key].update(counts)
    for id in sorted(key for key in totals if key is not None):
        user = users[id]
        sums = [totals[id][name] for name in days]
        out.writerow(["total", id, _cell(user.name), user.daily_limit, *sums])
    out.writerow(["total", "", "", "", *(totals[None][name] for name in days)])
    sys.stdout.flush()  # here, where an error is told in one sentence


def _cell(text: str) -> str:
    """`text` so that a spreadsheet does not run it (OWASP, "CSV Injection")."""
    return f"'{text}" if text[:1] in "=+-@" else text


def _states() -> dict[str, int]:
    """How many numbers and deliveries are in each state, so that none goes unnoticed."""
    states: dict[str, int] = {}
    for model in (models.PhoneNumber, models.Delivery):
        counted = _pairs(select(model.state, func.count()).group_by(model.state))
        states |= {f"{model.__tablename__} {state}": n for state, n in sorted(counted.items())}
    return states


def _pairs(query: Select[Any, Any]) -> dict[Any, Any]:
    return dict(db.session.execute(query).all())
