"""Delivering webhooks: durable, leased, tried by one deliver(), retried, and isolated."""

import contextlib
import logging
import random
import secrets
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from flask import current_app
from sqlalchemy import bindparam, func, insert, or_, select, update

from service import guard, outbound, webhooks
from service.logs import event
from service.models import (
    Attempt,
    Delivery,
    User,
    count,
    db,
    execute,
    release,
    store,
    transact,
    utcnow,
)
from service.secretbox import Unreadable, seal, unseal
from service.slots import Slots

log = logging.getLogger(__name__)

# Seconds from each failed try to the next; front-loaded, since OTPs age
RETRY_SECONDS = (5, 15, 45, 120, 300, 900, 3600, 21600, 86400)
JITTER = 0.2
MAX_RETRY_AFTER = 3600

# Failures in a row that open an endpoint's circuit, and for how many seconds
CIRCUIT_FAILURES = 5
CIRCUIT_SECONDS = 30
MAX_CIRCUIT_SECONDS = 900

# Tries at once for one endpoint in this process; only one where the last try failed
SLOTS = 4

ANSWER_BYTES = 4096
KEPT_CHARACTERS = 1024
OLD_SECRET_HOURS = 24
# A lease outlives its try by this many seconds
LEASE_SLACK = 10

# How many a worker's thread takes at once, and for how long it goes on before it records them
BATCH, BATCH_SECONDS = 16, 0.5

# Built once, and past the ORM: what every webhook writes
_ATTEMPT, _DELIVERIES = insert(Attempt.__table__), Delivery.__table__
_FINISH = update(_DELIVERIES).where(
    _DELIVERIES.c.id == bindparam("held_id"), _DELIVERIES.c.lease == bindparam("held_lease")
)


def init_app(app):
    app.extensions["delivery"] = {"session": outbound.new_session(), "slots": Slots()}


# --- secrets and endpoints ----------------------------------------------------------------


def rotate_secret(user, secret):
    """Sign with `secret` from now on; for 24 hours the old one signs as well."""
    user.webhook_old_secret = user.webhook_secret
    user.webhook_old_secret_until = utcnow() + timedelta(hours=OLD_SECRET_HOURS)
    user.webhook_secret = seal(secret)


def set_url(user, url):
    """Point the user's webhook at `url` (checked before; None for nowhere), its circuit closed."""
    user.webhook_url = url
    user.webhook_failures = 0
    user.webhook_open_until = None
    user.webhook_disabled_at = None
    if user.id:
        _move(user, utcnow(), Delivery.last_result == "circuit_open")


# --- making deliveries --------------------------------------------------------------------


def queue(message, user):
    """The Delivery of a stored message, stored with it in the caller's transaction.

    It is leased to the caller, who commits and then calls deliver(): a crash before that leaves
    it due once the lease has run out. While the endpoint is disabled it is made `dead`, to be
    seen and redelivered; while its circuit is open it is left to the worker.
    """
    now = utcnow()
    delivery = _new(user, webhooks.payload(message), message.id)
    if user.webhook_disabled_at:
        delivery.state, delivery.last_result, delivery.next_attempt_at = "dead", "disabled", None
    elif user.webhook_open_until and user.webhook_open_until > now:
        delivery.last_result, delivery.next_attempt_at = "circuit_open", user.webhook_open_until
    else:
        _lease(delivery, now)
    store(delivery)
    return delivery


def send_test(user):
    """Send the user's endpoint a `test` event now; the Delivery, with its outcome."""

    def add():
        delivery = _new(user, b'{"event":"test","data":{}}')
        _lease(delivery, utcnow())
        store(delivery)
        return delivery

    delivery = transact(add)
    deliver(delivery, "test")
    delivery = db.session.get(Delivery, delivery.id)
    release()
    return delivery


def redeliver_failed(user, seconds):
    """Make the user's dead OTP deliveries due again; tries them for so long, the worker the rest.

    Gives a Counter of the states they are in then.
    """
    dead = (
        (Delivery.user_id == user.id)
        & (Delivery.state == "dead")
        & Delivery.message_id.is_not(None)
    )
    ids = db.session.scalars(select(Delivery.id).where(dead).order_by(Delivery.id)).all()
    again = {"state": "pending", "attempts": 0, "next_attempt_at": utcnow()}
    transact(
        lambda: db.session.execute(
            update(Delivery).where(dead).values(again).execution_options(synchronize_session=False)
        )
    )
    give_up, states = time.monotonic() + seconds, Counter()
    for id in ids:
        if time.monotonic() < give_up and transact(lambda id=id: claim(id, due(utcnow()))):
            states[deliver(db.session.get(Delivery, id), "redelivery")] += 1
        else:
            states["pending"] += 1
    return states


