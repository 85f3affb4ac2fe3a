"""Whose an SMS is: the holder of its number at the right time."""

from datetime import datetime, timedelta

from sqlalchemy import bindparam, select

from service.database import models
from service.database.columns import utcnow
from service.database.writing import Transaction
from service.sms.incoming import Sms

# How far a gateway's clock may be behind ours
CLOCK_SLACK = timedelta(minutes=2)

# The assignments of a number before a time, newest first
_HOLDERS = (
    select(models.PhoneNumber, models.User)
    .join(models.User, models.User.id == models.PhoneNumber.user_id)
    .where(
        models.PhoneNumber.digits == bindparam("digits"),
        models.PhoneNumber.state == models.NumberState.ASSIGNED,
        models.PhoneNumber.assigned_at <= bindparam("at"),
    )
    .order_by(models.PhoneNumber.assigned_at.desc(), models.PhoneNumber.id.desc())
    .limit(1)
)

Holder = tuple[models.PhoneNumber | None, models.User | None, models.Unmatched | None]


def holder_of(tx: Transaction, sms: Sms, is_main_servers: bool) -> Holder:
    """The present holder of the number, unless the SMS was received before the number was theirs.

    Then, if the main server tells it, whoever held the number at that time. A gateway's clock is
    not ours: it may be a little behind, but only where nobody else held the number before can the
    SMS be nobody else's.
    """
    if not sms.digits:
        return None, None, models.Unmatched.UNKNOWN_RECIPIENT
    now = utcnow()
    at = min(_end_of_moment(sms.received_at or now), now)
    if not (holder := _assigned_before(tx, sms.digits, now)):
        return None, None, models.Unmatched.UNKNOWN_NUMBER
    number, user = holder
    assigned_at = number.assigned_at or now
    if user.removed_at:
        return None, None, models.Unmatched.USER_REMOVED
    if at >= assigned_at:
        return number, user, None
    if is_main_servers:
        if earlier := _assigned_before(tx, sms.digits, at):
            return *earlier, None
    elif assigned_at - at <= CLOCK_SLACK and not _had_another_holder(tx, number):
        return number, user, None
    return None, None, models.Unmatched.ASSIGNMENT_CHANGED


def _assigned_before(
    tx: Transaction, digits: str, at: datetime
) -> tuple[models.PhoneNumber, models.User] | None:
    """The last assignment of the number up to the time `at`, and its user."""
    row = tx.session.execute(_HOLDERS, {"digits": digits, "at": at}).first()
    return (row[0], row[1]) if row else None


def _had_another_holder(tx: Transaction, number: models.PhoneNumber) -> bool:
    others = select(models.PhoneNumber.id).where(
        models.PhoneNumber.digits == number.digits,
        models.PhoneNumber.state == models.NumberState.ASSIGNED,
        models.PhoneNumber.user_id != number.user_id,
    )
    return tx.session.scalar(others.limit(1)) is not None


def _end_of_moment(time: datetime) -> datetime:
    """A time in whole seconds, as SMS centres send it, may be anywhere in that second, so a number
    assigned during that second counts as already assigned."""
    return time if time.microsecond else time + timedelta(seconds=1, microseconds=-1)
