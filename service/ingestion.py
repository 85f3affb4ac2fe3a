"""Taking in an SMS: duplicates, whose it is, its code, and the webhook that it fires."""

import logging
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import selectinload

from service import otp
from service.delivery import deliver, queue
from service.logs import event
from service.models import Message, PhoneNumber, count, db, sha256, store, transact, utcnow

log = logging.getLogger(__name__)
DUPLICATE_WINDOW = timedelta(minutes=10)


def ingest(sms, provider, source):
    """Store `sms`, then deliver its webhook; the answer's `data`.

    `provider` is the name that users see, `source` what tells message ids of one gateway from
    another's. The SMS and its delivery are committed together before the receiver is called.
    """
    if sms.message_id:
        key = sha256("id", source, sms.message_id)
    else:
        key = sha256("text", sms.digits, sms.sms_text)
    state, first = None, None
    while state is None:
        try:
            message, delivery, user = transact(lambda: _store(sms, provider, key))
            state = delivery.state if delivery else "none"
        except IntegrityError:
            if first := transact(lambda: _first(sms, key)):
                message, state = first
    event(
        log, "sms_duplicate" if first else "sms_stored", message_id=message.id,
        user_id=message.user_id, provider=provider, otp=message.otp_code is not None,
    )  # fmt: skip
    if not first and delivery and delivery.lease:
        state = deliver(delivery, "ingest", user)
    return {
        "id": message.id,
        "matched": message.phone_number_id is not None,
        "duplicate": first is not None,
        "otp_code": message.otp_code,
        "webhook": {"delivered": "delivered", "pending": "pending"}.get(state, "none"),
    }


def _store(sms, provider, key):
    """(message, its delivery, its user; or None), in one transaction.

    Raises IntegrityError when it is a duplicate: to look for one first would cost every SMS.
    """
    now = utcnow()
    found = otp.Found(sms.otp_code, "given") if sms.otp_code else otp.extract(sms.sms_text)
    received_at = min(sms.received_at or now, now)
    number, user = PhoneNumber.holding(sms.digits, min(_end_of_moment(received_at), now))
    if number and not number.first_sms_at:
        number.first_sms_at = received_at
    message = Message(
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
    store(message)
    has_code, delivery = message.otp_code is not None, None
    if user and has_code and user.webhook_url:
        delivery = queue(message, user)
    if user:
        count(user.id, now, sms=1, otps=int(has_code))
    else:
        count(None, now, sms=1, otps=int(has_code), unmatched=1)
    return message, delivery, user


def _first(sms, key):
    """(the message that `sms` is a duplicate of, the state of its delivery), in one transaction;
    None when it is none after all: without an id it was one for 10 minutes."""
    query = select(Message).where(Message.dedupe_key == key)
    first = db.session.scalar(query.options(selectinload(Message.deliveries)))
    if first and not sms.message_id and first.created_at <= utcnow() - DUPLICATE_WINDOW:
        first.dedupe_key = None
        return None
    return first and (first, first.webhook)


def _end_of_moment(time):
    """A time in whole seconds, as SMS centres give it, means some time in that second: who got the
    number in it has got it by then."""
    return time if time.microsecond else time + timedelta(seconds=1, microseconds=-1)
