"""deliver(): one attempt of a leased delivery, its outcome recorded."""

import contextlib
import logging
import math
import random
import threading
import time
from collections import defaultdict
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
_HELD = update(_DELIVERIES).where(_DELIVERIES.c.lease == bindparam("held_lease"))
_FINISH = _HELD.where(_DELIVERIES.c.id == bindparam("held_id"))
_FINISH_ALIKE = _HELD.where(_DELIVERIES.c.id.in_(bindparam("held_ids", expanding=True)))


class _Tried(NamedTuple):
    """A delivery with the lease it was claimed under: a retried transaction may reload the row."""

    delivery: Delivery
    lease: str
    outcome: Attempt | PutOff

    @property
    def is_success(self) -> bool:
        return isinstance(self.outcome, Attempt) and self.outcome.result.is_success


class _LeaseLost(Exception):
    """Somebody else took over one of the deliveries that were to be recorded together."""


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
    try:
        states, changes = transact(_write, user, tried, untried)
    except _LeaseLost:
        each = [state for row in tried for state in _record(user, [row])]
        return each + _record(user, [], untried)
    for change in changes:
        event(change.event, logging.WARNING, user_id=user.id, failures=change.failures)
    return states


def _write(
    tx: Transaction, user: User, tried: Sequence[_Tried], untried: Sequence[Delivery]
) -> tuple[list[DeliveryState], list[endpoint.Change]]:
    """The attempts, the deliveries' new states and the endpoint's circuit; what happened to that.

    The rows are unchanged since they were leased: nobody else changes one while the lease is held.
    Those with the same outcome are written by one statement.
    """
    queue.give_back(tx, untried)
    now = utcnow()
    written = [(row, _changes(row.delivery, row.outcome, now)) for row in tried]
    if not _finish(tx, written):
        current = tx.session.get_one(Delivery, tried[0].delivery.id, populate_existing=True)
        return [DeliveryState(current.state)], []
    attempts = [
        _row(row.delivery, row.outcome, changes["next_attempt_at"])
        for row, changes in written
        if isinstance(row.outcome, Attempt)
    ]
    if attempts:
        tx.execute(_ATTEMPT, attempts if len(attempts) > 1 else attempts[0])
    # Of several successes, one says what there is to say of the endpoint
    outcomes = [row.outcome for row in tried if isinstance(row.outcome, Attempt)]
    judged = {attempt.result.is_success: attempt for attempt in outcomes}.values()
    happened = [endpoint.judge(tx, user, attempt, now) for attempt in judged]
    if arrivals := sum(map(_is_arrival, tried)):
        tx.count(user.id, utcnow(), webhooks_delivered=arrivals)
    states = [DeliveryState(changes.get("state", row.delivery.state)) for row, changes in written]
    return states, [change for change in happened if change]


def _is_arrival(tried: _Tried) -> bool:
    """Whether it is a webhook's first successful delivery."""
    delivery = tried.delivery
    was_delivered = delivery.state == DeliveryState.DELIVERED
    return tried.is_success and not was_delivered and delivery.message_id is not None


def _row(delivery: Delivery, attempt: Attempt, next_attempt_at: datetime | None) -> dict[str, Any]:
    return {
        "delivery_id": delivery.id,
        "trigger": attempt.trigger,
        "started_at": attempt.started_at,
        "ms": attempt.ms,
        "result": attempt.result,
        "answer": attempt.answer,
        "url": attempt.url,
        "next_attempt_at": next_attempt_at,
    }


def _changes(row: Delivery, attempt: Attempt | PutOff, now: datetime) -> dict[str, Any]:
    """The changes that the attempt makes to its delivery; what is put off counts as none."""
    if isinstance(attempt, PutOff):
        return {"last_result": attempt.reason, "next_attempt_at": attempt.until}
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


def _finish(tx: Transaction, written: Sequence[tuple[_Tried, dict[str, Any]]]) -> bool:
    """Write the changes and end the leases, if they are still this caller's; raises _LeaseLost if
    only some are."""
    alike: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row, changes in written:
        alike[row.lease, *changes.items()].append(row.delivery.id)
    ended = 0
    for (lease, *items), ids in alike.items():
        values = dict(items) | {"lease": None, "leased_until": None, "held_lease": lease}
        if len(ids) == 1:  # of an SMS: a list would cost it more
            ended += tx.execute(_FINISH, values | {"held_id": ids[0]}).rowcount
        else:
            ended += tx.execute(_FINISH_ALIKE, values | {"held_ids": ids}).rowcount
    if ended < len(written) > 1:
        raise _LeaseLost
    return ended == len(written)


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
