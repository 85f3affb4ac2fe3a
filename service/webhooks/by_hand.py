"""Webhooks sent by hand: the test event, and redeliveries."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from flask import Flask, current_app
from sqlalchemy import ColumnElement, select, update

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Delivery, DeliveryState, Trigger, User
from service.database.writing import Transaction, release, transact
from service.errors import StillSending
from service.limits import Slots, share
from service.webhooks import queue
from service.webhooks.delivery import deliver


def init_app(app: Flask) -> None:
    app.extensions["sending"] = Slots(sys.maxsize)


@contextlib.contextmanager
def _alone(user_id: int) -> Iterator[None]:
    """Hold a place among the calls that wait for receivers; raises StillSending if the user sends
    by hand already, or none is free."""
    sending: Slots = current_app.extensions["sending"]
    with sending.take(user_id, 1) as alone, share("receivers").take(user_id) as has_place:
        if not alone or not has_place:
            raise StillSending
        yield


def send_test(user: User) -> Delivery:
    """Send the user's endpoint a `test` event now; returns the Delivery with its outcome.

    Raises StillSending.
    """
    with _alone(user.id):
        delivery = transact(queue.add_test, user)
        deliver(delivery, Trigger.TEST)
    outcome = db.session.get_one(Delivery, delivery.id)
    release()
    return outcome


def redeliver(delivery_id: int, user_id: int) -> DeliveryState | None:
    """Attempt a user's delivery now and restart its schedule; returns its state, None if it is
    leased. Raises StillSending."""
    with _alone(user_id):
        delivery = transact(queue.claim, delivery_id, attempts=0)
        return deliver(delivery, Trigger.REDELIVERY) if delivery else None


def redeliver_failed(
    user: User, seconds: float, since: datetime | None = None
) -> "Counter[DeliveryState]":
    """Make the user's dead OTP deliveries due again, those created from `since` on; retry here for
    `seconds`, the worker handles the rest. Returns how many are in each state then. Raises
    StillSending."""
    with _alone(user.id):
        ids = transact(_revive, user.id, since)
        give_up, states = time.monotonic() + seconds, Counter[DeliveryState]()
        for id in ids:
            is_in_time = time.monotonic() < give_up
            delivery = transact(queue.claim, id, queue.is_due(utcnow())) if is_in_time else None
            state = deliver(delivery, Trigger.REDELIVERY) if delivery else DeliveryState.PENDING
            states[state] += 1
        return states


def _revive(tx: Transaction, user_id: int, since: datetime | None) -> Sequence[int]:
    is_dead: ColumnElement[bool] = (
        (Delivery.user_id == user_id)
        & (Delivery.state == DeliveryState.DEAD)
        & Delivery.message_id.is_not(None)
    )
    if since:
        is_dead &= Delivery.created_at >= since
    ids = tx.session.scalars(select(Delivery.id).where(is_dead).order_by(Delivery.id)).all()
    fresh = {"state": DeliveryState.PENDING, "attempts": 0, "next_attempt_at": utcnow()}
    tx.execute(update(Delivery).where(is_dead).values(fresh))
    return ids
