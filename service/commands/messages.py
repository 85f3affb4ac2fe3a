"""flask messages …: the SMS, and those that matched nobody."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import click
from flask.cli import AppGroup
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from service import audit
from service.commands.arguments import NUMBER, ROW_ID, TIME, USER_ID
from service.commands.output import as_json, limit_option, limited, show
from service.database.engine import db
from service.database.models import Message, NumberState, PhoneNumber, Trigger
from service.database.writing import Transaction, release, transact
from service.sms.adoption import Adopted, adopt
from service.webhooks.delivery import deliver

messages = AppGroup("messages", help="The SMS that came.")


def message_row(message: Message, reveal: bool = False) -> dict[str, Any]:
    """A message as a row; its code and text only with `reveal`."""
    row = {
        "id": message.id,
        "received_at": message.received_at,
        "number": message.digits and f"+{message.digits}",
        "user": message.user_id,
        "unmatched": message.unmatched,
        "provider": message.provider,
        "sender": message.sender,
        "has_code": message.otp_code is not None,
        "webhook": message.webhook,
    }
    return row | {"otp_code": message.otp_code, "sms_text": message.sms_text} if reveal else row


@messages.command("list")
@click.option("--user", "user_id", type=USER_ID)
@click.option("--number", "digits", type=NUMBER)
@click.option("--unmatched", is_flag=True, help="Only those that matched nobody.")
@click.option("--since", type=TIME, help="Stored from this time on (UTC).")
@limit_option(50)
@click.option("--reveal", is_flag=True, help="Show codes and texts, which is audited.")
@as_json
def messages_list(
    user_id: int | None, digits: str | None, unmatched: bool, since: datetime | None, limit: int,
    reveal: bool, as_json: bool,
) -> None:  # fmt: skip
    """List SMS, newest first: whose each is, or why nobody's, and what became of its webhook."""
    query = select(Message).options(selectinload(Message.deliveries))
    if user_id is not None:
        query = query.where(Message.user_id == user_id)
    if digits is not None:
        query = query.where(Message.digits == digits)
    if unmatched:
        query = query.where(Message.user_id.is_(None))
    if since is not None:
        query = query.where(Message.created_at >= since)
    found = limited(query.order_by(Message.id.desc()), limit)
    if reveal:
        shown = {"first": found[-1].id, "last": found[0].id, "count": len(found)} if found else {}
        transact(audit.record, "codes_revealed", user_id, **shown)
    show([message_row(message, reveal) for message in found], as_json)


@messages.command("assign")
@click.argument("message_id", metavar="ID", type=ROW_ID)
@click.argument("user_id", metavar="USER", type=ROW_ID)
@click.option("--number", "digits", type=NUMBER, help="Whom it was for, if that is not known.")
@as_json
def messages_assign(message_id: int, user_id: int, digits: str | None, as_json: bool) -> None:
    """Give an SMS that matched nobody to a USER who has held its number; deliver its code."""
    adopted = transact(_assign, message_id, user_id, digits)
    rows = deliver_adopted([adopted]) if adopted else [message_row(_message(message_id))]
    show(rows[0], as_json)


def _assign(tx: Transaction, message_id: int, user_id: int, digits: str | None) -> Adopted | None:
    """None if the message is the user's already."""
    message = _message(message_id, lock=True)
    if message.user_id == user_id:
        return None
    if message.user_id is not None:
        sentence = f"message {message_id} is that of user {message.user_id}"
        raise click.BadParameter(sentence, param_hint="ID")
    number = _assignment(tx, user_id, digits or message.digits, message.received_at)
    audit.record(tx, "message_assigned", user_id, message_id=message_id, number_id=number.id)
    return adopt(tx, message, number)


def _assignment(tx: Transaction, user_id: int, digits: str, at: datetime) -> PhoneNumber:
    """The user's assignment of the number at the time `at`, or else their latest one."""
    if not digits:
        raise click.UsageError("this SMS names no recipient: give it with --number")
    held = select(PhoneNumber).where(
        PhoneNumber.user_id == user_id,
        PhoneNumber.digits == digits,
        PhoneNumber.state == NumberState.ASSIGNED,
    )
    rows = tx.session.scalars(held.order_by(PhoneNumber.assigned_at.desc())).all()
    if not rows:
        sentence = f"user {user_id} has never held +{digits}"
        raise click.BadParameter(sentence, param_hint="USER")
    return next((row for row in rows if row.assigned_at and row.assigned_at <= at), rows[0])


def _message(message_id: int, lock: bool = False) -> Message:
    """The message as stored now; raises BadParameter."""
    loaded = [selectinload(Message.deliveries)]
    options: dict[str, Any] = {"options": loaded, "populate_existing": True}
    message = db.session.get(Message, message_id, with_for_update=lock, **options)
    if message is None:
        raise click.BadParameter(f"there is no message {message_id}", param_hint="ID")
    return message


def deliver_adopted(adopted: Iterable[Adopted]) -> list[dict[str, Any]]:
    """Attempt the deliveries of adopted messages, once these are committed; returns the messages
    as rows."""
    rows = []
    for message, user, delivery in adopted:
        if delivery and delivery.lease:
            deliver(delivery, Trigger.REDELIVERY, user)
        rows.append(message_row(_message(message.id)))
        release()
    return rows
