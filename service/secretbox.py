"""Secrets at rest: sealed under SECRET_KEY, so that a copy of the database alone signs nothing."""

import base64
import hashlib
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken
from flask import current_app


class Unreadable(Exception):
    """The secret was sealed under another SECRET_KEY."""


def seal(secret):
    """`secret` (text) encrypted and authenticated (Fernet: AES-CBC and HMAC-SHA256)."""
    return _box(current_app.config["SECRET_KEY"]).encrypt(secret.encode()).decode()


def unseal(sealed):
    """The secret in `sealed`; raises Unreadable."""
    try:
        return _box(current_app.config["SECRET_KEY"]).decrypt(sealed.encode()).decode()
    except InvalidToken as e:
        raise Unreadable("sealed under another SECRET_KEY") from e


@lru_cache(4)
def _box(secret_key):
    # Hashed for its length; a purpose of its own, since SECRET_KEY signs sessions too
    key = hashlib.sha256(b"webhook secrets:" + secret_key.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))
