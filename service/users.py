"""Users: created, and their keys rotated."""

from service.database.models import User
from service.database.writing import Transaction
from service.keys import new_key, new_secret, seal, sha256


def create(
    tx: Transaction, name: str, *, active: bool = True, approved: bool = True
) -> tuple[User, str, str]:
    """A new user, their API key and their webhook secret; neither can be read back later."""
    key, secret = new_key("usr"), new_secret()
    user = User(name=name[:255], key_hash=sha256(key), webhook_secret=seal(secret))
    user.active, user.approved = active, approved
    tx.session.add(user)
    tx.session.flush()
    return user, key, secret


def replace_key(tx: Transaction, user_id: int, old: str, key_hash: str) -> bool:
    """Put a new key's hash in place of the one whose hash is `old`; whether it is in force, now or
    since the same replacement was made before."""
    user = tx.lock_user(user_id)
    if sha256(user.key_hash) == old:
        user.key_hash = key_hash
    return user.key_hash == key_hash
