"""Standard Webhooks signatures: sign and verify."""

import base64
import binascii
import hashlib
import hmac
import time

from werkzeug.datastructures import Headers

TOLERANCE_SECONDS = 300


def sign(secret: str, webhook_id: str, timestamp: int | str, body: bytes) -> str:
    """The `v1,…` signature of `body` sent as `webhook_id` at `timestamp` (Unix seconds).

    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def verify(secret: str, headers: Headers, body: bytes) -> bool:
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
