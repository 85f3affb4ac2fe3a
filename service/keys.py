"""Keys and secrets: created, hashed, and encrypted, so that a stolen database cannot sign."""

import base64
import hashlib
import secrets
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from flask import current_app

# Of how many secrets what unseal() has read is remembered: each webhook asks for its user's
REMEMBERED = 1000


class Unreadable(Exception):
    """The secret was sealed under another SECRET_KEY."""


def new_key(prefix: str) -> str:
    """A new random key; the prefix tells people and secret scanners what it is."""
    return f"{prefix}_{secrets.token_urlsafe(32)}"


def new_secret() -> str:
    """A new `whsec_…` signing secret in the Standard Webhooks format."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def sha256(*parts: str) -> str:
    """The hex SHA-256 of the parts, unambiguously joined: ("ab", "c") differs from ("a", "bc")."""
    encoded = [part.encode("utf-8", "replace") for part in parts]
    head = b"" if len(encoded) == 1 else b"".join(b"%d:" % len(part) for part in encoded)
    return hashlib.sha256(head + b"".join(encoded)).hexdigest()


def seal(secret: str) -> str:
    """`secret` encrypted and authenticated (Fernet: AES-CBC and HMAC-SHA256)."""
    return _boxes(*_secret_keys()).encrypt(secret.encode()).decode()


def unseal(sealed: str) -> str:
    """The secret in `sealed`, under SECRET_KEY or a former one; raises Unreadable."""
    try:
        return _unsealed(sealed, *_secret_keys())
    except InvalidToken as e:
        raise Unreadable("sealed under another SECRET_KEY") from e


@lru_cache(REMEMBERED)
def _unsealed(sealed: str, *secret_keys: str) -> str:
    return _boxes(*secret_keys).decrypt(sealed.encode()).decode()


def is_readable(sealed: str) -> bool:
    """Whether unseal() can read it."""
    try:
        unseal(sealed)
    except Unreadable:
        return False
    return True


def is_under_secret_key(sealed: str) -> bool:
    """Whether it is sealed under SECRET_KEY itself, and not under a former one."""
    try:
        _box(current_app.config["SECRET_KEY"]).decrypt(sealed.encode())
    except InvalidToken:
        return False
    return True


def reseal(sealed: str) -> str:
    """What unseal() reads, sealed under SECRET_KEY; `sealed` itself if it is already. Raises
    Unreadable."""
    return sealed if is_under_secret_key(sealed) else seal(unseal(sealed))


def _secret_keys() -> tuple[str, ...]:
    """SECRET_KEY, and the former ones."""
    config = current_app.config
    return (config["SECRET_KEY"], *config["SECRET_KEY_FALLBACKS"])


def _boxes(*secret_keys: str) -> MultiFernet:
    """Encrypts under the first of the keys, decrypts under the others too."""
    return MultiFernet([_box(key) for key in secret_keys])


@lru_cache(16)
def _box(secret_key: str) -> Fernet:
    # Hashed to get the right length, and prefixed, since SECRET_KEY signs sessions as well
    key = hashlib.sha256(b"webhook secrets:" + secret_key.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))
