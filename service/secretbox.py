"""Secrets at rest: sealed under SECRET_KEY, so that a copy of the database alone signs nothing."""

import base64
import hashlib

from cryptography.fernet import Fernet, InvalidToken
from flask import current_app


class Unreadable(Exception):
    """The secret was sealed under another SECRET_KEY."""


def seal(secret):
    """`secret` (text) encrypted and authenticated (Fernet: AES-CBC and HMAC-SHA256)."""
    return _box().encrypt(secret.encode()).decode()


def unseal(sealed):
    """The secret in `sealed`; raises Unreadable."""
    try:
        return _box().decrypt(sealed.encode()).decode()
    except InvalidToken as e:
        raise Unreadable("sealed under another SECRET_KEY") from e


def _box():
    # Hashed for its length; a purpose of its own, since SECRET_KEY signs sessions too
    key = hashlib.sha256(b"webhook secrets:" + current_app.config["SECRET_KEY"].encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))
