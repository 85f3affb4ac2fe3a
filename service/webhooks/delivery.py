"""deliver(): one attempt of a leased delivery, its outcome recorded."""

import contextlib
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, insert, update

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Attempt as AttemptRow
from service.database.models import Delivery, DeliveryState, Reason, Trigger, User
from service.database.writing import Transaction, release, transact
from service.limits import share
from service.logs import event
from service.webhooks import endpoint, queue
from service.webhooks.attempt import Attempt, PutOff, post
from service.webhooks.pace import pace

# An attempt that has less time is not made
MIN_SECONDS = 0.5
# How many seconds a batch may take before its outcomes are recorded
BATCH_SECONDS = 0.5
# Seconds from each failed attempt to the next; front-loaded, since OTPs age
RETRY_SECONDS = (5, 15, 45, 120, 300, 900, 3600, 21600, 86400)
JITTER = 0.2
MAX_RETRY_AFTER = 3600

# Compiled once, without the ORM: the statements of every webhook
_ATTEMPT, _DELIVERIES = insert(AttemptRow.table()), Delivery.table()
_FINISH = update(_DELIVERIES).where(
    _DELIVERIES.c.id == bindparam("held_id"), _DELIVERIES.c.lease == bindparam("held_lease")
)


class _Tried(NamedTuple):
    """A delivery with the lease it was claimed under: a retried transaction may reload the row."""

    delivery: Delivery
    lease: str
    outcome: Attempt | PutOff

    @property
    def is_success(self) -> bool:
        return isinstance(self.outcome, Attempt) and self.outcome.result.is_success


class _Recorded(NamedTuple):
    """What was written: the delivery's state, and what happened to its endpoint."""

    state: DeliveryState
    is_arrival: bool = False  # whether this is the webhook's first successful delivery
    change: endpoint.Change | None = None


def deliver(
    delivery: Delivery, trigger: Trigger, user: User | None = None, seconds: float = math.inf
) -> DeliveryState:
    """Attempt a delivery leased to the caller once; returns its new state. Never raises.

    The attempt takes `seconds` at most; where these are too few, the worker goes on at once. `user`
    is its user, if the caller has just read that. No transaction is open while the receiver is
    called; the outcome is written only while the lease is held.
    """
    try:
        user = user or _user_of(delivery)
        with _place(user, trigger) as has_place, _slot(user) as has_slot:
            has_place = has_place and seconds >= MIN_SECONDS
            tried = _try(delivery, trigger, user, has_place, has_slot, seconds)
        [state] = _record(user, [tried])
        return state
    except Exception:
        event("webhook_failed", logging.ERROR, exc_info=True, delivery_id=delivery.id)
        db.session.rollback()
        return DeliveryState.PENDING


def deliver_batch(
    deliveries: Sequence[Delivery], stop: threading.Event, on_done: Callable[[DeliveryState], None]
) -> None:
    """Attempt deliveries of one user, recorded in one transaction; the first that does not arrive,
    or `stop`, ends the batch: the rest is given back, for whoever is free."""
    untried, tried = list(deliveries), list[_Tried]()
    started = time.monotonic()
    try:
        user = _user_of(untried[0])
        with _slot(user) as has_slot:
            while untried and time.monotonic() - started < BATCH_SECONDS:
                tried.append(_try(untried.pop(0), Trigger.WORKER, user, True, has_slot, math.inf))
                if stop.is_set() or not tried[-1].is_success:
                    break
        for state in _record(user, tried, untried):
            on_done(state)
    except Exception:
        event("webhook_failed", logging.ERROR, exc_info=True, user_id=deliveries[0].user_id)
        db.session.rollback()


def _user_of(delivery: Delivery) -> User:
    return db.session.get_one(User, delivery.user_id, populate_existing=True)


def _place(user: User, trigger: Trigger) -> contextlib.AbstractContextManager[bool]:
    """A place among the calls that wait for receivers; who sends by hand has one already."""
    by_hand = contextlib.nullcontext(True)
    return share("receivers").take(user.id) if trigger is Trigger.INGEST else by_hand


def _slot(user: User) -> contextlib.AbstractContextManager[bool]:
    return queue.slots().take(user.id, 1 if user.webhook_failures else queue.SLOTS)


def _try(
    delivery: Delivery, trigger: Trigger, user: User, has_place: bool, has_slot: bool,
    seconds: float,
) -> _Tried:  # fmt: skip
    lease = delivery.lease or ""
    outcome: Attempt | PutOff | None = _put_off(user, trigger, has_place, has_slot)
    if outcome is None:
        release()
        outcome = post(user, endpoint.signing_secrets(user), delivery, trigger, seconds)
        event("webhook_tried", delivery_id=delivery.id, user_id=user.id, trigger=trigger,
              result=outcome.result, ms=outcome.ms)  # fmt: skip
        pace().note(user.id, outcome)
    return _Tried(delivery, lease, outcome)


