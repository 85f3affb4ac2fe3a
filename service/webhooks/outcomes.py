"""What became of attempts: recorded in one transaction for all that end at the same moment."""

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from flask import Flask, current_app
from sqlalchemy import bindparam, insert, update

from service.database.columns import utcnow
from service.database.group_commit import GroupCommit
from service.database.models import Attempt as AttemptRow
from service.database.models import Delivery, DeliveryState, User
from service.database.writing import Transaction
from service.logs import event
from service.webhooks import endpoint
from service.webhooks.attempt import Attempt, PutOff

# Seconds from each failed attempt to the next; front-loaded, since OTPs age
RETRY_SECONDS = (5, 15, 45, 120, 300, 900, 3600, 21600, 86400)
JITTER = 0.2
MAX_RETRY_AFTER = 3600

# Compiled once, without the ORM: the statements of every webhook
_ATTEMPT, _DELIVERIES = insert(AttemptRow.table()), Delivery.table()
_FINISH_ONE = update(_DELIVERIES).where(
    _DELIVERIES.c.id == bindparam("held_id"), _DELIVERIES.c.lease == bindparam("held_lease")
)
# A lease is of one claim: a row under another one of the group was tried by this process as well
_FINISH = update(_DELIVERIES).where(
    _DELIVERIES.c.id.in_(bindparam("held_ids", expanding=True)),
    _DELIVERIES.c.lease.in_(bindparam("held_leases", expanding=True)),
)


class Tried(NamedTuple):
    """A delivery with its user, the lease it was claimed under, since a retried transaction may
    reload the row, and what came of it."""

    user: User
    delivery: Delivery
    lease: str
    outcome: Attempt | PutOff

    @property
    def is_success(self) -> bool:
        return isinstance(self.outcome, Attempt) and self.outcome.result.is_success

    @property
    def is_usual(self) -> bool:
        """Whether it says nothing new of the endpoint, whose user would have to be locked."""
        is_well = not self.user.webhook_failures and not self.user.webhook_open_until
        return isinstance(self.outcome, PutOff) or (self.is_success and is_well)

    @property
    def is_arrival(self) -> bool:
        """Whether it is the first successful delivery of an SMS's webhook."""
        was_delivered = self.delivery.state == DeliveryState.DELIVERED
        return self.is_success and not was_delivered and self.delivery.message_id is not None


class _Recorded(NamedTuple):
    """The delivery's state, and how the endpoint changed."""

    state: DeliveryState
    change: endpoint.Change | None = None


class _LeaseLost(Exception):
    """Somebody else took over one of the deliveries that were to be recorded together."""


def init_app(app: Flask) -> None:
    app.extensions["outcomes"] = GroupCommit[Tried, _Recorded](_write)


def record(tried: Sequence[Tried]) -> list[DeliveryState]:
    """Record the outcomes of one user, as far as the leases are still the caller's; returns the
    states of the deliveries then. What cannot be recorded is logged, and stays leased."""
    outcomes: GroupCommit[Tried, _Recorded] = current_app.extensions["outcomes"]
    # Users are locked alone, so that nobody waits for another user's lock
    commit = outcomes.commit if all(row.is_usual for row in tried) else outcomes.commit_apart
    ids = [(row.delivery.id, row.user.id) for row in tried]  # as they are before any rollback
    states, failed = list[DeliveryState](), dict[Exception, int]()
    for (delivery_id, user_id), recorded in zip(ids, commit(tried), strict=True):
        if isinstance(recorded, Exception):
            failed.setdefault(recorded, delivery_id)
            states.append(DeliveryState.PENDING)
            continue
        states.append(recorded.state)
        if change := recorded.change:
            event(change.event, logging.WARNING, user_id=user_id, failures=change.failures)
    for error, delivery_id in failed.items():
        event("webhook_failed", logging.ERROR, exc_info=error, delivery_id=delivery_id)
    return states


def _write(tx: Transaction, tried: Sequence[Tried]) -> list[_Recorded]:
    """The attempts, the deliveries' new states, the endpoints' circuits, and the counts.

    The rows are unchanged since they were leased: nobody else changes one while the lease is held.
    """
    now = utcnow()
    changes = [_changes(row.delivery, row.outcome, now) for row in tried]
    if not _finish(tx, tried, changes):
        current = tx.session.get_one(Delivery, tried[0].delivery.id, populate_existing=True)
        return [_Recorded(DeliveryState(current.state))]
    attempts = [
        _row(row.delivery, row.outcome, changed["next_attempt_at"])
        for row, changed in zip(tried, changes, strict=True)
        if isinstance(row.outcome, Attempt)
    ]
    if attempts:
        tx.execute(_ATTEMPT, attempts if len(attempts) > 1 else attempts[0])
    happened = _judge(tx, tried, now)
    tx.count_delivered(Counter(row.user.id for row in tried if row.is_arrival), now)
    return [
        _Recorded(
            DeliveryState(changed.get("state", row.delivery.state)), happened.get(row.delivery.id)
        )
        for row, changed in zip(tried, changes, strict=True)
    ]


def _judge(tx: Transaction, tried: Sequence[Tried], now: datetime) -> dict[int, endpoint.Change]:
    """What the attempts say of their endpoint, by delivery; of several successes, one says what
    there is to say. A group of several users' has nothing but usual ones."""
    judged = {row.is_success: row for row in tried if isinstance(row.outcome, Attempt)}
    happened = {}
    for row in judged.values():
        assert isinstance(row.outcome, Attempt)
        if change := endpoint.judge(tx, row.user, row.outcome, now):
            happened[row.delivery.id] = change
    return happened


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


def _finish(tx: Transaction, tried: Sequence[Tried], changes: Sequence[dict[str, Any]]) -> bool:
    """Write the changes and end the leases, if they are still the callers'; raises _LeaseLost if
    only some are. Those with the same outcome are written by one statement."""
    alike = defaultdict[tuple[Any, ...], list[Tried]](list)
    for row, changed in zip(tried, changes, strict=True):
        alike[tuple(changed.items())].append(row)
    ended = 0
    for items, rows in alike.items():
        values = dict(items) | {"lease": None, "leased_until": None}
        if len(rows) == 1:  # a list would cost it more
            values |= {"held_id": rows[0].delivery.id, "held_lease": rows[0].lease}
            ended += tx.execute(_FINISH_ONE, values).rowcount
        else:
            values["held_ids"] = [row.delivery.id for row in rows]
            values["held_leases"] = list({row.lease for row in rows})
            ended += tx.execute(_FINISH, values).rowcount
    if ended < len(tried) > 1:
        raise _LeaseLost
    return ended == len(tried)


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