def redeliver(delivery_id):
    """Try a delivery again now, with a fresh schedule; its state, None if it is being tried."""
    if transact(lambda: claim(delivery_id, Delivery.id == delivery_id, attempts=0)):
        return deliver(db.session.get(Delivery, delivery_id), "redelivery")
    return None


def claim(delivery_id, *conditions, **values):
    """Lease the delivery to this caller if nobody holds it; whether that worked.

    One conditional UPDATE: of several who try, one wins.
    """
    now = utcnow()
    lease = {"lease": secrets.token_hex(16), "leased_until": now + _lease_time()}
    claimed = db.session.execute(
        update(Delivery)
        .where(Delivery.id == delivery_id, _free(now), *conditions)
        .values(lease | values)
        .execution_options(synchronize_session=False)
    )
    if claimed.rowcount != 1:
        return False
    db.session.get(Delivery, delivery_id, populate_existing=True)
    return True


def _new(user, body, message_id=None):
    now = utcnow()
    return Delivery(
        webhook_id=f"msg_{secrets.token_urlsafe(18)}",
        user_id=user.id,
        message_id=message_id,
        body=body,
        state="pending",
        attempts=0,
        next_attempt_at=now,
        created_at=now,
    )


def _lease(delivery, now):
    delivery.lease, delivery.leased_until = secrets.token_hex(16), now + _lease_time()


def _lease_time():
    return timedelta(seconds=current_app.config["WEBHOOK_TIMEOUT"] + LEASE_SLACK)


def _free(now):
    return or_(Delivery.leased_until.is_(None), Delivery.leased_until <= now)


# --- one try ------------------------------------------------------------------------------


def deliver(delivery, trigger, user=None):
    """Try a delivery that is leased to the caller once; its state afterwards. Never raises.

    `trigger` (ingest, worker, redelivery, test) goes into the log of attempts. `user` is its
    user where the caller has just read that. No transaction is open while the receiver is
    called; the outcome is written only under the lease.
    """
    try:
        user = user or db.session.get(User, delivery.user_id, populate_existing=True)
        with _slot(user) as free:
            record, _ = _try(delivery, trigger, user, free)
        [state] = transact(lambda: _write(user, [record]))
        return state
    except Exception:
        event(log, "webhook_failed", logging.ERROR, exc_info=True, delivery_id=delivery.id)
        db.session.rollback()
        return "pending"


def deliver_batch(deliveries, stop, on_done):
    """Try deliveries of one user, as deliver() does each; those that arrive are recorded together.

    That is a commit for all of them instead of one each. The first that does not arrive at once,
    or `stop`, ends it: the others are given back, for whoever is free.
    """
    left, records, started, arrived = list(deliveries), [], time.monotonic(), True
    try:
        user = db.session.get(User, left[0].user_id, populate_existing=True)
        with _slot(user) as free:
            while left and arrived and time.monotonic() - started < BATCH_SECONDS:
                record, arrived = _try(left.pop(0), "worker", user, free)
                records.append(record)
                arrived = arrived and not stop.is_set()
        for state in transact(lambda: _write(user, records, left)):
            on_done(state)
    except Exception:
        event(log, "webhook_failed", logging.ERROR, exc_info=True, user_id=deliveries[0].user_id)
        db.session.rollback()


def _write(user, records, left=()):
    """Run `records` and give `left` back, in one transaction; the states that came of it."""
    if left:
        db.session.execute(
            update(Delivery)
            .where(Delivery.id.in_([row.id for row in left]), Delivery.lease == left[0].lease)
            .values(lease=None, leased_until=None)
            .execution_options(synchronize_session=False)
        )
    written = [record() for record in records]
    if arrived := sum(new for _, new in written):
        count(user.id, utcnow(), webhooks_delivered=arrived)
    return [state for state, _ in written]


def _slot(user):
    slots = current_app.extensions["delivery"]["slots"]
    return slots.take(user.id, 1 if user.webhook_failures else SLOTS)


def _try(delivery, trigger, user, free):
    """(what records the outcome of a try and gives (state, whether to count it), if it arrived)."""
    lease = delivery.lease
    heed_circuit = trigger in ("ingest", "worker")
    # A person waits for a test event; how many they send is bounded by who lets them
    if trigger != "test" and (reason := _not_now(user, free, heed_circuit)):
        return lambda: _put_off(delivery.id, lease, user, reason), False
    release()
    started_at, started = utcnow(), time.monotonic()
    outcome = _post(user, delivery)
    ms = round((time.monotonic() - started) * 1000)
    event(log, "webhook_tried", delivery_id=delivery.id, user_id=user.id, trigger=trigger,
          result=outcome.result, ms=ms)  # fmt: skip
    attempt = {"trigger": trigger, "started_at": started_at, "ms": ms}
    return lambda: _record(delivery, lease, user, outcome, attempt), outcome.delivered


