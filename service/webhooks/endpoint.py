"""A user's webhook endpoint: its URL, its signing secrets, its circuit breaker."""

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, select, update

from service import audit
from service.database.columns import utcnow
from service.database.models import Delivery, DeliveryState, Reason, User
from service.database.writing import Transaction
from service.keys import Unreadable, seal, unseal
from service.webhooks import queue
from service.webhooks.attempt import Attempt

OLD_SECRET_HOURS = 24
# How many consecutive failures open an endpoint's circuit, and for how many seconds
CIRCUIT_FAILURES = 5
CIRCUIT_SECONDS = 30
MAX_CIRCUIT_SECONDS = 900


def needs_saving(user: User, url: str | None) -> bool:
    """Whether `url` differs from the current one, or the endpoint is disabled."""
    return user.webhook_url != url or user.webhook_disabled_at is not None


def set_url(tx: Transaction, user: User, url: str | None) -> None:
    """Set the webhook URL (checked before; None for none) of a user of `tx`; close its circuit."""
    audit.record(tx, "webhook_url_set", user.id, host=url and urlsplit(url).hostname)
    user.webhook_url = url
    user.webhook_failures = 0
    user.webhook_open_until = None
    user.webhook_disabled_at = None
    queue.reschedule(tx, user.id, utcnow(), Delivery.last_result == Reason.CIRCUIT_OPEN)


def waits_for_resuming(user: User) -> ColumnElement[bool]:
    """The condition of a delivery that waits for the user's endpoint to be resumed, or was given up
    because it is disabled."""
    waits = (Delivery.state == DeliveryState.PENDING) & (
        Delivery.last_result == Reason.CIRCUIT_OPEN
    )
    is_given_up = (Delivery.state == DeliveryState.DEAD) & (Delivery.last_result == Reason.DISABLED)
    return (Delivery.user_id == user.id) & (
        waits | (is_given_up & Delivery.message_id.is_not(None))
    )


def resume(tx: Transaction, user: User) -> int:
    """Send again to the endpoint of a user of `tx`: close its circuit, and make due what waits for
    that; returns how many deliveries."""
    waiting, now = waits_for_resuming(user), utcnow()
    set_url(tx, user, user.webhook_url)
    due = {"state": DeliveryState.PENDING, "next_attempt_at": now}
    return tx.execute(update(Delivery).where(waiting, queue.is_free(now)).values(due)).rowcount


def rotate_secret(tx: Transaction, user_id: int, secret: str) -> None:
    """Sign with `secret` from now on; for 24 hours the old one signs as well."""
    user = tx.lock_user(user_id)
    audit.record(tx, "secret_rotated", user_id)
    user.webhook_old_secret = user.webhook_secret
    user.webhook_old_secret_until = utcnow() + timedelta(hours=OLD_SECRET_HOURS)
    user.webhook_secret = seal(secret)


def signing_secrets(user: User) -> Iterator[str]:
    """The secrets that sign now; raises Unreadable."""
    yield unseal(user.webhook_secret)
    until = user.webhook_old_secret_until
    if user.webhook_old_secret and until and until > utcnow():
        with contextlib.suppress(Unreadable):
            yield unseal(user.webhook_old_secret)


def claim_probe(tx: Transaction, user_id: int, seen: datetime, now: datetime) -> bool:
    """Whether this caller, who has `seen` until when the circuit was open, may probe it: one of
    several concurrent callers wins, and the circuit stays open for the others."""
    as_seen = (User.id == user_id) & (User.webhook_open_until == seen)
    probing = update(User).where(as_seen).values(webhook_open_until=now + queue.lease_time())
    return tx.execute(probing).rowcount == 1


def pause_after(failures: int) -> float:
    """For how many seconds an endpoint is left alone after so many consecutive failures."""
    if failures < CIRCUIT_FAILURES:
        return 0
    return min(CIRCUIT_SECONDS * 2.0 ** min(failures - CIRCUIT_FAILURES, 10), MAX_CIRCUIT_SECONDS)


class Change(NamedTuple):
    """How an attempt changed the endpoint, to be logged after the commit."""

    event: str
    failures: int | None = None


def judge(tx: Transaction, user: User, attempt: Attempt, now: datetime) -> Change | None:
    """Close the circuit after a success, else count the failure and perhaps open it."""
    if attempt.result.called_nobody or attempt.is_cut:
        return None
    if attempt.result.is_success and not user.webhook_failures and not user.webhook_open_until:
        return None  # the usual case
    endpoint = update(User).where(User.id == user.id, User.webhook_url == attempt.url)
    if attempt.result.is_success:
        tx.execute(endpoint.values(webhook_failures=0, webhook_open_until=None))
        queue.reschedule(tx, user.id, now, Delivery.last_result == Reason.CIRCUIT_OPEN)
        return None
    # Counted before it is read: others who fail at the same time wait for this row, and see it
    if not tx.execute(endpoint.values(webhook_failures=User.webhook_failures + 1)).rowcount:
        return None  # the URL was replaced meanwhile
    if attempt.result.is_gone:
        tx.execute(endpoint.values(webhook_disabled_at=now))
        return Change("webhook_disabled")
    failures = tx.session.scalar(select(User.webhook_failures).where(User.id == user.id)) or 0
    if not (seconds := pause_after(failures)):
        return None
    until = now + timedelta(seconds=seconds)
    tx.execute(endpoint.values(webhook_open_until=until))
    queue.reschedule(tx, user.id, until, Delivery.next_attempt_at < until, Delivery.attempts == 0)
    return Change("webhook_circuit_open", failures)
