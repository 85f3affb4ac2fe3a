"""What users read back: their numbers, their SMS, their counts."""

import contextlib
import time
from datetime import timedelta

from flask import current_app
from sqlalchemy import func, select
from sqlalchemy.orm import selectinload

from service.models import Attempt, Delivery, Message, PhoneNumber, UserSummary, db, release, utcnow
from service.slots import Slots

COUNTS = ("numbers", "sms", "otps", "webhooks_delivered")
POLL_SECONDS = 0.5


def init_app(app):
    app.extensions["waiting"] = Slots()


def numbers(user, limit, before=None, states=("assigned",)):
    """The user's PhoneNumber rows in one of `states`, newest first, of ids below `before`."""
    query = select(PhoneNumber).where(PhoneNumber.user_id == user.id, PhoneNumber.state.in_(states))
    if before is not None:
        query = query.where(PhoneNumber.id < before)
    return db.session.scalars(query.order_by(PhoneNumber.id.desc()).limit(limit)).all()


def messages(user, limit, phone_number=None, after=None, before=None, wait=0):
    """The user's Message rows, oldest first: the first ones after the id `after`, else the latest
    (of ids below `before`).

    `phone_number` is digits, with the country's code or in the national form of one of the user's
    numbers. While there is none, `wait` seconds are waited, holding no connection; at once it is
    the empty list when too many wait already.
    """
    query = select(Message).where(Message.user_id == user.id).limit(limit)
    query = query.options(selectinload(Message.deliveries))
    if phone_number is not None:
        query = query.where(Message.digits.in_(_spelled(user, phone_number)))
    if before is not None:
        query = query.where(Message.id < before)
    if after is not None:
        query = query.where(Message.id > after).order_by(Message.id)
    else:
        query = query.order_by(Message.id.desc())
    # An SMS that is just being stored is waited for: it may have a lower id than one to be read,
    # which a reader who goes on from there would never see
    query = query.with_for_update(read=True)
    rows = _read(query)
    if not rows and wait:
        with _place(user) as free:
            give_up = time.monotonic() + wait
            while free and not rows and (left := give_up - time.monotonic()) > 0:
                time.sleep(min(left, POLL_SECONDS))
                rows = _read(query)
    return rows if after is not None else rows[::-1]


@contextlib.contextmanager
def _place(user):
    """Whether this call may wait, which holds a thread: half of them stay for those who come for a
    number, and one user gets half of the rest."""
    waiting, places = current_app.extensions["waiting"], current_app.config["THREADS"] // 2
    with waiting.take("all", places) as free, waiting.take(user.id, (places + 1) // 2) as mine:
        yield free and mine


def _read(query):
    rows = db.session.scalars(query).all()
    release()
    return rows


def _spelled(user, digits):
    """The digits themselves, else the user's numbers whose national form they are."""
    holders = select(PhoneNumber.user_id).where(PhoneNumber.digits == digits)
    if user.id in db.session.scalars(holders).all():
        return {digits}
    national = select(PhoneNumber.digits).where(
        PhoneNumber.user_id == user.id,
        PhoneNumber.state == "assigned",
        PhoneNumber.digits == PhoneNumber.phone_code.concat(digits),
    )
    return {digits, *db.session.scalars(national)}


def deliveries(user, limit, before=None, state=None):
    """The user's Delivery rows with their attempts, newest first, of ids below `before`."""
    query = select(Delivery).where(Delivery.user_id == user.id)
    query = query.options(selectinload(Delivery.tries), selectinload(Delivery.message))
    if before is not None:
        query = query.where(Delivery.id < before)
    if state is not None:
        query = query.where(Delivery.state == state)
    return db.session.scalars(query.order_by(Delivery.id.desc()).limit(limit)).all()


def last_attempt(user, delivery_id):
    """The Attempt of the user's test event that was made last, or None.

    Of no other delivery: what the receiver said of an SMS may quote it, and is hidden.
    """
    mine = (Delivery.user_id == user.id) & (Delivery.id == delivery_id)
    mine &= Delivery.message_id.is_(None)
    query = select(Attempt).join(Delivery, Delivery.id == Attempt.delivery_id).where(mine)
    return db.session.scalar(query.order_by(Attempt.id.desc()).limit(1))


def summary(user, days):
    """{"totals": counts, "days": [counts and their day]}: every day of the last `days`."""
    sums = [func.coalesce(func.sum(getattr(UserSummary, name)), 0).label(name) for name in COUNTS]
    mine = UserSummary.user_id == user.id
    today = utcnow().date()
    since = today - timedelta(days=days - 1)
    rows = db.session.scalars(select(UserSummary).where(mine, UserSummary.day >= since))
    found = {row.day: row for row in rows}
    nothing = dict.fromkeys(COUNTS, 0)
    return {
        "totals": db.session.execute(select(*sums).where(mine)).one()._mapping,
        "days": [
            found.get(day) or nothing | {"day": day}
            for day in (since + timedelta(days=n) for n in range(days))
        ],
    }
