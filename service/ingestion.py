"""Taking in an SMS: duplicates, whose it is, its code, and the webhook that it fires."""

import logging
from datetime import timedelta

from sqlalchemy import bindparam, select
from sqlalchemy.exc import IntegrityError

from service import otp
from service.delivery import deliver, queue
from service.logs import event
from service.models import Delivery, Message, PhoneNumber, count, db, sha256, transact, utcnow

log = logging.getLogger(__name__)
DUPLICATE_WINDOW = timedelta(minutes=10)
_SAME = select(Message.id).where(Message.dedupe_key == bindparam("dedupe_key"))


def ingest(sms, provider, source):
    """Store `sms`, then deliver its webhook; the answer's `data`.

    `provider` is the name that users see, `source` what tells message ids of one gateway from
    another's. The SMS and its delivery are committed together before the receiver is called.
    """
    while True:
        try:
            message, delivery, user, duplicate = transact(lambda: _store(sms, provider, source))
            break
        except IntegrityError:
            continue  # the same SMS at the same moment: this time it is found
    event(
        log, "sms_duplicate" if duplicate else "sms_stored", message_id=message.id,
        user_id=message.user_id, provider=provider, otp=message.otp_code is not None,
    )  # fmt: skip
    state = delivery.state if delivery else "none"
    if delivery and delivery.lease and not duplicate:
        state = deliver(delivery, "ingest", user)
    return {
        "id": message.id,
        "matched": message.phone_number_id is not None,
        "duplicate": duplicate,
        "otp_code": message.otp_code,
        "webhook": {"delivered": "delivered", "pending": "pending"}.get(state, "none"),
    }


def _store(sms, provider, source):
    """(message, its delivery and user or None, whether it was here already), in one transaction."""
    now = utcnow()
    if sms.message_id:
        dedupe_key = sha256("id", source, sms.message_id)
    else:
        dedupe_key = sha256("text", sms.digits, sms.sms_text)
    first_id = db.session.scalar(_SAME, {"dedupe_key": dedupe_key})
    first = first_id and db.session.get(Message, first_id, populate_existing=True)
    if first and (sms.message_id or first.created_at > now - DUPLICATE_WINDOW):
        delivery = db.session.scalar(
            select(Delivery).where(Delivery.message_id == first.id).order_by(Delivery.id).limit(1)
        )
        return first, delivery, None, True
    if first:
        first.dedupe_key = None
        db.session.flush()

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
        dedupe_key=dedupe_key,
        received_at=received_at,
        created_at=now,
    )
    db.session.add(message)
    has_code, delivery = message.otp_code is not None, None
    if user and has_code and user.webhook_url:
        delivery = queue(message, user)
    db.session.flush()
    if user:
        count(user.id, now, sms=1, otps=int(has_code))
    else:
        count(None, now, sms=1, otps=int(has_code), unmatched=1)
    return message, delivery, user, False


def _end_of_moment(time):
    """A time in whole seconds, as SMS centres give it, means some time in that second: who got the
    number in it has got it by then."""
    return time if time.microsecond else time + timedelta(seconds=1, microseconds=-1)
