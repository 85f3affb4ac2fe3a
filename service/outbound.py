"""HTTP calls to other servers under a total deadline, whatever the peer does."""

import contextlib
import heapq
import http.client
import ipaddress
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

Address = tuple[socket.AddressFamily, tuple[Any, ...]]
CONNECT_SECONDS = 3
_current = threading.local()


class CallFailed(Exception):
    """A call that got no complete answer.

    `kind` is one word (timeout, dns, forbidden, connect, tls, connection, url); `sent` says
    whether the peer may have received the request.
    """

    def __init__(self, kind: str, sent: bool) -> None:
        super().__init__(kind)
        self.kind, self.sent = kind, sent


@dataclass
class Answer:
    """A peer's answer: its status, its headers, and the first bytes of its body as sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool


def call(
    session: "Session",
    method: str,
    url: str,
    *,
    seconds: float,
    limit: int,
    may_dial: Callable[[str], bool] | None = None,
    **kwargs: Any,
) -> Answer:
    """Make one request and read at most `limit` bytes of the answer, within `seconds` in total.

    `may_dial(address)` checks every resolved IP address before any connection is made, and only
    those addresses are dialled. No redirect is followed and nothing is retried. Raises
    CallFailed. The timeouts of requests bound each socket operation, not the whole call: so a
    timer cuts the connection.
    """
    options = {"allow_redirects": False, "stream": True, **kwargs}
    with _Deadline(seconds, may_dial) as deadline:
        try:
            timeout = (CONNECT_SECONDS, seconds)
            with session.request(method, url, timeout=timeout, **options) as response:
                body = response.raw.read(limit + 1, decode_content=False)
                status, is_cut = response.status_code, len(body) > limit
                answer = Answer(status, response.headers, body[:limit], is_cut)
        except Unresolved as e:
            raise CallFailed("dns", False) from e
        except _Forbidden as e:
            raise CallFailed("forbidden", False) from e
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            ValueError,
        ) as e:
            raise CallFailed(_kind(e, deadline), deadline.sent) from e
        if deadline.expired:
            raise CallFailed("timeout", True)  # a cut connection can look like the end of the body
        return answer


def _kind(error: Exception, deadline: "_Deadline") -> str:
    if deadline.expired or isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "timeout"
    if isinstance(error, requests.exceptions.SSLError):
        return "tls"
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return "url"
    return "connection" if deadline.sent else "connect"


def new_session(pool_size: int = 32) -> "Session":
    """A pooled session that ignores proxies, `.netrc`, cookies and redirects."""
    session = Session()
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    # Compressed answers could expand without bound
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "otp-service"})
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(pool_connections=pool_size, pool_maxsize=pool_size))
    return session


class Session(requests.Session):
    """A requests session that sends exactly what it is given."""

    def request(  # type: ignore[override]  # fewer parameters than in requests
        self, method: str, url: str, *, headers: Any = None, params: Any = None, data: Any = None,
        **options: Any,
    ) -> requests.Response:  # fmt: skip
        # Everything else that requests would merge in comes from the environment or from cookies
        request = requests.PreparedRequest()
        headers = {**self.headers, **(headers or {})}
        request.prepare(method, url, headers=headers, params=params, data=data)
        return self.send(request, verify=self.verify, cert=None, proxies={}, **options)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        # Even when not following it, requests would read a redirect's whole body to find the next
        return None


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


class Unresolved(Exception):
    """The host name could not be resolved, or not in time."""


class _Forbidden(Exception):
    pass


class _Deadline:
    """Cuts this thread's connection when the time is up."""

    def __init__(self, seconds: float, may_dial: Callable[[str], bool] | None) -> None:
        self.may_dial = may_dial
        self.ends = time.monotonic() + seconds
        self.over = False
        self.expired = False
        self.sent = False
        self._connection: _Watched | None = None
        self._handle: socket.socket | None = None
        self._lock = threading.Lock()

    def __lt__(self, other: "_Deadline") -> bool:
        return self.ends < other.ends

    def __enter__(self) -> "_Deadline":
        _current.deadline = self
        _watchdog.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.over = True
            self._let_go()
        _current.deadline = None

    def remaining(self) -> float:
        return max(0.001, self.ends - time.monotonic())

    def watch(self, connection: "_Watched", sock: socket.socket) -> None:
        """Cut `sock`, which `connection` uses for this call, when the time is up.

        We use a duplicate descriptor: TLS takes over the socket, and http.client closes it early
        when the end of the connection ends the answer.
        """
        with self._lock:
            self._let_go()
            self._handle = socket.socket(fileno=os.dup(sock.fileno()))
            self._connection = connection
            connection.deadline = self
            if self.expired:
                self._cut()

    def expire(self) -> None:
        with self._lock:
            self.expired = not self.over
            # The pool may already have given the connection to another call
            if self._connection is not None and self._connection.deadline is self:
                self._cut()

    def _cut(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):  # closed by the peer already
                self._handle.shutdown(socket.SHUT_RDWR)

    def _let_go(self) -> None:
        if self._handle is not None:
            self._handle.close()
        self._handle = self._connection = None


class _Watchdog:
    """One thread that expires all deadlines: a timer for each would be a thread for each."""

    def __init__(self) -> None:
        # A heap; finished deadlines stay in it until they reach the top
        self._pending: list[_Deadline] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, deadline: _Deadline) -> None:
        with self._changed:
            heapq.heappush(self._pending, deadline)
            if self._thread is None or not self._thread.is_alive():  # a fork has no threads
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            elif self._pending[0] is deadline:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._pending and self._pending[0].over:
                    heapq.heappop(self._pending)
                wait = self._pending[0].ends - time.monotonic() if self._pending else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                deadline = heapq.heappop(self._pending)
            deadline.expire()


_watchdog = _Watchdog()


class _Watched:
    """A connection that the current deadline can cut at any time, even in the TLS handshake."""

    deadline: _Deadline | None = None

    def _new_conn(self: Any) -> socket.socket:
        deadline: _Deadline = _current.deadline
        error: OSError | None = None
        found = resolve(self._dns_host, self.port, deadline.remaining())
        if deadline.may_dial and not all(deadline.may_dial(address[0]) for _, address in found):
            raise _Forbidden(self._dns_host)
        for family, address in found:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(min(CONNECT_SECONDS, deadline.remaining()))
                sock.connect(address)
                deadline.watch(self, sock)
                return sock
            except OSError as e:
                sock.close()
                error = e
        raise urllib3.exceptions.NewConnectionError(self, f"cannot connect: {error}") from error

    def request(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            _current.deadline.watch(self, self.sock)
        super().request(*args, **kwargs)  # type: ignore[misc]

    def send(self: Any, data: Any) -> None:
        if self.sock is None:
            self.connect()
        _current.deadline.sent = True
        super().send(data)  # type: ignore[misc]


class _HTTPConnection(_Watched, HTTPConnection):
    pass


class _HTTPSConnection(_Watched, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


def resolve(host: str, port: int, seconds: float) -> list[Address]:
    """The (family, address) pairs of `host`, resolved within `seconds`; raises Unresolved."""
    host = host.strip("[]")
    try:
        version = ipaddress.ip_address(host).version
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]
    except ValueError:
        pass
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as e:
            found.put(e)

    # getaddrinfo has no timeout: a slow lookup is abandoned
    threading.Thread(target=look_up, daemon=True).start()
    try:
        answers = found.get(timeout=seconds)
    except queue.Empty:
        raise Unresolved("timed out") from None
    if isinstance(answers, Exception):
        raise Unresolved(str(answers)) from answers
    return [(family, address) for family, _, _, _, address in answers]
