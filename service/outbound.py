"""HTTP calls to others under a total deadline, whatever the peer does."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Self

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util.ssl_ import create_urllib3_context

from service import dialling
from service.deadlines import Deadline
from service.version import VERSION

# How long a kept connection may have been idle: a NAT forgets it without telling either end. For a
# request that must not be sent twice: shorter than any usual server keeps one
IDLE_SECONDS = 30
BRIEF_SECONDS = 2
# Around the body: how many interim answers, and fields of each or of a trailer
MAX_INTERIM, MAX_FIELDS = 20, 100
READ_BYTES = 65536
# Whatever the libraries raise for a peer, or a URL, that is not as it should be
_BROKEN = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)
_current = threading.local()
# RFC 9110, 10.1.5
USER_AGENT = f"otp-service/{VERSION}"


class CallFailed(Exception):
    """A call that got no answer.

    `kind` is one word (timeout, dns, forbidden, connect, tls, connection, url); `sent` says
    whether the peer may have received the request.
    """

    def __init__(self, kind: str, sent: bool) -> None:
        super().__init__(kind)
        self.kind = self.log_words = kind
        self.sent = sent


@dataclass
class Answer:
    """A peer's answer: its status, its headers, and the first bytes of its body as sent.

    `complete` is False where that is not all of the body: it is too long, cut off, or late.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool


def call(
    session: "Session",
    method: str,
    url: str,
    *,
    seconds: float,
    limit: int,
    body_seconds: float | None = None,
    repeatable: bool = False,
    may_dial: Callable[[str], bool] | None = None,
    **kwargs: Any,
) -> Answer:
    """Make one request, and read at most `limit` bytes of the answer, in `seconds` altogether.

    A head makes an answer, whatever becomes of the body, which is waited for `body_seconds` at
    most. `may_dial(address)` judges each resolved IP address before any is connected to, and
    exactly those addresses are dialled. No redirect is followed. Raises CallFailed.

    `repeatable` says that the request does no harm if the peer gets it twice. If a connection
    that was kept breaks before any byte of an answer, such a request is sent once more, on a fresh
    one (RFC 9112, 9.3.1); any other goes out only on a fresh connection or one used just before.
    """
    # These bound each operation of the socket, not the whole: so a timer cuts the connection
    timeout = (dialling.CONNECT_SECONDS, seconds)
    options = {"timeout": timeout, "allow_redirects": False, "stream": True, **kwargs}
    with _Call(seconds, may_dial, IDLE_SECONDS if repeatable else BRIEF_SECONDS) as this:
        try:
            return _answer(this, session, method, url, limit, body_seconds, options)
        except CallFailed as e:
            if not repeatable or e.kind not in ("connection", "tls") or not this.was_stale():
                raise
        this.max_idle = 0
        return _answer(this, session, method, url, limit, body_seconds, options)


def _answer(
    this: "_Call", session: "Session", method: str, url: str, limit: int,
    body_seconds: float | None, options: dict[str, Any],
) -> Answer:  # fmt: skip
    try:
        with session.request(method, url, **options) as response:
            if this.expired:
                raise CallFailed("timeout", True)  # a cut connection can look like the head's end
            if body_seconds is not None:
                this.shorten(body_seconds)
            body, ended = _read(response.raw, limit)
            complete = ended and len(body) <= limit and not this.expired
            return Answer(response.status_code, response.headers, body[:limit], complete)
    except dialling.Unresolved as e:
        raise CallFailed("dns", False) from e
    except _Forbidden as e:
        raise CallFailed("forbidden", False) from e
    except _BROKEN as e:
        raise CallFailed(_kind(e, this), this.sent) from e


def _read(raw: urllib3.BaseHTTPResponse, limit: int) -> tuple[bytes, bool]:
    """(the body, or its first `limit` + 1 bytes; False if it broke off)."""
    body = bytearray()
    try:
        while room := limit + 1 - len(body):
            data = raw.read1(min(room, READ_BYTES), decode_content=False)
            if not data:
                break
            body += data
    except _BROKEN:
        return bytes(body), False
    return bytes(body), True


def _kind(error: Exception, this: "_Call") -> str:
    if this.is_up() or isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "timeout"
    if isinstance(error, requests.exceptions.SSLError):
        return "tls"
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return "url"
    return "connection" if this.sent else "connect"


def new_session(pool_size: int = 32, ca_bundle: str | None = None) -> "Session":
    """A pooled session that knows no proxies, `.netrc`, cookies or redirects.

    `ca_bundle` is a file of certificates (PEM) that it trusts besides the public ones.
    """
    context = None
    if ca_bundle:
        context = create_urllib3_context()
        context.load_verify_locations(ca_bundle)
    session = Session()
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    # Compressed answers could grow without bound when unpacked
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": USER_AGENT})
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(pool_size, context))
    return session


