"""Browser sessions: login with an API key, and protection against forged forms."""

import hmac
import logging
import secrets
import time
from datetime import timedelta
from ipaddress import IPv4Address, ip_address, ip_network

from flask import Flask, current_app, request, session
from flask.sessions import SecureCookieSessionInterface

from service.auth import user_by_key
from service.database.engine import db
from service.database.models import User
from service.errors import FormExpired, InvalidApiKey
from service.keys import sha256
from service.limits import Throttle
from service.logs import event

LIFETIME = timedelta(hours=12)
# Wrong keys from one address, in each process, before it has to wait
MAX_FAILURES, FAILURE_SECONDS = 10, 300
# Webhooks that one user sends by hand and URLs looked up for them, in each process, so that nobody
# is flooded in our name
MAX_SENDS, SEND_SECONDS = 20, 60


class _Sessions(SecureCookieSessionInterface):
    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure


def init_app(app: Flask) -> None:
    app.session_interface = _Sessions()
    app.config.update(SESSION_COOKIE_SAMESITE="Lax", PERMANENT_SESSION_LIFETIME=LIFETIME)
    app.extensions["logins"] = Throttle(MAX_FAILURES, FAILURE_SECONDS)
    app.extensions["sends"] = Throttle(MAX_SENDS, SEND_SECONDS)
    app.jinja_env.globals["csrf_token"] = csrf_token


def log_in(key: str) -> None:
    """Begin the session of the user who holds `key`; raises InvalidApiKey or TooManyTries."""
    logins, address = current_app.extensions["logins"], _address()
    logins.check(address)
    try:
        user = user_by_key(key)
    except InvalidApiKey:
        event("login_failed", logging.WARNING, address=address)
        logins.take(address)
        raise
    event("login", user_id=user.id, address=address)
    begin(user)


def begin(user: User) -> None:
    """Start a new session, which ends when the user's key is rotated."""
    session.clear()
    session.update(user=user.id, stamp=_stamp(user), began=int(time.time()))


def log_out() -> None:
    session.clear()


def current_user() -> User | None:
    """The User who is logged in and still active and approved; else None."""
    # The cookie's own timestamp is renewed whenever the session changes
    if time.time() - session.get("began", 0) > LIFETIME.total_seconds():
        return None
    user = db.session.get(User, session["user"])
    if user and user.may_call and hmac.compare_digest(session.get("stamp", ""), _stamp(user)):
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


def _stamp(user: User) -> str:
    # The key's hash is hashed once more: the owner of a cookie can read it
    return sha256("session", user.key_hash)


def _address() -> str:
    """The caller's address; for IPv6 its /64, which usually is one subscriber."""
    text = request.remote_addr or ""
    if text.count(":") == 1:
        text = text.partition(":")[0]  # some proxies add the port
    try:
        ip = ip_address(text)
    except ValueError:
        return text
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return str(ip if isinstance(ip, IPv4Address) else ip_network((ip, 64), strict=False))
