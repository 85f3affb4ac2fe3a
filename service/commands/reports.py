"""flask summary: the counts."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import click
from flask.cli import with_appcontext
from sqlalchemy import Row, Select, func, select

from service.commands.output import as_json, show
from service.database import models
from service.database.columns import utcnow
from service.database.engine import db

# Numbers that never received an SMS, and their share of a user's numbers
SILENT = ("without_sms", "share_without_sms")


@click.command()
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True)
@click.option(
    "--sort",
    type=click.Choice(["user_id", *models.COUNTERS, *SILENT]),
    default="user_id",
    show_default=True,
    help="What the users are sorted by; counts and shares from the highest down.",
)
@as_json
@with_appcontext
def summary(days: int, sort: str, as_json: bool) -> None:
    """Count numbers, SMS, OTPs and webhooks: in total, per day, and per user.

    A high share_without_sms means that a user does not use the numbers for OTPs.
    """
    since = utcnow().date() - timedelta(days=days - 1)
    users = _with_silent(_totals(models.UserSummary, since, models.COUNTERS, "user_id"), since)
    users.sort(key=lambda row: (row[sort], row["without_sms"]), reverse=sort != "user_id")
    parts: dict[str, Any] = {
        "total": _totals(models.SystemSummary, since, (*models.COUNTERS, "unmatched"))[0],
        "states": _states(),
        "days": _totals(models.SystemSummary, since, (*models.COUNTERS, "unmatched"), "day"),
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
    since: date,
    counters: Sequence[str],
    by: str | None = None,
) -> list[dict[str, Any]]:
    """The sums of `counters` since a day: one row, or one for each value of the column `by`."""
    sums = [func.coalesce(func.sum(getattr(model, name)), 0).label(name) for name in counters]
    query = select(*sums).where(model.day >= since)
    if by is not None:
        column = getattr(model, by)
        query = query.add_columns(column).group_by(column).order_by(column)
    return [_plain(row) for row in db.session.execute(query)]


def _plain(row: Row[*tuple[Any, ...]]) -> dict[str, Any]:
    # MySQL sums are Decimals
    return {k: v if k in ("day", "user_id") else int(v) for k, v in row._mapping.items()}


def _with_silent(rows: list[dict[str, Any]], since: date) -> list[dict[str, Any]]:
    """The users' rows with their name, and how many of their numbers never got an SMS."""
    start = datetime.combine(since, datetime.min.time(), UTC)
    numbers = models.PhoneNumber
    counted = select(numbers.user_id, func.count() - func.count(numbers.first_sms_at)).where(
        numbers.state == models.NumberState.ASSIGNED, numbers.assigned_at >= start
    )
    silent = _pairs(counted.group_by(numbers.user_id))
    names = _pairs(select(models.User.id, models.User.name))
    for row in rows:
        without = silent.get(row["user_id"], 0)
        row["without_sms"] = without
        row["share_without_sms"] = row["numbers"] and round(without / row["numbers"], 3)
    return [{"user_id": row["user_id"], "name": names[row["user_id"]]} | row for row in rows]


def _states() -> dict[str, int]:
    """How many numbers and deliveries are in each state, so that none goes unnoticed."""
    states: dict[str, int] = {}
    for model in (models.PhoneNumber, models.Delivery):
        counted = _pairs(select(model.state, func.count()).group_by(model.state))
        states |= {f"{model.__tablename__} {state}": n for state, n in sorted(counted.items())}
    return states


def _pairs(query: Select[Any, Any]) -> dict[Any, Any]:
    return dict(db.session.execute(query).all())
