"""The queue of webhooks in the database: added, leased, claimed, rescheduled."""

import json
import secrets
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from flask import Flask, current_app
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    Update,
    bindparam,
    func,
    or_,
    select,
    update,
)

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Delivery, DeliveryState, Message, Reason, User
from service.database.writing import Transaction, release
from service.limits import Slots

# Attempts at once for one endpoint in this process; only one where the last attempt failed
SLOTS = 4
# A lease outlives its attempt by this many seconds
LEASE_SLACK = 10
# How many deliveries of one user a worker claims at once
BATCH = 16
# The index of what is pending
BY_USER = "ix_deliveries_state_user_id_next_attempt_at"


def init_app(app: Flask) -> None:
    app.extensions["delivery_slots"] = Slots(sys.maxsize)


def slots() -> Slots:
    """The attempts under way in this process, by user."""
    found: Slots = current_app.extensions["delivery_slots"]
    return found


def payload(message: Message) -> bytes:
    """The exact bytes of `otp_received` for a stored message."""
    data = {
        "phone_number": f"+{message.digits}",
        "otp_code": message.otp_code,
        "provider": message.provider,
        "sms_text": message.sms_text,
    }
    body = {"event": "otp_received", "data": data}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def add_otp(tx: Transaction, message: Message, user: User) -> Delivery | None:
    """Store the Delivery of a stored message; None if it has no code, or the user no webhook.

    It is leased to the caller, who commits and then calls deliver(): after a crash in between, it
    becomes due when the lease expires. If the user is inactive or the endpoint disabled, it is
    `dead`, to be seen and redelivered; if its circuit is open, it waits for the worker.
    """
    if message.otp_code is None or not user.webhook_url:
        return None
    now = utcnow()
    if not user.may_call or user.webhook_disabled_at:
        reason = Reason.DISABLED if user.may_call else Reason.USER_INACTIVE
        values: dict[str, Any] = {
            "state": DeliveryState.DEAD,
            "last_result": reason,
            "next_attempt_at": None,
        }
    elif user.webhook_open_until and user.webhook_open_until > now:
        values = {"last_result": Reason.CIRCUIT_OPEN}
    else:
        values = _new_lease(now)
    return _store(tx, user, now, {"body": payload(message), "message_id": message.id} | values)


def add_test(tx: Transaction, user: User) -> Delivery:
    """Store a `test` event, leased to the caller."""
    now = utcnow()
    return _store(tx, user, now, {"body": b'{"event":"test","data":{}}'} | _new_lease(now))


def _store(tx: Transaction, user: User, now: datetime, values: dict[str, Any]) -> Delivery:
    defaults = {
        "webhook_id": f"msg_{secrets.token_urlsafe(18)}",
        "user_id": user.id,
        "message_id": None,
        "state": DeliveryState.PENDING,
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
    }
    return tx.store(Delivery(**defaults | values))


def lease_time() -> timedelta:
    """How long a lease lasts: longer than an attempt."""
    return timedelta(seconds=current_app.config["WEBHOOK_TIMEOUT"] + LEASE_SLACK)


def _new_lease(now: datetime) -> dict[str, Any]:
    return {"lease": secrets.token_hex(16), "leased_until": now + lease_time()}


def is_free(now: datetime | BindParameter[datetime]) -> ColumnElement[bool]:
    """The condition of a delivery that nobody is attempting."""
    return or_(Delivery.leased_until.is_(None), Delivery.leased_until <= now)


def is_due(now: datetime | BindParameter[datetime]) -> ColumnElement[bool]:
    """The condition of a delivery that is due and not leased."""
    is_pending = Delivery.state == DeliveryState.PENDING
    return is_pending & (Delivery.next_attempt_at <= now) & is_free(now)


def may_be_tried(now: datetime | BindParameter[datetime]) -> ColumnElement[bool]:
    """The condition of a user whose circuit is not open.

    It is looked at where work is handed out: a circuit that opens or closes changes no delivery,
    however many wait for it.
    """
    return or_(User.webhook_open_until.is_(None), User.webhook_open_until <= now)


