"""What users read back: their numbers, SMS, deliveries and counts."""

import itertools
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from statistics import median
from typing import Any, NamedTuple

from sqlalchemy import LargeBinary, Select, cast, func, select
from sqlalchemy.orm import selectinload

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import (
    Attempt,
    Delivery,
    DeliveryState,
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
# The size of a message's text
TEXT_BYTES = func.length(cast(Message.sms_text, LargeBinary))
# How many of the newest webhooks are looked at, to say how the last day's went
MAX_JUDGED = 1000
COUNTS = ("numbers", "sms", "otps", "webhooks_delivered")


def numbers(user: User, limit: int, before: int | None = None) -> Sequence[PhoneNumber]:
    """The user's assigned PhoneNumber rows, newest first, with ids below `before`."""
    is_assigned = PhoneNumber.state == NumberState.ASSIGNED
    query = select(PhoneNumber).where(PhoneNumber.user_id == user.id, is_assigned)
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
    query = select(Message.id, TEXT_BYTES).where(Message.user_id == user.id).limit(limit)
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
    rows = _wait_for(query, user, Bell(after or 0, digits), wait) if wait else read(query)
    return rows if after is not None else rows[::-1]


def _wait_for(query: Select[Any], user: User, bell: Bell, seconds: float) -> Sequence[Message]:
    # Before the first look, so that no SMS falls between it and the wait
    with waiters().hanging(bell, user.id):
        if rows := read(query):
            return rows
        with share("waiters").take(user.id) as may_wait:
            give_up = time.monotonic() + seconds
            while may_wait and not rows and (rest := give_up - time.monotonic()) > 0:
                waiters().wait(bell, rest)
                if not _may_call(user):
                    return []
                rows = read(query)
    return rows


def _may_call(user: User) -> bool:
    """Whether the user is still active and approved, and has the same key."""
    is_same = (User.id == user.id) & (User.key_hash == user.key_hash)
    may_call = db.session.scalar(select(User.may_call).where(is_same))
    release()
    return bool(may_call)


def read(query: Select[Any]) -> Sequence[Message]:
    """The rows of a query for ids and TEXT_BYTES, with their deliveries, as far as a page may hold
    their texts."""
    sizes = db.session.execute(query).all()
    sums = itertools.accumulate(size for _, size in sizes)
    ids = [row.id for row, total in zip(sizes, sums, strict=True) if total <= PAGE_BYTES]
    ids = ids or [row.id for row in sizes[:1]]
    wanted = select(Message).where(Message.id.in_(ids)).options(selectinload(Message.deliveries))
    wanted = wanted.execution_options(populate_existing=True)  # after a wait, as they are now
    rows = {row.id: row for row in db.session.scalars(wanted)} if ids else {}
    release()
    return [rows[id] for id in ids if id in rows]


def has_held(user: User, digits: str) -> bool:
    """Whether one of the number's assignments is the user's. Asked by the number alone: with the
    user's id, a database would read through all of their numbers."""
    holders = select(PhoneNumber.user_id).where(PhoneNumber.digits == digits)
    return user.id in db.session.scalars(holders).all()


def _spelled(user: User, digits: str) -> set[str]:
    """The digits themselves, or the user's numbers that have them as national form."""
    if has_held(user, digits):
        return {digits}
    is_assigned = (PhoneNumber.user_id == user.id) & (PhoneNumber.state == NumberState.ASSIGNED)
    national = select(PhoneNumber.digits).where(is_assigned, PhoneNumber.national == digits)
    # One of two would not be looked up by the index: who never held a number has no SMS of it
    return {found for found in db.session.scalars(national) if found} or {digits}


def last_test_attempt(user: User, delivery_id: int | None) -> Attempt | None:
    """The last Attempt of one of the user's test events, or None.

    Not of other deliveries: the receiver's answer may quote the SMS, so it stays hidden.
    """
    query = select(Attempt).join(Delivery, Delivery.id == Attempt.delivery_id)
    is_own_test = (Delivery.user_id == user.id) & Delivery.message_id.is_(None)
    query = query.where(Delivery.id == delivery_id, is_own_test)
    return db.session.scalar(query.order_by(Attempt.id.desc()).limit(1))


def number_of(user: User, digits: str) -> PhoneNumber | None:
    """The user's last assignment of a number, if any."""
    held = (PhoneNumber.digits == digits) & (PhoneNumber.user_id == user.id)
    return db.session.scalar(select(PhoneNumber).where(held).order_by(PhoneNumber.id.desc()))


def numbers_of(messages: Sequence[Message]) -> dict[int | None, PhoneNumber]:
    """The PhoneNumber that each message came for, by its id."""
    ids = {message.phone_number_id for message in messages if message.phone_number_id}
    rows = db.session.scalars(select(PhoneNumber).where(PhoneNumber.id.in_(ids))) if ids else ()
    return {row.id: row for row in rows}


def totals(user: User) -> Mapping[str, int]:
    """The user's counts in all."""
    sums = [func.coalesce(func.sum(getattr(UserSummary, name)), 0).label(name) for name in COUNTS]
    row = db.session.execute(select(*sums).where(UserSummary.user_id == user.id)).one()
    return {name: int(getattr(row, name)) for name in COUNTS}


class LastDay(NamedTuple):
    """How the webhooks of the last 24 hours went: how many were finished, how many of them
    delivered, and in how many milliseconds the median of the attempts that succeeded."""

    finished: int
    delivered: int
    median_ms: int | None


def last_day(user: User) -> LastDay:
    """Of the user's newest webhooks, MAX_JUDGED at most."""
    is_recent = (Delivery.user_id == user.id) & (Delivery.created_at > utcnow() - timedelta(days=1))
    newest = select(Delivery.id, Delivery.state).where(is_recent, Delivery.message_id.is_not(None))
    newest = newest.order_by(Delivery.created_at.desc()).limit(MAX_JUDGED)
    states = {row.id: row.state for row in db.session.execute(newest)}
    delivered = [id for id, state in states.items() if state == DeliveryState.DELIVERED]
    dead = sum(state == DeliveryState.DEAD for state in states.values())
    times = select(Attempt.ms).where(Attempt.delivery_id.in_(delivered), Attempt.result.like("2__"))
    ms = db.session.scalars(times).all() if delivered else []
    return LastDay(len(delivered) + dead, len(delivered), round(median(ms)) if ms else None)


def summary(user: User, days: int) -> dict[str, Any]:
    """{"totals": counts, "days": [counts with their day]} for each of the last `days` days."""
    of_user = UserSummary.user_id == user.id
    since = utcnow().date() - timedelta(days=days - 1)
    rows = db.session.scalars(select(UserSummary).where(of_user, UserSummary.day >= since))
    found = {row.day: row for row in rows}
    nothing = dict.fromkeys(COUNTS, 0)
    dates = [since + timedelta(days=n) for n in range(days)]
    return {
        "totals": totals(user),
        "days": [found.get(day) or nothing | {"day": day} for day in dates],
    }
