"""Browser sessions: logging in with an API key, forms that only we can have made, throttling."""

import hmac
import logging
import secrets
import threading
import time
from datetime import timedelta
from ipaddress import ip_address, ip_network

from flask import current_app, request, session
from flask.sessions import SecureCookieSessionInterface

from service.errors import FormExpired, InvalidApiKey, TooManyTries
from service.logs import event
from service.models import User, db, sha256

log = logging.getLogger(__name__)

LIFETIME = timedelta(hours=12)
# Wrong keys of one address, in each process, before it has to wait
MAX_FAILURES, FAILURE_SECONDS = 10, 300

# Webhooks that one user sends by hand, and URLs that are looked up for them, in each process:
# nobody is flooded in our name
MAX_SENDS, SEND_SECONDS = 20, 60


class _Sessions(SecureCookieSessionInterface):
    def get_cookie_secure(self, app):
        return request.is_secure


class Throttle:
    """So many calls of `take` for a name within so many seconds, in this process."""

    MAX_NAMES = 10_000

    def __init__(self, limit, seconds):
        self.limit, self.seconds = limit, seconds
        self._taken = {}
        self._lock = threading.Lock()

    def check(self, name):
        """Raise TooManyTries when `name` has none left."""
        with self._lock:
            since, taken = self._taken.get(name, (0, 0))
        wait = since + self.seconds - time.monotonic()
        if taken >= self.limit and wait > 0:
            seconds = int(wait) + 1
            raise TooManyTries(
                f"{TooManyTries.message} Try again in {seconds} seconds.",
                headers={"Retry-After": str(seconds)},
            )

    def take(self, name):
        """Use one up; raises TooManyTries when there was none left."""
        self.check(name)
        with self._lock:
            now = time.monotonic()
            since, taken = self._taken.pop(name, (now, 0))
            fresh = since + self.seconds > now
            # Put at the end: the names that were taken longest ago are forgotten first
            self._taken[name] = (since, taken + 1) if fresh else (now, 1)
            if len(self._taken) > self.MAX_NAMES:
                del self._taken[next(iter(self._taken))]


def init_app(app):
    app.session_interface = _Sessions()
    app.config.update(SESSION_COOKIE_SAMESITE="Lax", PERMANENT_SESSION_LIFETIME=LIFETIME)
    app.extensions["logins"] = Throttle(MAX_FAILURES, FAILURE_SECONDS)
    app.extensions["sends"] = Throttle(MAX_SENDS, SEND_SECONDS)
    app.jinja_env.globals["csrf_token"] = csrf_token


def log_in(key):
    """Begin the session of the user who holds `key`; raises InvalidApiKey or TooManyTries."""
    logins, address = current_app.extensions["logins"], _address()
    logins.check(address)
    try:
        user = User.by_api_key(key)
    except InvalidApiKey:
        event(log, "login_failed", logging.WARNING, address=address)
        logins.take(address)
        raise
    event(log, "login", user_id=user.id, address=address)
    begin(user)


def begin(user):
    """A fresh session; it ends when the user's key is another one than now."""
    session.clear()
    session.update(user=user.id, stamp=_stamp(user), began=int(time.time()))


def log_out():
    session.clear()


def current_user():
    """The User who is logged in and may still call; else None."""
    # The cookie's own date is renewed whenever the session is written
    if time.time() - session.get("began", 0) > LIFETIME.total_seconds():
        return None
    user = db.session.get(User, session["user"])
    if user and user.may_call and hmac.compare_digest(session.get("stamp", ""), _stamp(user)):
        return user
    return None


def csrf_token():
    """What every form carries: a secret of this session (OWASP's synchronizer token)."""
    return session.setdefault("csrf", secrets.token_urlsafe(32))


def check_csrf():
    """Raise FormExpired unless the form was made for this session."""
    given = request.form.get("csrf_token", "").encode()
    if not hmac.compare_digest(session.get("csrf", "").encode() or secrets.token_bytes(8), given):
        raise FormExpired


def _stamp(user):
    # Of the key's hash, not the key; hashed once more, since cookies can be read by their owner
    return sha256("session", user.key_hash)


def _address():
    """The caller's address; of IPv6 the /64, which is what one subscriber has."""
    text = request.remote_addr or ""
    if text.count(":") == 1:
        text = text.partition(":")[0]  # some proxies add the port
    try:
        ip = ip_address(text)
    except ValueError:
        return text
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return str(ip if ip.version == 4 else ip_network((ip, 64), strict=False))
