"""Browser sessions: how they begin with an API key and end, and protection against forged forms."""

import hmac
import secrets
import time
from datetime import timedelta
from typing import NoReturn

from flask import Flask, current_app, request, session
from flask.sessions import SecureCookieSessionInterface
from sqlalchemy import delete, exists, select

from service import audit
from service.auth import user_by_key
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import EndedSession, User
from service.database.writing import Transaction, transact
from service.errors import AwaitingApproval, FormExpired, InvalidApiKey
from service.keys import sha256
from service.limits import Throttle
from service.logs import caller_address, event
from service.users import end_sessions

LIFETIME = timedelta(hours=12)
# Codes and texts are shown for so long after the key was given
CONFIRMED_SECONDS = 900
# Wrong keys from one address, in each process, before it has to wait
MAX_FAILURES, FAILURE_SECONDS = 10, 300
# Webhooks that one user sends by hand and URLs looked up for them, in each process, so that nobody
# is flooded in our name
MAX_SENDS, SEND_SECONDS = 20, 60


class _Sessions(SecureCookieSessionInterface):
    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure

    def get_cookie_name(self, app: Flask) -> str:
        # No other host of the domain, and no plain http page, can set a cookie of this prefix
        # (RFC 6265bis, 4.1.3.2)
        return "__Host-session" if request.is_secure else "session"


def init_app(app: Flask) -> None:
    app.session_interface = _Sessions()
    app.config.update(SESSION_COOKIE_SAMESITE="Lax", PERMANENT_SESSION_LIFETIME=LIFETIME)
    app.extensions["logins"] = Throttle(MAX_FAILURES, FAILURE_SECONDS)
    app.extensions["sends"] = Throttle(MAX_SENDS, SEND_SECONDS)
    app.jinja_env.globals["csrf_token"] = csrf_token


def log_in(key: str) -> None:
    """Begin the session of the user who holds `key`; raises InvalidApiKey, AwaitingApproval or
    TooManyTries."""
    user = _holder_of(key)
    transact(audit.record, "login", user.id)
    event("login", user_id=user.id, address=caller_address())
    begin(user)


def begin(user: User) -> None:
    """Start a new session of a user who has just given their key."""
    now = int(time.time())
    session.clear()
    session.update(id=secrets.token_urlsafe(16), user=user.id, stamp=_stamp(user))
    session.update(began=now, confirmed=now)


def confirm(user: User, key: str) -> None:
    """Note that `user` has given their key; raises InvalidApiKey or TooManyTries."""
    if not hmac.compare_digest(sha256(key), user.key_hash):
        _refuse("confirm_failed", user.id)
    session["confirmed"] = int(time.time())


def is_confirmed() -> bool:
    """Whether the user has given their key within CONFIRMED_SECONDS: a cookie that was copied
    later shows no code."""
    return bool(time.time() - session.get("confirmed", 0) < CONFIRMED_SECONDS)


def log_out(user: User, everywhere: bool = False) -> None:
    """End this session of the user, copies of its cookie included; `everywhere`: all of them."""
    ended = _id_hash()
    session.clear()
    transact(_end, user.id, None if everywhere else ended)
    event("logout", user_id=user.id, address=caller_address(), everywhere=everywhere or None)


def _end(tx: Transaction, user_id: int, id_hash: str | None) -> None:
    """End one session, or all of the user."""
    audit.record(tx, "logout", user_id, everywhere=id_hash is None)
    if id_hash is None:
        end_sessions(tx.lock_user(user_id))
        return
    now = utcnow()
    tx.upsert(EndedSession, {"id_hash": id_hash}, {"ended_at": now})
    tx.execute(delete(EndedSession).where(EndedSession.ended_at < now - LIFETIME))


def current_user() -> User | None:
    """The User who is logged in and still active and approved; else None."""
    # The cookie's own timestamp is renewed whenever the session changes
    if time.time() - session.get("began", 0) > LIFETIME.total_seconds():
        return None
    is_ended = exists().where(EndedSession.id_hash == _id_hash())
    user = db.session.scalar(select(User).where(User.id == session["user"], ~is_ended))
    if user and user.may_call and hmac.compare_digest(session.get("stamp", ""), _stamp(user)):
        audit.acts_as(audit.Actor.USER, user.id)
        return user
    return None


def csrf_token() -> str:
    """The secret of this session that every form carries (OWASP's synchronizer token)."""
    return str(session.setdefault("csrf", secrets.token_urlsafe(32)))


def check_csrf() -> None:
    """Raise FormExpired for a form that was not made for this session."""
    if request.method != "POST":
        return
    given = request.form.get("csrf_token", "").encode()
    if not hmac.compare_digest(session.get("csrf", "").encode() or secrets.token_bytes(8), given):
        raise FormExpired


def _holder_of(key: str) -> User:
    """The user who holds `key`, which is never held up by the wrong keys of others at the same
    address; raises InvalidApiKey or TooManyTries."""
    try:
        return user_by_key(key)
    except InvalidApiKey as e:
        if _is_pending(key):
            raise AwaitingApproval from e
        _refuse("login_failed")


def _is_pending(key: str) -> bool:
    of_key = (User.key_hash == sha256(key)) & User.active & ~User.approved
    return db.session.scalar(select(User.id).where(of_key)) is not None


def _refuse(action: str, user_id: int | None = None) -> NoReturn:
    """Log and record a wrong key; raises InvalidApiKey, or TooManyTries after too many."""
    current_app.extensions["refusals"].note(action, user_id=user_id)
    current_app.extensions["logins"].take(caller_address())
    transact(audit.record, action, user_id)
    raise InvalidApiKey


def _stamp(user: User) -> str:
    # The key's hash is hashed once more: the owner of a cookie can read it
    return sha256("session", user.key_hash, str(user.session_version))


def _id_hash() -> str:
    return sha256("session", session.get("id", ""))
