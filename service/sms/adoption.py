"""Giving an unmatched SMS to the user whose it turned out to be."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import select

from service.database.models import Delivery, Message, PhoneNumber, Unmatched, User
from service.database.writing import Transaction
from service.sms import otp
from service.webhooks import queue


class Adopted(NamedTuple):
    """A message that has an owner now, and its delivery, leased to the caller, if it has one."""

    message: Message
    user: User
    delivery: Delivery | None


def adopt(tx: Transaction, message: Message, number: PhoneNumber) -> Adopted:
    """Give an unmatched message of `tx` to the assignment that it was for: the message is counted
    for the user, and its code will go to their webhook."""
    user = tx.session.get_one(User, number.user_id)
    if not message.otp_code and (found := otp.extract(message.sms_text)):
        message.otp_code, message.otp_rule = found.code, found.rule
        tx.count(None, message.created_at, otps=1)
    message.user_id, message.phone_number_id, message.unmatched = user.id, number.id, None
    message.digits = number.digits or message.digits
    number.first_sms_at = min(number.first_sms_at or message.received_at, message.received_at)
    tx.session.flush()
    delivery = queue.add_otp(tx, message, user)
    # The system's summary has them already
    counts = {"sms": 1, "otps": int(message.otp_code is not None)}
    tx.count(user.id, message.created_at, **counts)
    tx.count(None, message.created_at, unmatched=-1, **{name: -n for name, n in counts.items()})
    return Adopted(message, user, delivery)


def adopt_waiting(tx: Transaction, number: PhoneNumber) -> Sequence[Adopted]:
    """Give the assignment the SMS for its number that came since, and matched nobody's."""
    waiting = select(Message).where(
        Message.digits == number.digits,
        Message.unmatched == Unmatched.UNKNOWN_NUMBER,
        Message.received_at >= number.assigned_at,
    )
    return [
        adopt(tx, message, number) for message in tx.session.scalars(waiting.order_by(Message.id))
    ]
