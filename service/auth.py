"""Who is calling: the key of a request, and the user it stands for."""

import hmac

from flask import current_app, request

from service.errors import (
    ManagerInactive,
    MissingCredentials,
    TargetUserNotFound,
    UserIdRequired,
)
from service.models import User, db
from service.schemas import UserIdQuery, load_query

_USER_ID = UserIdQuery()


def given_key(path_key):
    """The key in the path, else in `Authorization: Bearer` or `X-API-Key`; None without one."""
    if path_key:
        return path_key
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return bearer or request.headers.get("X-API-Key", "").strip() or None


def is_system_key(key):
    """Whether `key` is SYSTEM_API_KEY, compared in constant time."""
    system = current_app.config["SYSTEM_API_KEY"]
    return bool(system) and hmac.compare_digest(system.encode(), key.encode("utf-8", "replace"))


def require_key(path_key):
    """Let the system key or a user's key pass; raises MissingCredentials or InvalidApiKey."""
    key = given_key(path_key)
    if key is None:
        raise MissingCredentials
    if not is_system_key(key):
        User.by_api_key(key)


def calling_user(path_key):
    """The user whose key it is, or whom the system key names in `user_id`.

    Raises MissingCredentials, InvalidApiKey, UserIdRequired or TargetUserNotFound.
    """
    key = given_key(path_key)
    if key is None:
        raise MissingCredentials
    if not is_system_key(key):
        return User.by_api_key(key)
    user_id = load_query(_USER_ID, request.args).get("user_id")
    if user_id is None:
        raise UserIdRequired
    user = db.session.get(User, user_id)
    if user is None or not user.may_call:
        raise TargetUserNotFound
    return user


def require_active_manager(user):
    """Raise ManagerInactive when the user has a manager who is not active."""
    if user.manager_id is not None and not db.session.get(User, user.manager_id).active:
        raise ManagerInactive
