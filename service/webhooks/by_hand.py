"""Webhooks sent by hand: the test event, and redeliveries."""

import time
from collections import Counter
from collections.abc import Sequence

from sqlalchemy import ColumnElement, select, update

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Delivery, DeliveryState, Trigger, User
from service.database.writing import Transaction, release, transact
from service.webhooks import queue
from service.webhooks.delivery import deliver


def send_test(user: User) -> Delivery:
    """Send the user's endpoint a `test` event now; returns the Delivery with its outcome."""
    delivery = transact(queue.add_test, user)
    deliver(delivery, Trigger.TEST)
    outcome = db.session.get_one(Delivery, delivery.id)
    release()
    return outcome


def redeliver(delivery_id: int) -> DeliveryState | None:
    """Attempt a delivery now and restart its schedule; returns its state, None if it is leased."""
    delivery = transact(queue.claim, delivery_id, attempts=0)
    return deliver(delivery, Trigger.REDELIVERY) if delivery else None


def redeliver_failed(user: User, seconds: float) -> "Counter[DeliveryState]":
    """Make the user's dead OTP deliveries due again; retry here for `seconds`, the worker handles
    the rest. Returns how many are in each state then."""
    ids = transact(_revive, user.id)
    give_up, states = time.monotonic() + seconds, Counter[DeliveryState]()
    for id in ids:
        is_in_time = time.monotonic() < give_up
        delivery = transact(queue.claim, id, queue.is_due(utcnow())) if is_in_time else None
        state = deliver(delivery, Trigger.REDELIVERY) if delivery else DeliveryState.PENDING
        states[state] += 1
    return states


def _revive(tx: Transaction, user_id: int) -> Sequence[int]:
    is_dead: ColumnElement[bool] = (
        (Delivery.user_id == user_id)
        & (Delivery.state == DeliveryState.DEAD)
        & Delivery.message_id.is_not(None)
    )
    ids = tx.session.scalars(select(Delivery.id).where(is_dead).order_by(Delivery.id)).all()
    fresh = {"state": DeliveryState.PENDING, "attempts": 0, "next_attempt_at": utcnow()}
    tx.execute(update(Delivery).where(is_dead).values(fresh))
    return ids
