"""Standard Webhooks signatures: sign and verify."""

import base64
import hashlib
import hmac
import re
import time

from werkzeug.datastructures import Headers

# How far the time of a signature may be from now
TOLERANCE_SECONDS = 300
# Standard Webhooks, "Signature scheme"
MIN_KEY_BYTES = 24
# Base64 in either alphabet (RFC 4648, 4 and 5), padded or not
_SECRET = re.compile(r"whsec_([A-Za-z0-9+/]*|[A-Za-z0-9_-]*)(={0,2})")


def key_of(secret: str) -> bytes:
    """The key in a `whsec_…` secret; raises ValueError, a sentence, for anything else.

    A key that is empty or short is refused: with it, anybody could sign.
    """
    found = _SECRET.fullmatch(secret)
    text = found[1].replace("-", "+").replace("_", "/") if found else ""
    missing = "=" * (-len(text) % 4)
    if not found or len(missing) > 2 or found[2] not in ("", missing):
        raise ValueError("must be whsec_ and base64")
    key = base64.b64decode(text + missing, validate=True)
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"must be whsec_ and the base64 of at least {MIN_KEY_BYTES} bytes")
    return key


def unix_seconds(text: str) -> int | None:
    """The time in the header of a signature; None if it is none."""
    is_time = text.isascii() and text.isdecimal() and len(text) < 12
    return int(text) if is_time else None


def sign(secret: str, webhook_id: str, timestamp: int | str, body: bytes) -> str:
    """The `v1,…` signature of `body` sent as `webhook_id` at `timestamp` (Unix seconds).

    Raises ValueError for a secret that is none.
    https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    """
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key_of(secret), signed, hashlib.sha256)).decode()


def verify(
    secret: str, headers: Headers, body: bytes, tolerance: float = TOLERANCE_SECONDS
) -> bool:
    """Whether Standard Webhooks `headers` sign `body` with `secret`, within `tolerance` seconds of
    now."""
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    signed_at = unix_seconds(timestamp)
    if not webhook_id or signed_at is None or abs(time.time() - signed_at) > tolerance:
        return False
    try:
        expected = sign(secret, webhook_id, timestamp, body).encode()
    except ValueError:
        return False
    given = headers.get("webhook-signature", "").encode("utf-8", "replace").split()
    return any(hmac.compare_digest(expected, signature) for signature in given)
