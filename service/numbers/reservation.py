"""The row made before the main server is asked, which holds the limit and the Idempotency-Key."""

import time
from datetime import datetime, timedelta

from flask import current_app
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from service import limits
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import NumberState, PhoneNumber, User, UserSummary
from service.database.writing import Transaction, is_duplicate_key, transact
from service.errors import BadRequest, DailyLimitReached, UnableToGetNumber
from service.keys import sha256

KEY_LIFETIME = timedelta(hours=24)
# How often a call checks whether another one with its Idempotency-Key has ended
POLL_SECONDS = 0.05


def reserve(
    user: User, country_id: int, operator_id: int | None, idempotency_key: str | None
) -> PhoneNumber:
    """The row of this request: a new one, or the one that its Idempotency-Key created before.

    While another call with the same key asks the main server, waits for its outcome. Raises
    BadRequest, DailyLimitReached or UnableToGetNumber.
    """
    key_hash = sha256(idempotency_key) if idempotency_key is not None else None
    give_up = time.monotonic() + _request_lease().total_seconds()
    while True:
        try:
            row, is_ours = transact(_reserve, user, country_id, operator_id, key_hash)
        except IntegrityError as e:
            if not is_duplicate_key(e):
                raise
            continue  # another call with this key was faster: read its row
        if is_ours or row.state == NumberState.ASSIGNED:
            return row
        if time.monotonic() > give_up:
            raise UnableToGetNumber
        with limits.gate().outside():
            time.sleep(POLL_SECONDS)


def upstream_key(row: PhoneNumber, idempotency_key: str | None) -> str:
    """The Idempotency-Key that the main server gets: always one, and the same for the same row.

    With the user's id, since two of our users may have chosen the same one. Without a caller's
    key, it is made from the row; with its time, since another deployment counts its rows as well.
    """
    if idempotency_key is None:
        return sha256(f"{row.user_id}:{row.id}:{row.requested_at.isoformat()}")
    key = f"{row.user_id}:{idempotency_key}"
    return key if len(key) <= 255 and key.isascii() and key.isprintable() else sha256(key)


def _request_lease() -> timedelta:
    # Longer than fetching the country list and the number; not much longer, since a repeat of a
    # call whose process died waits for it
    return timedelta(seconds=2 * current_app.config["UPSTREAM_TIMEOUT"] + 10)


def _reserve(
    tx: Transaction, user: User, country_id: int, operator_id: int | None, key_hash: str | None
) -> tuple[PhoneNumber, bool]:
    """(the row, whether this call has to fill it, and count it when it ends)."""
    now = utcnow()
    if user.daily_limit is not None:
        tx.lock_user(user.id)  # against their other calls
    row = _row_of_key(tx, user, key_hash, now)
    if row is None:
        row = PhoneNumber(
            user_id=user.id, state=NumberState.REQUESTED, country_id=country_id,
            operator_id=operator_id, idempotency_hash=key_hash, requested_at=now,
        )  # fmt: skip
        tx.store(row)
    elif (row.country_id, row.operator_id) != (country_id, operator_id):
        raise BadRequest("Idempotency-Key was used with another country_id or operator_id")
    elif row.state == NumberState.ASSIGNED or is_under_way(row, now):
        return row, False
    else:
        # Its call died or never got the answer: ask again, with the same key
        died_at = row.requested_at if row.state == NumberState.REQUESTED else None
        row.state, row.requested_at = NumberState.REQUESTED, now
        tx.session.flush()
        if died_at:
            tx.count(user.id, died_at, requests=1)
    if user.daily_limit is not None and used_today(user, now) > user.daily_limit:
        raise _limit_reached(now)
    return row, True


def _row_of_key(
    tx: Transaction, user: User, key_hash: str | None, now: datetime
) -> PhoneNumber | None:
    """The row that the Idempotency-Key created; an expired key is removed from its row."""
    if key_hash is None:
        return None
    row = tx.session.scalar(
        select(PhoneNumber)
        .where(PhoneNumber.user_id == user.id, PhoneNumber.idempotency_hash == key_hash)
        .execution_options(populate_existing=True)
    )
    if row and row.requested_at < now - KEY_LIFETIME:
        row.idempotency_hash = None
        tx.session.flush()
        return None
    return row


def is_under_way(row: PhoneNumber, now: datetime) -> bool:
    """Whether the main server may still be being asked for the number of this row."""
    return row.state == NumberState.REQUESTED and row.requested_at > now - _request_lease()


def check_limit(user: User) -> None:
    """Raise DailyLimitReached if a new request would exceed the user's limit."""
    now = utcnow()
    if user.daily_limit is not None and used_today(user, now) >= user.daily_limit:
        raise _limit_reached(now)


def _limit_reached(now: datetime) -> DailyLimitReached:
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    wait = int((midnight - now).total_seconds()) + 1
    return DailyLimitReached(headers={"Retry-After": str(wait)})


def used_today(user: User, now: datetime) -> int:
    """What counts against the user's limit: today's numbers plus the requests in progress."""
    numbers = select(UserSummary.numbers).where(
        UserSummary.user_id == user.id, UserSummary.day == now.date()
    )
    under_way = select(func.count()).where(
        PhoneNumber.user_id == user.id,
        PhoneNumber.state == NumberState.REQUESTED,
        PhoneNumber.requested_at > now - _request_lease(),
    )
    # In this order: a call that ends in between counts twice, not at all in the other one
    return (db.session.scalar(under_way) or 0) + (db.session.scalar(numbers) or 0)
