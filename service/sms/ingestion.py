"""Ingesting an SMS: duplicates, the holder of its number, its code, and its webhook."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import selectinload

from service.database import models
from service.database.columns import utcnow
from service.database.writing import Transaction, is_duplicate_key, transact
from service.keys import sha256
from service.logs import event
from service.sms import otp, ownership
from service.sms.incoming import Sms
from service.sms.providers import Source
from service.waiting import waiters
from service.webhooks import queue
from service.webhooks.delivery import deliver

# How long before the end of the gateway's patience the receiver must have answered
MARGIN_SECONDS = 0.5
DUPLICATE_WINDOW = timedelta(minutes=10)

Claim = Callable[[Transaction], None]


def _nothing(_tx: Transaction) -> None:
    """The claim of an SMS that is made of nothing stored."""


class _Owner(NamedTuple):
    """Whose an SMS is: an assignment and its user, or why nobody's; and the SMS's dedupe key."""

    number: models.PhoneNumber | None
    user: models.User | None
    unmatched: models.Unmatched | None
    key: str


class _Stored(NamedTuple):
    """The message as just stored, or the earlier one that the SMS duplicates."""

    message: models.Message
    is_duplicate: bool
    webhook: str  # the state of its delivery, or NO_WEBHOOK
    delivery: models.Delivery | None = None
    user: models.User | None = None


def ingest(
    sms: Sms, source: Source, claim: Claim = _nothing, by_worker: bool = False
) -> dict[str, Any]:
    """Store `sms`, tell who waits for it, and deliver its webhook, or leave that to the worker.

    Returns the answer's `data`.

    The SMS and its delivery are committed together before the receiver is called. `claim(tx)` takes
    what the SMS is made of in the same transaction; what it raises undoes all of it.
    """
    started = time.monotonic()
    stored = _store_once(sms, source, claim)
    message, webhook = stored.message, stored.webhook
    waiters().tell(message.user_id, message.id, message.digits)
    event(
        "sms_duplicate" if stored.is_duplicate else "sms_stored", message_id=message.id,
        user_id=message.user_id, provider=message.provider, otp=message.otp_code is not None,
        unmatched=message.unmatched,
    )  # fmt: skip
    if by_worker and stored.delivery:
        transact(queue.give_back, [stored.delivery])
    elif stored.delivery and stored.delivery.lease:
        seconds = source.gateway.patience - MARGIN_SECONDS - (time.monotonic() - started)
        webhook = deliver(stored.delivery, models.Trigger.INGEST, stored.user, seconds)
    return {
        "id": message.id,
        "matched": message.phone_number_id is not None,
        "duplicate": stored.is_duplicate,
        "otp_code": message.otp_code,
        # A dead delivery is not attempted again automatically
        "webhook": models.NO_WEBHOOK if webhook == models.DeliveryState.DEAD else webhook,
    }


def is_stored(sms: Sms, source: Source) -> bool:
    """Whether the same SMS has been stored before."""
    return transact(_find_first, sms, source, _nothing) is not None


def _store_once(sms: Sms, source: Source, claim: Claim) -> _Stored:
    """The SMS, stored now or earlier. The unique key decides which duplicate is first: looking for
    duplicates before storing would cost every SMS a query."""
    while True:
        try:
            return transact(_store, sms, source, claim)
        except IntegrityError as e:
            if not is_duplicate_key(e):
                raise
            if first := transact(_find_first, sms, source, claim):
                return first


def _store(tx: Transaction, sms: Sms, source: Source, claim: Claim) -> _Stored:
    """Store the SMS and its delivery; raises IntegrityError if it is a duplicate."""
    claim(tx)
    now = utcnow()
    found = otp.Found(sms.otp_code, "given") if sms.otp_code else otp.extract(sms.sms_text)
    received_at = min(sms.received_at or now, now)
    number, user, unmatched, key = _owner(tx, sms, source)
    if number and not number.first_sms_at:
        number.first_sms_at = received_at
    message = models.Message(
        user_id=number and number.user_id,
        phone_number_id=number and number.id,
        unmatched=unmatched,
        provider=source.name_of(sms),
        digits=sms.digits,
        sender=sms.sender,
        sms_text=sms.sms_text,
        otp_code=found and found.code,
        otp_rule=found and found.rule,
        dedupe_key=key,
        received_at=received_at,
        created_at=now,
    )
    tx.store(message)
    has_code = message.otp_code is not None
    delivery = queue.add_otp(tx, message, user) if user else None
    if user:
        tx.count(user.id, now, sms=1, otps=int(has_code))
    else:
        tx.count(None, now, sms=1, otps=int(has_code), unmatched=1)
    webhook = delivery.state if delivery else models.NO_WEBHOOK
    return _Stored(message, False, webhook, delivery, user)


def _find_first(tx: Transaction, sms: Sms, source: Source, claim: Claim) -> _Stored | None:
    """The message that `sms` duplicates; None if the duplicate window (of an SMS without an id) has
    passed: then the earlier message gives up its key."""
    key = _owner(tx, sms, source).key
    query = select(models.Message).where(models.Message.dedupe_key == key)
    first = tx.session.scalar(query.options(selectinload(models.Message.deliveries)))
    if first is None:
        return None
    if not sms.message_id and first.created_at <= utcnow() - DUPLICATE_WINDOW:
        first.dedupe_key = None
        return None
    claim(tx)
    return _Stored(first, True, first.webhook)


def _owner(tx: Transaction, sms: Sms, source: Source) -> _Owner:
    """Whose the SMS is, and its dedupe key.

    The same id with another number or text is another SMS: ids start again when a phone is set up
    anew. Without an id, the same text under a new assignment of the number is another SMS.
    """
    number, user, unmatched = ownership.holder_of(tx, sms, source.is_main_server)
    if sms.message_id:
        key = sha256("id", source.id, sms.message_id, sms.digits, sms.sms_text)
    else:
        assignment = str(number.id) if number else ""
        key = sha256("text", source.id, sms.digits, sms.sms_text, assignment)
    return _Owner(number, user, unmatched, key)