def due(late: timedelta = timedelta(0)) -> tuple[int, datetime | None]:
    """How many deliveries a worker could have taken for `late`, and since when the oldest."""
    now = utcnow()
    figures = select(func.count(), func.min(Delivery.next_attempt_at)).join_from(Delivery, User)
    # A circuit that has just half-opened let nobody take them before
    since = now - late
    row = db.session.execute(figures.where(is_due(since), may_be_tried(since))).one()
    return row[0], row[1]


def claim(
    tx: Transaction, delivery_id: int, *conditions: ColumnElement[bool], **values: Any
) -> Delivery | None:
    """Lease the delivery to the caller; None if somebody holds it or `conditions` do not.

    One conditional UPDATE: of several callers, one wins. `values` are set along with the lease.
    """
    now = utcnow()
    free = update(Delivery).where(Delivery.id == delivery_id, is_free(now), *conditions)
    if tx.execute(free.values(_new_lease(now) | values)).rowcount != 1:
        return None
    return tx.session.get(Delivery, delivery_id, populate_existing=True)


def due_users() -> list[tuple[int, int]]:
    """(id, consecutive failures) of each user with due deliveries, whose circuit is not open."""
    rows = db.session.execute(_due_users(), {"now": utcnow()}).all()
    release()
    return [(row.id, row.webhook_failures) for row in rows]


# The worker's statements are built once


@cache
def _due_users() -> Select[int, int]:
    now: BindParameter[datetime] = bindparam("now")
    first = select(Delivery.id).where(Delivery.user_id == User.id, is_due(now)).limit(1)
    # MySQL would rather read all of a user's deliveries
    first = first.with_hint(Delivery, f"FORCE INDEX ({BY_USER})", "mysql")
    has_due = first.correlate(User).scalar_subquery().is_not(None)
    return select(User.id, User.webhook_failures).where(may_be_tried(now), has_due)


@cache
def _oldest() -> Select[int]:
    mine = (Delivery.user_id == bindparam("user_id")) & is_due(bindparam("now"))
    return select(Delivery.id).where(mine).order_by(Delivery.next_attempt_at).limit(BATCH)


@cache
def _take() -> Update:
    """Not by their state, by which SQLite would look up all that are pending: what is no longer
    pending has no time for its next attempt."""
    now: BindParameter[datetime] = bindparam("now")
    still_due = (Delivery.next_attempt_at <= now) & is_free(now)
    ids = Delivery.id.in_(bindparam("ids", expanding=True))
    return update(Delivery.table()).where(ids, still_due)


@cache
def _taken() -> Select[Delivery]:
    ids = Delivery.id.in_(bindparam("ids", expanding=True))
    taken = select(Delivery).where(ids, Delivery.lease == bindparam("lease"))
    return taken.execution_options(populate_existing=True)


def claim_due(tx: Transaction, users: Iterable[int]) -> list[list[Delivery]]:
    """The oldest due deliveries of each user, leased to the caller, as a batch each; none of those
    whom somebody else was quicker to claim."""
    now = utcnow()
    lease = _new_lease(now)
    due = [tx.session.scalars(_oldest(), {"user_id": user, "now": now}) for user in users]
    ids = [id for found in due for id in found]
    tx.execute(_take(), lease | {"ids": ids, "now": now})
    batches = defaultdict(list)
    for delivery in tx.session.scalars(_taken(), {"ids": ids, "lease": lease["lease"]}):
        batches[delivery.user_id].append(delivery)
    return list(batches.values())


def give_back(tx: Transaction, deliveries: Sequence[Delivery]) -> None:
    """End the leases of the deliveries of a batch that were not attempted."""
    if deliveries:
        ids, lease = [delivery.id for delivery in deliveries], deliveries[0].lease
        held = update(Delivery).where(Delivery.id.in_(ids), Delivery.lease == lease)
        tx.execute(held.values(lease=None, leased_until=None))
