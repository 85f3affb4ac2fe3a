"""Webhooks on the wire: the payload and its Standard Webhooks signature."""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time

TOLERANCE_SECONDS = 300


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