class _Outcome:
    """What came of a try: a status or a word, and what the receiver said of it."""

    def __init__(self, result, answer=None, retry_after=None):
        self.result = result
        self.answer = answer
        self.retry_after = retry_after
        self.delivered = len(result) == 3 and result.startswith("2")
        self.gone = result == "410"


def _not_now(user, free, heed_circuit):
    """Why this delivery has to wait: no slot, or an open circuit that is not ours to probe."""
    if not free:
        return "busy"
    if not user.webhook_open_until or not heed_circuit:
        return None
    now = utcnow()
    if user.webhook_open_until > now:
        return "circuit_open"

    def probe():
        # Half-open: of all who come now, one tries; it holds the circuit open meanwhile
        return db.session.execute(
            update(User)
            .where(User.id == user.id, User.webhook_open_until == user.webhook_open_until)
            .values(webhook_open_until=now + _lease_time())
            .execution_options(synchronize_session=False)
        ).rowcount

    return None if transact(probe) else "circuit_open"


def _put_off(delivery_id, lease, user, reason):
    """Give the lease back untried; no attempt is counted."""
    soon = utcnow() + timedelta(seconds=1)
    later = max(user.webhook_open_until or soon, soon) if reason == "circuit_open" else soon
    _finish(delivery_id, lease, last_result=reason, next_attempt_at=later)
    return "pending", False


def _post(user, delivery):
    if user.webhook_disabled_at:
        return _Outcome("disabled")
    if not user.webhook_url:
        return _Outcome("no_url")
    timestamp = int(time.time())
    try:
        guard.check_form(user.webhook_url)
        signatures = [
            webhooks.sign(secret, delivery.webhook_id, timestamp, delivery.body)
            for secret in _secrets(user)
        ]
        answer = outbound.call(
            current_app.extensions["delivery"]["session"],
            "POST",
            user.webhook_url,
            seconds=current_app.config["WEBHOOK_TIMEOUT"],
            limit=ANSWER_BYTES,
            may_dial=guard.may_dial,
            data=delivery.body,
            headers={
                "Content-Type": "application/json",
                "webhook-id": delivery.webhook_id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": " ".join(signatures),
            },
        )
    except Unreadable:
        return _Outcome("secret_unreadable")
    except guard.ForbiddenUrl:
        return _Outcome("forbidden")
    except outbound.CallFailed as e:
        return _Outcome(e.kind)
    return _Outcome(
        str(answer.status),
        answer.body.decode("utf-8", "replace")[:KEPT_CHARACTERS].replace("\0", "\ufffd"),
        answer.headers.get("Retry-After"),
    )


def _secrets(user):
    yield unseal(user.webhook_secret)
    if user.webhook_old_secret and user.webhook_old_secret_until > utcnow():
        with contextlib.suppress(Unreadable):
            yield unseal(user.webhook_old_secret)


def _record(row, lease, user, outcome, attempt):
    """The attempt, the delivery's new state and the endpoint's circuit, in one transaction.

    `row` is as it was when it was leased: nobody else may have changed it while the lease holds.
    """
    now = utcnow()
    was_delivered, attempts = row.state == "delivered", row.attempts + 1
    changes = {"attempts": attempts, "last_result": outcome.result, "next_attempt_at": None}
    if outcome.delivered:
        changes |= {"state": "delivered", "delivered_at": row.delivered_at or now}
    elif was_delivered:
        pass  # a redelivery that failed: delivered it was all the same
    elif (
        outcome.gone
        or outcome.result in ("disabled", "no_url")
        or attempts > len(RETRY_SECONDS)
        or row.message_id is None
    ):
        changes |= {"state": "dead"}
    else:
        changes |= {"state": "pending", "next_attempt_at": now + _delay(attempts, outcome)}
    if not _finish(row.id, lease, **changes):
        # The lease ran out and somebody else has taken over
        return db.session.get(Delivery, row.id, populate_existing=True).state, False
    next_at = changes["next_attempt_at"]
    told = {"result": outcome.result, "answer": outcome.answer, "next_attempt_at": next_at}
    execute(_ATTEMPT, attempt | told | {"delivery_id": row.id})
    _judge_endpoint(user, outcome, now)
    new = outcome.delivered and not was_delivered and row.message_id is not None
    return changes.get("state", row.state), new


def _finish(delivery_id, lease, **changes):
    """Write the outcome and end the lease, if it is still this caller's."""
    held = {"held_id": delivery_id, "held_lease": lease}
    finished = execute(_FINISH, changes | {"lease": None, "leased_until": None} | held)
    return finished.rowcount == 1


def _delay(attempts, outcome):
    seconds = RETRY_SECONDS[attempts - 1] * random.uniform(1 - JITTER, 1 + JITTER)
    return timedelta(seconds=max(seconds, min(_retry_after(outcome), MAX_RETRY_AFTER)))


