"""flask numbers …: who holds which number, and the ones of which that is unknown."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from flask.cli import AppGroup
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from service import audit
from service.commands.arguments import NUMBER, PAST_TIME, ROW_ID, USER_ID
from service.commands.messages import deliver_adopted, message_row
from service.commands.output import as_json, limit_option, limited, readable, row_of, show
from service.database.engine import db
from service.database.models import Message, NumberState, PhoneNumber, User
from service.database.writing import Transaction, transact
from service.numbers.resolution import NotUnknown, resolve
from service.sms.adoption import Adopted, adopt_waiting

FOREVER = datetime.max.replace(tzinfo=UTC)

numbers = AppGroup("numbers", help="Who holds which number.")


def number_row(number: PhoneNumber) -> dict[str, Any]:
    columns = ("country=country_id", "operator=operator_id", "requested_at", "assigned_at")
    return {
        "id": number.id,
        "user": number.user_id,
        "number": number.digits and f"+{number.digits}",
        **row_of(number, "state", *columns, "first_sms_at"),
    }


@numbers.command("list")
@click.option("--state", type=click.Choice([str(state) for state in NumberState]))
@click.option("--user", "user_id", type=USER_ID)
@limit_option(50)
@as_json
def numbers_list(state: str | None, user_id: int | None, limit: int, as_json: bool) -> None:
    """List the assignments of numbers, newest first."""
    query = select(PhoneNumber).order_by(PhoneNumber.id.desc())
    if state:
        query = query.where(PhoneNumber.state == state)
    if user_id is not None:
        query = query.where(PhoneNumber.user_id == user_id)
    show([number_row(row) for row in limited(query, limit)], as_json)


@numbers.command("holder")
@click.argument("digits", metavar="NUMBER", type=NUMBER)
@click.option("--at", type=PAST_TIME, help="Only who held it then: 2026-11-26T09:30Z.")
@as_json
def numbers_holder(digits: str, at: datetime | None, as_json: bool) -> None:
    """Show who held a number, from when to when, and which SMS came for them."""
    held = select(PhoneNumber, User).join(User, User.id == PhoneNumber.user_id)
    held = held.where(PhoneNumber.digits == digits, PhoneNumber.state == NumberState.ASSIGNED)
    rows = db.session.execute(held.order_by(PhoneNumber.assigned_at, PhoneNumber.id)).all()
    ends = [*(number.assigned_at for number, _ in rows[1:]), None]
    holders = [
        _holder_row(number, user, until)
        for (number, user), until in zip(rows, ends, strict=False)
        if at is None or (number.assigned_at or at) <= at < (until or FOREVER)
    ]
    if as_json:
        show(holders, True)
        return
    if not holders:
        click.echo(f"nobody held +{digits}" + (f" at {readable(at)}" if at else ""))
    for holder in holders:
        show({name: value for name, value in holder.items() if name != "messages"}, False)
        click.echo("SMS:")
        show(holder["messages"], False)


def _holder_row(number: PhoneNumber, user: User, until: datetime | None) -> dict[str, Any]:
    is_theirs = (Message.phone_number_id == number.id) & (Message.digits == number.digits)
    sms = select(Message).where(is_theirs).options(selectinload(Message.deliveries))
    messages = db.session.scalars(sms.order_by(Message.id))
    return {
        "number": f"+{number.digits}",
        "id": number.id,
        "user": user.id,
        "name": user.name,
        "from": number.assigned_at,
        "until": until,
        "removed_at": user.removed_at,
        "messages": [message_row(message) for message in messages],
    }


@numbers.command("resolve")
@click.argument("number_id", metavar="ID", type=ROW_ID)
@click.argument("digits", metavar="NUMBER", type=NUMBER, required=False)
@click.option("--none", "is_none", is_flag=True, help="The main server granted none.")
@as_json
def numbers_resolve(number_id: int, digits: str | None, is_none: bool, as_json: bool) -> None:
    """Record which NUMBER the main server granted for an unknown one, or --none.

    The SMS that came for it meanwhile are its user's then, and their codes are delivered.
    """
    if (digits is None) != is_none:
        raise click.UsageError("give the NUMBER, or --none")
    row, adopted = transact(_resolve, number_id, digits)
    show(number_row(row) | {"messages": deliver_adopted(adopted)}, as_json)


def _resolve(
    tx: Transaction, number_id: int, digits: str | None
) -> tuple[PhoneNumber, Sequence[Adopted]]:
    row = tx.session.get(PhoneNumber, number_id, populate_existing=True, with_for_update=True)
    if row is None:
        raise click.BadParameter(f"there is no number {number_id}", param_hint="ID")
    try:
        is_new = resolve(tx, row, digits)
    except NotUnknown as e:
        raise click.BadParameter(str(e), param_hint="ID") from e
    if not is_new:
        return row, []
    audit.record(tx, "number_resolved", row.user_id, number_id=row.id, state=row.state)
    return row, adopt_waiting(tx, row) if digits else []
