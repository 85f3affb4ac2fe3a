"""Who is calling: the key in a request, and the user it belongs to."""

import hmac

from flask import current_app, request
from sqlalchemy import bindparam, select

from service import audit, errors
from service.database.engine import db
from service.database.models import User
from service.fields import Digits, Query, load_query
from service.keys import sha256
from service.logs import caller_ip


class UserIdQuery(Query):
    """The `user_id` that goes with the system key."""

    user_id = Digits(
        low=1, metadata={"description": "With the system key: the user on whose behalf to act."}
    )


_USER_ID = UserIdQuery()
_USER = select(User).where(User.key_hash == bindparam("key_hash"))


def user_by_key(key: str) -> User:
    """The user who holds `key`, if active and approved; raises InvalidApiKey."""
    user = db.session.scalar(_USER, {"key_hash": sha256(key)})
    if user is None or not user.may_call:
        raise errors.InvalidApiKey
    audit.acts_as(audit.Actor.USER, user.id)
    return user


def given_key(path_key: str | None) -> str | None:
    """The key in the path, else in `Authorization: Bearer` or `X-API-Key`; None without one."""
    if path_key:
        return path_key
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return bearer or request.headers.get("X-API-Key", "").strip() or None


def is_system_key(key: str) -> bool:
    """Whether `key` is SYSTEM_API_KEY or a former one, compared in constant time."""
    given, config = key.encode("utf-8", "replace"), current_app.config
    valid = [config["SYSTEM_API_KEY"] or "", *config["SYSTEM_API_KEY_FALLBACKS"]]
    return any(hmac.compare_digest(system.encode(), given) for system in valid if system)


def is_from_this_machine() -> bool:
    """Whether the request came from a loopback address, and by no proxy."""
    if "X-Forwarded-For" in request.headers or "Forwarded" in request.headers:
        return False
    ip = caller_ip()
    return ip is not None and ip.is_loopback


def require_key(path_key: str | None) -> User | None:
    """The user who holds the key, None for the system key; raises MissingCredentials or
    InvalidApiKey."""
    key = given_key(path_key)
    if key is None:
        raise errors.MissingCredentials
    if not is_system_key(key):
        return user_by_key(key)
    audit.acts_as(audit.Actor.SYSTEM_KEY)
    return None


def calling_user(path_key: str | None) -> User:
    """The user who holds the key, or the one in `user_id` if it is the system key; raises
    MissingCredentials, InvalidApiKey, UserIdRequired or TargetUserNotFound."""
    key = given_key(path_key)
    if key is None:
        raise errors.MissingCredentials
    if not is_system_key(key):
        return user_by_key(key)
    audit.acts_as(audit.Actor.SYSTEM_KEY)
    user_id = load_query(_USER_ID, request.args).get("user_id")
    if user_id is None:
        raise errors.UserIdRequired
    user = db.session.get(User, user_id)
    if user is None or not user.may_call:
        raise errors.TargetUserNotFound
    audit.acts_as(audit.Actor.SYSTEM_KEY, user.id)
    return user


def require_active_manager(user: User) -> None:
    """Raise ManagerInactive if the user has a manager who is not active."""
    if user.manager_id is not None and not db.session.get_one(User, user.manager_id).active:
        raise errors.ManagerInactive