def _retry_after(outcome):
    """Seconds in a Retry-After header (RFC 9110, 10.2.3): a number or a date; else 0."""
    value = (outcome.retry_after or "").strip()
    if value.isascii() and value.isdecimal():
        return int(value[:9])
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0, (date - datetime.now(UTC)).total_seconds())


def _judge_endpoint(user, outcome, now):
    """Close the endpoint's circuit, or count the failure and open it."""
    if outcome.result in ("disabled", "no_url"):
        return
    if outcome.delivered and not user.webhook_failures and not user.webhook_open_until:
        return  # as it nearly always is
    mine = update(User).where(User.id == user.id, User.webhook_url == user.webhook_url)
    mine = mine.execution_options(synchronize_session=False)
    if outcome.delivered:
        db.session.execute(mine.values(webhook_failures=0, webhook_open_until=None))
        # What waited for the circuit goes now
        _move(user, now, Delivery.last_result == "circuit_open")
        return
    # Counted before it is read: the others who fail now wait for this row, and see it
    if not db.session.execute(mine.values(webhook_failures=User.webhook_failures + 1)).rowcount:
        return
    failures = db.session.scalar(select(User.webhook_failures).where(User.id == user.id))
    if outcome.gone:
        db.session.execute(mine.values(webhook_disabled_at=now))
        event(log, "webhook_disabled", logging.WARNING, user_id=user.id)
    elif failures >= CIRCUIT_FAILURES:
        seconds = CIRCUIT_SECONDS * 2 ** min(failures - CIRCUIT_FAILURES, 10)
        until = now + timedelta(seconds=min(seconds, MAX_CIRCUIT_SECONDS))
        db.session.execute(mine.values(webhook_open_until=until))
        _move(user, until, Delivery.next_attempt_at < until, Delivery.attempts == 0)
        event(log, "webhook_circuit_open", logging.WARNING, user_id=user.id, failures=failures)


def _move(user, to, *conditions):
    db.session.execute(
        update(Delivery)
        .where(Delivery.user_id == user.id, Delivery.state == "pending", *conditions)
        .values(next_attempt_at=to)
        .execution_options(synchronize_session=False)
    )


# --- the worker ---------------------------------------------------------------------------


def due(now):
    """The condition of a delivery that somebody should try now."""
    return (Delivery.state == "pending") & (Delivery.next_attempt_at <= now) & _free(now)


def due_count(late=timedelta(0)):
    """How many deliveries have been due for `late`."""
    then = utcnow() - late
    condition = due(then)
    return db.session.scalar(select(func.count()).select_from(Delivery).where(condition))


def claim_due(limit=BATCH):
    """Due deliveries of one user, leased to the caller; none when nothing is due.

    Of one user, so that a slow receiver keeps nobody else's waiting.
    """
    while True:
        # Whose endpoint has no slot free in this process is left to those who hold them
        full = current_app.extensions["delivery"]["slots"].full(SLOTS)
        due_now = due(utcnow()) & Delivery.user_id.not_in(full)
        oldest = (
            select(Delivery.user_id).where(due_now).order_by(Delivery.next_attempt_at).limit(16)
        )
        users = db.session.scalars(oldest).all()
        release()
        if not users:
            return []
        # At random among the oldest, so that workers seldom want the same ones
        wanted = due_now & (Delivery.user_id == random.choice(users))
        if claimed := transact(lambda: _claim(wanted, limit)):  # noqa: B023
            return claimed


def _claim(wanted, limit):
    lease = {"lease": secrets.token_hex(16), "leased_until": utcnow() + _lease_time()}
    oldest = select(Delivery.id).where(wanted).order_by(Delivery.next_attempt_at).limit(limit)
    ids = db.session.scalars(oldest).all()
    db.session.execute(
        update(Delivery)
        .where(Delivery.id.in_(ids), wanted)
        .values(lease)
        .execution_options(synchronize_session=False)
    )
    mine = select(Delivery).where(Delivery.id.in_(ids), Delivery.lease == lease["lease"])
    return db.session.scalars(mine.execution_options(populate_existing=True)).all()


def work(stop, watch, threads=8, poll_seconds=0.5, on_done=lambda state: None):
    """Deliver what is due in `threads` threads until `stop` is set; unless `watch`, until none is.

    What is being tried when `stop` is set is finished. `on_done(state)` is called after each.
    """
    app = current_app._get_current_object()

    def run():
        while not stop.is_set():
            with app.app_context():
                try:
                    if batch := claim_due():
                        deliver_batch(batch, stop, on_done)
                        continue
                except Exception:
                    event(log, "worker_failed", logging.ERROR, exc_info=True)
                    if not watch:
                        return
            if not watch:
                return
            stop.wait(poll_seconds * random.uniform(0.8, 1.2))

    pool = [threading.Thread(target=run, name=f"deliver-{n}") for n in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
