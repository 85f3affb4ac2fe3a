"""What users read back: their numbers, SMS, deliveries and counts."""

import itertools
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import LargeBinary, Select, cast, func, select
from sqlalchemy.orm import selectinload

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import (
    Attempt,
    Delivery,
    Message,
    NumberState,
    PhoneNumber,
    User,
    UserSummary,
)
from service.database.writing import release
from service.limits import share
from service.waiting import Bell, waiters

# How many bytes of texts are read at once: as JSON, they are at most about 1 MB
PAGE_BYTES = 500_000
_TEXT_BYTES = func.length(cast(Message.sms_text, LargeBinary))
COUNTS = ("numbers", "sms", "otps", "webhooks_delivered")


def numbers(
    user: User,
    limit: int,
    before: int | None = None,
    states: Sequence[NumberState] = (NumberState.ASSIGNED,),
) -> Sequence[PhoneNumber]:
    """The user's PhoneNumber rows in one of `states`, newest first, with ids below `before`."""
    query = select(PhoneNumber).where(PhoneNumber.user_id == user.id, PhoneNumber.state.in_(states))
    if before is not None:
        query = query.where(PhoneNumber.id < before)
    return db.session.scalars(query.order_by(PhoneNumber.id.desc()).limit(limit)).all()


def messages(
    user: User,
    limit: int,
    phone_number: str | None = None,
    after: int | None = None,
    before: int | None = None,
    wait: float = 0,
) -> Sequence[Message]:
    """The user's Message rows, oldest first: the first ones after the id `after`, else the latest
    ones (with ids below `before`).

    Fewer than `limit`, but one at least, if their texts have more than PAGE_BYTES: the next call
    goes on from the last row's id. `phone_number` is digits, with the country code or in the
    national form of one of the user's numbers. If there is no message, waits up to `wait` seconds
    for one, without a connection; if too many callers are waiting already, returns an empty list
    at once.
    """
    query = select(Message.id, _TEXT_BYTES).where(Message.user_id == user.id).limit(limit)
    digits = None if phone_number is None else _spelled(user, phone_number)
    if digits is not None:
        query = query.where(Message.digits.in_(digits))
    if before is not None:
        query = query.where(Message.id < before)
    if after is not None:
        query = query.where(Message.id > after).order_by(Message.id)
    else:
        query = query.order_by(Message.id.desc())
    # Wait for SMS still being committed: a reader paging by id would skip them
    query = query.with_for_update(read=True)
    rows = _wait_for(query, user, Bell(after or 0, digits), wait) if wait else _read(query)
    return rows if after is not None else rows[::-1]


def _wait_for(query: Select[Any], user: User, bell: Bell, seconds: float) -> Sequence[Message]:
    # Before the first look, so that no SMS falls between it and the wait
    with waiters().hanging(bell, user.id):
        if rows := _read(query):
            return rows
        with share("waiters").take(user.id) as may_wait:
            give_up = time.monotonic() + seconds
            while may_wait and not rows and (rest := give_up - time.monotonic()) > 0:
                waiters().wait(bell, rest)
                if not _may_call(user.id):
                    return []
                rows = _read(query)
    return rows


def _may_call(user_id: int) -> bool:
    """Whether the user is still active and approved."""
    may_call = db.session.scalar(select(User.may_call).where(User.id == user_id))
    release()
    return bool(may_call)


def _read(query: Select[Any]) -> Sequence[Message]:
    """The rows of a query for ids and sizes, as far as a page may hold their texts."""
    sizes = db.session.execute(query).all()
    sums = itertools.accumulate(size for _, size in sizes)
    ids = [row.id for row, total in zip(sizes, sums, strict=True) if total <= PAGE_BYTES]
    ids = ids or [row.id for row in sizes[:1]]
    wanted = select(Message).where(Message.id.in_(ids)).options(selectinload(Message.deliveries))
    rows = {row.id: row for row in db.session.scalars(wanted)} if ids else {}
    release()
    return [rows[id] for id in ids if id in rows]


def has_older(user: User, id: int) -> bool:
    """Whether the user has messages with ids below `id`."""
    older = select(Message.id).where(Message.user_id == user.id, Message.id < id).limit(1)
    return db.session.scalar(older) is not None


def _spelled(user: User, digits: str) -> set[str]:
    """The digits themselves, or the user's numbers that have them as national form."""
    holders = select(PhoneNumber.user_id).where(PhoneNumber.digits == digits)
    if user.id in db.session.scalars(holders).all():
        return {digits}
    is_assigned = (PhoneNumber.user_id == user.id) & (PhoneNumber.state == NumberState.ASSIGNED)
    is_national_form = PhoneNumber.digits == PhoneNumber.phone_code.concat(digits)
    national = select(PhoneNumber.digits).where(is_assigned, is_national_form)
    return {digits, *(found for found in db.session.scalars(national) if found)}


def deliveries(
    user: User, limit: int, before: int | None = None, state: str | None = None
) -> Sequence[Delivery]:
    """The user's Delivery rows with their attempts, newest first, with ids below `before`."""
    query = select(Delivery).where(Delivery.user_id == user.id)
    query = query.options(selectinload(Delivery.tries), selectinload(Delivery.message))
    if before is not None:
        query = query.where(Delivery.id < before)
    if state is not None:
        query = query.where(Delivery.state == state)
    return db.session.scalars(query.order_by(Delivery.id.desc()).limit(limit)).all()


def last_test_attempt(user: User, delivery_id: int | None) -> Attempt | None:
    """The last Attempt of one of the user's test events, or None.

    Not of other deliveries: the receiver's answer may quote the SMS, so it stays hidden.
    """
    query = select(Attempt).join(Delivery, Delivery.id == Attempt.delivery_id)
    is_own_test = (Delivery.user_id == user.id) & Delivery.message_id.is_(None)
    query = query.where(Delivery.id == delivery_id, is_own_test)
    return db.session.scalar(query.order_by(Attempt.id.desc()).limit(1))


def summary(user: User, days: int) -> dict[str, Any]:
    """{"totals": counts, "days": [counts with their day]} for each of the last `days` days."""
    sums = [func.coalesce(func.sum(getattr(UserSummary, name)), 0).label(name) for name in COUNTS]
    of_user = UserSummary.user_id == user.id
    since = utcnow().date() - timedelta(days=days - 1)
    rows = db.session.scalars(select(UserSummary).where(of_user, UserSummary.day >= since))
    found = {row.day: row for row in rows}
    nothing = dict.fromkeys(COUNTS, 0)
    dates = [since + timedelta(days=n) for n in range(days)]
    return {
        "totals": db.session.execute(select(*sums).where(of_user)).one()._mapping,
        "days": [found.get(day) or nothing | {"day": day} for day in dates],
    }