def _put_off(user: User, trigger: Trigger, has_place: bool, has_slot: bool) -> PutOff | None:
    """Why this attempt has to wait: no place among those that wait for receivers, no slot of its
    endpoint's, an endpoint that is slow again and again, which an SMS does not wait for, or an open
    circuit, whose probe it claims if due."""
    now, open_until = utcnow(), user.webhook_open_until
    soon = now + timedelta(seconds=1)
    if trigger is Trigger.TEST:
        return None  # a person waits for it; the page limits their number
    if not has_place:
        return PutOff(Reason.BUSY, now)  # the worker takes it at once
    if not has_slot:
        return PutOff(Reason.BUSY, soon)
    if trigger is Trigger.INGEST and not pace().may_wait(user):
        return PutOff(Reason.BUSY, now)  # the worker takes it
    if not open_until or not trigger.heeds_circuit:
        return None
    if open_until > now or not transact(endpoint.claim_probe, user.id, open_until, now):
        return PutOff(Reason.CIRCUIT_OPEN, now)  # due as soon as the circuit is not open
    return None


def _record(
    user: User, tried: Sequence[_Tried], untried: Sequence[Delivery] = ()
) -> list[DeliveryState]:
    """Record the outcomes and release `untried`, in one transaction; returns the new states."""
    recorded = transact(_write, user, tried, untried)
    for row in recorded:
        if change := row.change:
            event(change.event, logging.WARNING, user_id=user.id, failures=change.failures)
    return [row.state for row in recorded]


def _write(
    tx: Transaction, user: User, tried: Sequence[_Tried], untried: Sequence[Delivery]
) -> list[_Recorded]:
    queue.give_back(tx, untried)
    recorded = [_write_outcome(tx, row, user, row.outcome) for row in tried]
    if arrivals := sum(row.is_arrival for row in recorded):
        tx.count(user.id, utcnow(), webhooks_delivered=arrivals)
    return recorded


def _write_outcome(
    tx: Transaction, tried: _Tried, user: User, attempt: Attempt | PutOff
) -> _Recorded:
    """The attempt, the delivery's new state and the endpoint's circuit.

    The row is unchanged since it was leased: nobody else changes it while the lease is held.
    """
    if isinstance(attempt, PutOff):  # not counted as an attempt
        _finish(tx, tried, last_result=attempt.reason, next_attempt_at=attempt.until)
        return _Recorded(DeliveryState.PENDING)
    row, now = tried.delivery, utcnow()
    was_delivered = row.state == DeliveryState.DELIVERED
    changes = _changes(row, attempt, now)
    if not _finish(tx, tried, **changes):
        # The lease expired and somebody else took over
        current = tx.session.get_one(Delivery, row.id, populate_existing=True)
        return _Recorded(DeliveryState(current.state))
    values = {
        "delivery_id": row.id,
        "trigger": attempt.trigger,
        "started_at": attempt.started_at,
        "ms": attempt.ms,
        "result": attempt.result,
        "answer": attempt.answer,
        "url": attempt.url,
        "next_attempt_at": changes["next_attempt_at"],
    }
    tx.execute(_ATTEMPT, values)
    change = endpoint.judge(tx, user, attempt, now)
    is_arrival = attempt.result.is_success and not was_delivered and row.message_id is not None
    return _Recorded(DeliveryState(changes.get("state", row.state)), is_arrival, change)


def _changes(row: Delivery, attempt: Attempt, now: datetime) -> dict[str, Any]:
    """The changes that the attempt makes to its delivery."""
    attempts, result = row.attempts + 1, attempt.result
    changes: dict[str, Any] = {"attempts": attempts, "last_result": result, "next_attempt_at": None}
    if result.is_success:
        state = {"state": DeliveryState.DELIVERED, "delivered_at": row.delivered_at or now}
        return changes | state
    if row.state == DeliveryState.DELIVERED:
        return changes  # a redelivery failed, but the webhook was delivered before
    is_last = attempts > len(RETRY_SECONDS) or row.message_id is None
    if is_last or result.is_gone or result.called_nobody:
        return changes | {"state": DeliveryState.DEAD}
    next_at = now if attempt.is_cut else now + delay(attempts, attempt.retry_after)
    return changes | {"state": DeliveryState.PENDING, "next_attempt_at": next_at}


def _finish(tx: Transaction, tried: _Tried, **changes: Any) -> bool:
    """Write `changes` and end the lease, if it is still this caller's."""
    held = {"held_id": tried.delivery.id, "held_lease": tried.lease}
    values = changes | {"lease": None, "leased_until": None}
    return tx.execute(_FINISH, values | held).rowcount == 1


def delay(attempts: int, retry_after: str | None) -> timedelta:
    """How long to wait after so many attempts and the receiver's Retry-After header."""
    seconds = RETRY_SECONDS[attempts - 1] * random.uniform(1 - JITTER, 1 + JITTER)
    return timedelta(seconds=max(seconds, min(_seconds_of(retry_after), MAX_RETRY_AFTER)))


def _seconds_of(retry_after: str | None) -> float:
    """Seconds in a Retry-After header (RFC 9110, 10.2.3): a number or a date; else 0."""
    value = (retry_after or "").strip()
    if value.isascii() and value.isdecimal():
        return int(value[:9])
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0, (date - datetime.now(UTC)).total_seconds())
