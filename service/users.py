"""Creating users, rotating their keys, and ending their browser sessions."""

from sqlalchemy import update

from service import audit
from service.database.columns import utcnow
from service.database.models import PhoneNumber, User
from service.database.writing import Transaction
from service.keys import new_key, new_secret, seal, sha256

MAX_NAME = 255
# What a removed user is called
REMOVED = "removed"


def check_name(name: str) -> str:
    """`name` without spaces around it; raises ValueError if it is blank, too long, or holds
    characters that cannot be seen or would change a terminal."""
    name = name.strip()
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise ValueError(f"must be 1 to {MAX_NAME} characters that can be printed")
    return name


def create(
    tx: Transaction, name: str, *, active: bool = True, approved: bool = True
) -> tuple[User, str, str]:
    """A new user, their API key and their webhook secret; the key cannot be read back later."""
    key, secret = new_key("usr"), new_secret()
    user = User(name=name, key_hash=sha256(key), webhook_secret=seal(secret))
    user.active, user.approved = active, approved
    tx.session.add(user)
    tx.session.flush()
    return user, key, secret


def set_key(tx: Transaction, user: User, key_hash: str) -> None:
    """Replace the key of a user of `tx`; the old key and the sessions end."""
    audit.record(tx, "key_rotated", user.id)
    user.key_hash = key_hash
    end_sessions(user)


def replace_key(tx: Transaction, user_id: int, old: str, key_hash: str) -> bool:
    """Replace the key hash whose SHA-256 is `old`; returns whether `key_hash` is in force, also if
    the same replacement was made before."""
    user = tx.lock_user(user_id)
    if sha256(user.key_hash) == old:
        set_key(tx, user, key_hash)
    return user.key_hash == key_hash


def remove(tx: Transaction, user: User) -> None:
    """Forget a user of `tx`: who they are, their key, webhook and sessions. Their numbers and
    counts stay, as those of a removed user."""
    audit.record(tx, "user_removed", user.id)
    user.name, user.removed_at = REMOVED, user.removed_at or utcnow()
    user.active = user.approved = False
    user.key_hash = sha256(new_key("removed"))
    user.webhook_url = user.webhook_old_secret = user.webhook_old_secret_until = None
    user.webhook_secret = ""
    end_sessions(user)
    forget_keys = update(PhoneNumber).where(PhoneNumber.user_id == user.id)
    tx.execute(forget_keys.values(idempotency_hash=None))


def end_sessions(user: User) -> None:
    """End every browser session of a user of a transaction; none of them can come back."""
    user.session_version += 1
