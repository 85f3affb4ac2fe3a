"""deliver(): one attempt of a leased delivery, its outcome recorded."""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Delivery, DeliveryState, Reason, Trigger, User
from service.database.writing import release, transact
from service.limits import share
from service.logs import event
from service.webhooks import endpoint, queue
from service.webhooks.attempt import Attempt, PutOff, post
from service.webhooks.outcomes import Tried, record
from service.webhooks.pace import pace

# An attempt that has less time is not made
MIN_SECONDS = 0.5
# How many seconds a batch may take before its outcomes are recorded
BATCH_SECONDS = 0.5


def deliver(
    delivery: Delivery, trigger: Trigger, user: User | None = None, seconds: float = math.inf
) -> DeliveryState:
    """Attempt a delivery leased to the caller once; returns its new state. Never raises.

    The attempt takes `seconds` at most; where these are too few, the worker goes on at once. `user`
    is its user, if the caller has just read that. No transaction is open while the receiver is
    called; the outcome is written only while the lease is held.
    """
    delivery_id = delivery.id  # after a rollback, asking for it would ask the database
    try:
        user = user or _user_of(delivery)
        with _place(user, trigger) as has_place, _slot(user) as has_slot:
            has_place = has_place and seconds >= MIN_SECONDS
            tried = _try(delivery, trigger, user, has_place, has_slot, seconds)
        [state] = record([tried])
        return state
    except Exception:
        event("webhook_failed", logging.ERROR, exc_info=True, delivery_id=delivery_id)
        db.session.rollback()
        return DeliveryState.PENDING


def deliver_batch(
    deliveries: Sequence[Delivery], stop: threading.Event, on_done: Callable[[DeliveryState], None]
) -> None:
    """Attempt deliveries of one user, recorded in one transaction; the first that does not arrive,
    or `stop`, ends the batch: the rest is given back, for whoever is free."""
    untried, tried = list(deliveries), list[Tried]()
    try:
        user = _user_of(untried[0])
        with _slot(user) as has_slot:
            ends = time.monotonic() + BATCH_SECONDS
            while untried:
                tried.append(_try(untried.pop(0), Trigger.WORKER, user, True, has_slot, math.inf))
                if stop.is_set() or not tried[-1].is_success or time.monotonic() > ends:
                    break
        for state in record(tried):
            on_done(state)
        if untried:
            transact(queue.give_back, untried)
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
) -> Tried:  # fmt: skip
    lease = delivery.lease or ""
    outcome: Attempt | PutOff | None = _put_off(user, trigger, has_place, has_slot)
    if outcome is None:
        release()
        outcome = post(user, endpoint.signing_secrets(user), delivery, trigger, seconds)
        event("webhook_tried", delivery_id=delivery.id, user_id=user.id, trigger=trigger,
              result=outcome.result, ms=outcome.ms)  # fmt: skip
        pace().note(user.id, outcome)
    return Tried(user, delivery, lease, outcome)


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