class Session(requests.Session):
    """A requests session that sends exactly what it is given."""

    def request(  # type: ignore[override]  # fewer arguments than requests'
        self, method: str, url: str, *, headers: Any = None, params: Any = None, data: Any = None,
        **options: Any,
    ) -> requests.Response:  # fmt: skip
        # The rest of what requests merges in comes from the environment and from cookies
        request = requests.PreparedRequest()
        headers = {**self.headers, **(headers or {})}
        request.prepare(method, url, headers=headers, params=params, data=data)
        return self.send(request, verify=self.verify, cert=None, proxies={}, **options)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        # Even unfollowed, requests would read a redirect's whole body to look for the next
        return None


class _Adapter(HTTPAdapter):
    def __init__(self, pool_size: int, context: ssl.SSLContext | None) -> None:
        self._context = context
        super().__init__(pool_connections=pool_size, pool_maxsize=pool_size)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


class _Forbidden(Exception):
    pass


class _Call(Deadline):
    """What the connection has to know of the call that uses it, and what it tells in return."""

    def __init__(
        self, seconds: float, may_dial: Callable[[str], bool] | None, max_idle: float
    ) -> None:
        super().__init__(seconds)
        self.may_dial, self.max_idle = may_dial, max_idle
        self.reuses = False  # a connection that was kept
        self.sent = False
        self.answered = False  # with one byte or more

    def __enter__(self) -> Self:
        _current.call = self
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        _current.call = None

    def was_stale(self) -> bool:
        """Whether the connection that broke may have been dead before the request was sent."""
        return self.reuses and not self.answered


class _Response(http.client.HTTPResponse):
    """An answer that begins with the final status line, and has no end of heads or trailers."""

    def begin(self) -> None:
        if self.fp.peek(1):
            _current.call.answered = True
        super().begin()
        if len(self._lengths()) > 1:
            # The body's end is unknown (RFC 9112, 6.3); urllib3 would give up the status as well
            del self.headers["Content-Length"]
            self.length = None if self.length else self.length
            self.will_close = True
        if self.status == 101:
            self.will_close = True  # what follows is no HTTP

    def _lengths(self) -> set[str]:
        lines = self.headers.get_all("Content-Length", [])
        return {length.strip() for line in lines for length in line.split(",")}

    def _read_status(self) -> tuple[str, int, str]:
        """The final status line: http.client skips 100s alone, and any number of them (RFC 9110,
        15.2)."""
        for _ in range(MAX_INTERIM + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status >= 200 or status == 101:
                return version, status, reason
            self._skip_fields()
        raise http.client.HTTPException("too many interim answers")

    def _skip_fields(self) -> None:
        """Read past the fields of an interim answer or of a trailer."""
        for _ in range(MAX_FIELDS + 1):
            if self.fp.readline(READ_BYTES) in (b"\r\n", b"\n", b""):
                return
        raise http.client.HTTPException("too many fields")

    _read_and_discard_trailer = _skip_fields


class _Watched:
    """A connection that the current call can cut at any moment, TLS handshake included."""

    deadline: Deadline | None = None
    kept_at = 0.0

    def _new_conn(self: Any) -> socket.socket:
        this: _Call = _current.call
        found = dialling.resolve(self._dns_host, self.port, this.remaining())
        if this.may_dial and not all(this.may_dial(address[0]) for _, address in found):
            raise _Forbidden(self._dns_host)
        try:
            sock = dialling.connect(found, self.socket_options or (), this.ends)
        except OSError as e:
            raise urllib3.exceptions.NewConnectionError(self, f"cannot connect: {e}") from e
        sock.settimeout(min(dialling.CONNECT_SECONDS, this.remaining()))
        this.watch(self, sock)
        return sock

    def request(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            _current.call.watch(self, self.sock)
        super().request(*args, **kwargs)  # type: ignore[misc]

    def send(self: Any, data: Any) -> None:
        if self.sock is None:
            self.connect()
        _current.call.sent = True
        super().send(data)  # type: ignore[misc]


class _HTTPConnection(_Watched, HTTPConnection):
    response_class = _Response


class _HTTPSConnection(_Watched, HTTPSConnection):
    response_class = _Response


class _Keeping:
    """A pool that lends what it keeps only where that will do, and while it is likely alive."""

    def _get_conn(self: Any, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]
        if time.monotonic() - connection.kept_at >= _current.call.max_idle:
            connection.close()  # the request connects it again
        _current.call.reuses = not connection.is_closed
        return connection

    def _put_conn(self: Any, connection: Any) -> None:
        if connection is not None:
            connection.kept_at = time.monotonic()
        super()._put_conn(connection)  # type: ignore[misc]


class _HTTPPool(_Keeping, HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(_Keeping, HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection
