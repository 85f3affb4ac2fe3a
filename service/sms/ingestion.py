"""Ingesting an SMS: duplicates, the holder of its number, its code, and its webhook."""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import selectinload

from service.database import models
from service.database.columns import utcnow
from service.database.writing import Transaction, transact
from service.keys import sha256
from service.logs import event
from service.sms import otp
from service.sms.incoming import Sms
from service.waiting import waiters
from service.webhooks import queue
from service.webhooks.delivery import deliver

DUPLICATE_WINDOW = timedelta(minutes=10)

_HOLDING = (
    select(models.PhoneNumber, models.User)
    .join(models.User, models.User.id == models.PhoneNumber.user_id)
    .where(
        models.PhoneNumber.digits == bindparam("digits"),
        models.PhoneNumber.state == models.NumberState.ASSIGNED,
        models.PhoneNumber.assigned_at <= bindparam("at"),
    )
    .order_by(models.PhoneNumber.assigned_at.desc(), models.PhoneNumber.id.desc())
    .limit(1)
)


class _Stored(NamedTuple):
    """The message as just stored, or the earlier one that the SMS duplicates."""

    message: models.Message
    is_duplicate: bool
    webhook: str  # the state of its delivery, or NO_WEBHOOK
    delivery: models.Delivery | None = None
    user: models.User | None = None


def ingest(sms: Sms, provider: str, source: str) -> dict[str, Any]:
    """Store `sms`, tell who waits for it, then deliver its webhook; returns the answer's `data`.

    `provider` is the name that users see; `source` keeps the message ids of gateways apart. The
    SMS and its delivery are committed together before the receiver is called.
    """
    stored = _store_once(sms, provider, source)
    message, webhook = stored.message, stored.webhook
    waiters().tell(message.user_id, message.id, message.digits)
    event(
        "sms_duplicate" if stored.is_duplicate else "sms_stored", message_id=message.id,
        user_id=message.user_id, provider=provider, otp=message.otp_code is not None,
    )  # fmt: skip
    if stored.delivery and stored.delivery.lease:
        webhook = deliver(stored.delivery, models.Trigger.INGEST, stored.user)
    return {
        "id": message.id,
        "matched": message.phone_number_id is not None,
        "duplicate": stored.is_duplicate,
        "otp_code": message.otp_code,
        # A dead delivery is not attempted again automatically
        "webhook": models.NO_WEBHOOK if webhook == models.DeliveryState.DEAD else webhook,
    }


def _store_once(sms: Sms, provider: str, source: str) -> _Stored:
    """The SMS, stored now or earlier. The unique key decides which duplicate is first: looking for
    duplicates before storing would cost every SMS a query."""
    id = sms.message_id
    key = sha256("id", source, id) if id else sha256("text", sms.digits, sms.sms_text)
    while True:
        try:
            return transact(_store, sms, provider, key)
        except IntegrityError:
            if first := transact(_find_first, sms, key):
                return first


def _store(tx: Transaction, sms: Sms, provider: str, key: str) -> _Stored:
    """Store the SMS and its delivery; raises IntegrityError if it is a duplicate."""
    now = utcnow()
    found = otp.Found(sms.otp_code, "given") if sms.otp_code else otp.extract(sms.sms_text)
    received_at = min(sms.received_at or now, now)
    number, user = _holder(tx, sms.digits, min(_end_of_moment(received_at), now))
    if number and not number.first_sms_at:
        number.first_sms_at = received_at
    message = models.Message(
        user_id=number and number.user_id,
        phone_number_id=number and number.id,
        provider=provider,
        digits=sms.digits,
        sms_text=sms.sms_text,
        otp_code=found and found.code,
        otp_rule=found and found.rule,
        dedupe_key=key,
        received_at=received_at,
        created_at=now,
    )
    tx.store(message)
    has_code, delivery = message.otp_code is not None, None
    if user and has_code and user.webhook_url:
        delivery = queue.add(tx, message, user)
    if user:
        tx.count(user.id, now, sms=1, otps=int(has_code))
    else:
        tx.count(None, now, sms=1, otps=int(has_code), unmatched=1)
    webhook = delivery.state if delivery else models.NO_WEBHOOK
    return _Stored(message, False, webhook, delivery, user)


def _find_first(tx: Transaction, sms: Sms, key: str) -> _Stored | None:
    """The message that `sms` duplicates; None if the duplicate window (of an SMS without an id) has
    passed: then the earlier message gives up its key."""
    query = select(models.Message).where(models.Message.dedupe_key == key)
    first = tx.session.scalar(query.options(selectinload(models.Message.deliveries)))
    if first is None:
        return None
    if not sms.message_id and first.created_at <= utcnow() - DUPLICATE_WINDOW:
        first.dedupe_key = None
        return None
    return _Stored(first, True, first.webhook)


def _holder(
    tx: Transaction, digits: str, at: datetime
) -> tuple[models.PhoneNumber, models.User] | tuple[None, None]:
    """The assignment of the number that was in force at the time `at`, and its user."""
    row = tx.session.execute(_HOLDING, {"digits": digits, "at": at}).first()
    return (row[0], row[1]) if row else (None, None)


def _end_of_moment(time: datetime) -> datetime:
    """A time in whole seconds, as SMS centres send it, may be anywhere in that second, so a number
    assigned during that second counts as already assigned."""
    return time if time.microsecond else time + timedelta(seconds=1, microseconds=-1)
