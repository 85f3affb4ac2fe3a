"""Webhooks to users: the payload, its signature, and the one deliver() that sends it."""

import base64
import binascii
import hashlib
import hmac
import json
import logging
import secrets
import time
from datetime import timedelta

from flask import current_app
from sqlalchemy import update

from service import outbound
from service.logs import event
from service.models import Delivery, User, count, db, release, transact, utcnow

log = logging.getLogger(__name__)
ANSWER_BYTES = 4096
TOLERANCE_SECONDS = 300
RETRY_SECONDS = 60


def init_app(app):
    app.extensions["webhooks"] = {"session": outbound.new_session()}


def new_secret():
    """A fresh `whsec_…` signing secret, as Standard Webhooks writes them."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def sign(secret, webhook_id, timestamp, body):
    """The `v1,…` signature of `body` (bytes) sent as `webhook_id` at `timestamp` (Unix seconds).

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def verify(secret, headers, body):
    """Whether Standard Webhooks `headers` sign `body` with `secret`, within 5 minutes of now."""
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not (webhook_id and timestamp.isascii() and timestamp.isdecimal() and len(timestamp) < 12):
        return False
    if abs(time.time() - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    try:
        expected = sign(secret, webhook_id, timestamp, body).encode()
    except binascii.Error:
        return False
    given = headers.get("webhook-signature", "").encode("utf-8", "replace").split()
    return any(hmac.compare_digest(expected, signature) for signature in given)


def payload(message):
    """The exact bytes of `otp_received` for a stored message."""
    data = {
        "phone_number": f"+{message.digits}",
        "otp_code": message.otp_code,
        "provider": message.provider,
        "sms_text": message.sms_text,
    }
    body = {"event": "otp_received", "data": data}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def queue(message):
    """A delivery of `message`, leased to the caller, who adds it to its transaction and delivers.

    Committed together with the message: a crash before the try leaves it due once the lease ends.
    """
    now = utcnow()
    lease = timedelta(seconds=current_app.config["WEBHOOK_TIMEOUT"] + RETRY_SECONDS)
    return Delivery(
        webhook_id=f"msg_{secrets.token_urlsafe(18)}",
        user_id=message.user_id,
        message_id=message.id,
        body=payload(message),
        next_attempt_at=now,
        lease=secrets.token_hex(16),
        leased_until=now + lease,
    )


def deliver(delivery):
    """Try a leased delivery once, record the outcome, and return its state; never raises.

    No transaction is open while the receiver is called.
    """
    try:
        user = db.session.get(User, delivery.user_id)
        release()
        started = time.monotonic()
        result, delivered = _post(user, delivery)
        ms = round((time.monotonic() - started) * 1000)
        event(log, "webhook_tried", delivery_id=delivery.id, result=result, ms=ms)
        return transact(
            lambda: _record(delivery.id, delivery.user_id, delivery.lease, result, delivered)
        )
    except Exception:
        event(log, "webhook_try_failed", logging.ERROR, exc_info=True, delivery_id=delivery.id)
        return "pending"


def _post(user, delivery):
    """POST once: the status or a word for why there was none, and whether it was taken."""
    if not user.webhook_url:
        return "no_url", False
    timestamp = int(time.time())
    try:
        answer = outbound.call(
            current_app.extensions["webhooks"]["session"],
            "POST",
            user.webhook_url,
            seconds=current_app.config["WEBHOOK_TIMEOUT"],
            limit=ANSWER_BYTES,
            data=delivery.body,
            headers={
                "Content-Type": "application/json",
                "webhook-id": delivery.webhook_id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": sign(
                    user.webhook_secret, delivery.webhook_id, timestamp, delivery.body
                ),
            },
        )
    except outbound.CallFailed as e:
        return e.kind, False
    return str(answer.status), 200 <= answer.status < 300


def _record(delivery_id, user_id, lease, result, delivered):
    now = utcnow()
    values = {
        "state": "delivered" if delivered else "pending",
        "attempts": Delivery.attempts + 1,
        "last_result": result,
        "lease": None,
        "leased_until": None,
        "delivered_at": now if delivered else None,
        "next_attempt_at": None if delivered else now + timedelta(seconds=RETRY_SECONDS),
    }
    mine = update(Delivery).where(Delivery.id == delivery_id, Delivery.lease == lease)
    if db.session.execute(mine.values(values)).rowcount == 1 and delivered:
        count(user_id, now, webhooks_delivered=1)
    return values["state"]
