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
# The condition of a webhook that was given up because its endpoint is disabled
_IS_GIVEN_UP = (
    (Delivery.state == DeliveryState.DEAD)
    & (Delivery.last_result == Reason.DISABLED)
    & Delivery.message_id.is_not(None)
)


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


def waits_for_resuming(user: User) -> ColumnElement[bool]:
    """The condition of a delivery that is sent when the user's endpoint is resumed: it waits, or
    was given up because the endpoint is disabled."""
    # The states by themselves, for the index
    states = Delivery.state.in_((DeliveryState.PENDING, DeliveryState.DEAD))
    is_own = (Delivery.user_id == user.id) & states
    return is_own & (queue.is_due(utcnow()) | _IS_GIVEN_UP)


def resume(tx: Transaction, user: User) -> None:
    """Send again to the endpoint of a user of `tx`: close its circuit, and make due what was given
    up because it is disabled."""
    now = utcnow()
    set_url(tx, user, user.webhook_url)
    given_up = update(Delivery).where(Delivery.user_id == user.id, _IS_GIVEN_UP, queue.is_free(now))
    tx.execute(given_up.values(state=DeliveryState.PENDING, next_attempt_at=now))


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


def next_attempt(delivery: Delivery, user: User) -> datetime | None:
    """When the worker may try a user's delivery next: it is due then, and the circuit not open."""
    due, open_until = delivery.next_attempt_at, user.webhook_open_until
    return max(due, open_until) if due and open_until else due


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
    return Change("webhook_circuit_open", failures)
