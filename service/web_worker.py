"""gunicorn's gevent worker, which drops no call when it stops and bounds what slow clients hold."""

import contextlib
import fcntl
import io
import itertools
import json
import logging
import os
import resource
import signal
import socket
import string
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn import http, util
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import (
    InvalidChunkSize,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    NoMoreData,
    ParseException,
)
from gunicorn.workers.ggevent import GeventWorker

from service import MAX_BODY_BYTES
from service.limits import SLOW_CLIENTS
from service.logs import event

# From its first byte, how long the head of a request may take; the body; and a pause while the
# client takes the answer in
HEAD_SECONDS, BODY_SECONDS, SEND_SECONDS = 10, 20, 30
# Who owes a request for longer is slow
PATIENCE_SECONDS = 0.2
# How long after the signal to stop a kept connection may still bring a request
LINGER_SECONDS = 2
# Look-ups of names have no time limit, and each takes a thread
LOOK_UP_THREADS = 250
# Open files: of a call (its own, one to others, and the handle on that one's deadline), and more
FILES_OF_CALL, OTHER_FILES = 3, 100

# gunicorn's errors of parsing that are no plain 400 (RFC 9110, 15.5 and 15.6; RFC 6585)
REFUSALS = {
    "LimitRequestLine": (414, "URI Too Long"),
    "LimitRequestHeaders": (431, "Request Header Fields Too Large"),
    "UnsupportedTransferCoding": (501, "Not Implemented"),
    "ExpectationFailed": (417, "Expectation Failed"),
}

HEX_DIGITS = string.hexdigits.encode()
# Headers of an answer that are none
OUR_FAULT = (InvalidResponseHeader, InvalidResponseHeaderName)

Environ = dict[str, Any]


def affordable(connections: int) -> int:
    """`connections`, or as many as the limit on open files allows, which is raised if it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OF_CALL * connections + OTHER_FILES
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(connections, (soft - OTHER_FILES) // FILES_OF_CALL))


class WebWorker(GeventWorker):
    """Upstream's worker stops by closing the listening socket, which resets who waits in its queue,
    and then waits for idle connections as for calls; here who has sent a request is answered.

    A client that is slow to send holds nothing but its connection: the head and the body are read
    before the application is called, each in bounded time, and the connections that owe a request
    are a share of all.
    """

    nr: int  # the calls so far
    max_requests: int
    wsgi: Callable[..., Iterable[bytes]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.told_to_stop = Event()
        self.pool = Pool(self.worker_connections)
        # Upstream would stop at once, before there is a successor
        self.successor_at, self.max_requests = self.max_requests, sys.maxsize
        # Connections in the order of time, and since when: whose request is awaited, and which rest
        # between two
        self.owing: dict[Any, float] = {}
        self.resting: dict[Any, float] = {}

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.application = self.wsgi
        self.wsgi = self.call_with_whole_body
        gevent.get_hub().threadpool.maxsize = LOOK_UP_THREADS

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self.told_to_stop.set()

    def run(self) -> None:
        servers = [StreamServer(sock, handle=self.serve, spawn=self.pool) for sock in self.sockets]
        for server in servers:
            server.max_accept = 1  # leave the next one to another process
            server.start()
        while not self.told_to_stop.wait(PATIENCE_SECONDS):
            self.notify()
            if not self.pool.free_count():
                self.make_room()
        for server in servers:
            accept_who_waits(server)
        self.pool.join(LINGER_SECONDS)
        for client in self.resting:
            if not unread(client):
                shut(client, socket.SHUT_RD)
        for _ in range(self.cfg.graceful_timeout):
            if self.pool.join(1):
                return
            self.notify()
        self.log.warning("Worker graceful timeout (pid:%s)", self.pid)

    def serve(self, client: Any, address: Any) -> None:
        """Answer the requests of one connection, one after the other."""
        self.owing[client] = time.monotonic()
        self.make_room()
        if address:  # the IPv6 form of an IPv4 address means the latter
            address = (address[0].removeprefix("::ffff:"), *address[1:])
        parser, patience, req = http.get_parser(self.cfg, client, address), HEAD_SECONDS, None
        try:
            while next_begins(client, parser, patience):
                self.resting.pop(client, None)
                self.owing[client] = time.monotonic()
                req = None
                with gevent.Timeout(HEAD_SECONDS, False):
                    req = next(parser)
                if req is None:
                    refuse(client, address, 408, "Request Timeout")
                    break
                self.handle_request(client.getsockname(), req, client, address)
                self.owing.pop(client, None)
                self.resting[client] = time.monotonic()
                patience = self.cfg.keepalive
        except (StopIteration, NoMoreData, OSError):
            pass  # the last answer, or the client has gone
        except Exception as e:
            self.handle_error(req, client, address, e)
        finally:
            self.owing.pop(client, None)
            self.resting.pop(client, None)
            # Unread input would make the system reset the connection, and the answer be lost
            util.close_graceful(client)

    def make_room(self) -> None:
        """End the slow client that has owed its request for longest, if slow clients have more than
        their share; if there is no place for another connection, rather one that rests.

        Not one whose request has arrived: in a crowd it may be unread for a while.
        """
        slow_since = time.monotonic() - PATIENCE_SECONDS
        slow = itertools.takewhile(lambda client: self.owing[client] < slow_since, self.owing)
        if len(self.owing) > SLOW_CLIENTS * self.worker_connections:
            candidates: Iterable[Any] = slow
        elif self.pool.free_count():
            return
        else:
            candidates = itertools.chain(self.resting, slow)
        for client in list(itertools.islice(candidates, 20)):
            if not unread(client):
                self.owing.pop(client, None)
                self.resting.pop(client, None)
                shut(client, socket.SHUT_RDWR)
                return

    def handle_request(self, name: Any, req: Any, client: Any, address: Any) -> None:
        super().handle_request(name, req, client, address)
        if self.nr >= self.successor_at:
            # One process more, then one less: the oldest, which may be this one
            self.nr = 0
            os.kill(self.ppid, signal.SIGTTIN)
            os.kill(self.ppid, signal.SIGTTOU)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer, and log, what no application has seen; upstream would quote the request."""
        if isinstance(exc, ParseException) and not isinstance(exc, OUR_FAULT):
            status, reason = REFUSALS.get(type(exc).__name__, (400, "Bad Request"))
            refuse(client, addr, status, reason, why=type(exc).__name__)
            return
        event("worker_failed", logging.ERROR, exc_info=True)
        answer_error(client, 500, "Internal Server Error")

    def call_with_whole_body(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """The application's answer, once all of the body is here; or 408 or 400."""
        body, problem = None, "408 Request Timeout"
        try:
            with gevent.Timeout(BODY_SECONDS, False):
                body = whole_body(environ)
        except (ParseException, NoMoreData):
            problem = "400 Bad Request"
        self.owing.pop(environ["gunicorn.socket"], None)
        if body is not None:
            environ["wsgi.input"] = io.BytesIO(body)
            return self.application(environ, start_response)
        event("request_refused", logging.WARNING, address=environ["REMOTE_ADDR"], why=problem)
        start_response.__self__.force_close()
        text = json.dumps({"status": "error", "message": problem[4:].capitalize()}).encode()
        header = [("Content-Type", "application/json"), ("Content-Length", str(len(text)))]
        start_response(problem, header)
        return [text]


def whole_body(environ: Environ) -> bytes:
    """The body, or more of it than the application takes; raises NoMoreData for one that is cut
    off, ParseException for broken chunks."""
    body, length = environ["wsgi.input"], int(environ.get("CONTENT_LENGTH") or 0)
    if length > MAX_BODY_BYTES:
        return b""  # the application refuses it by its length
    if isinstance(body.reader, ChunkedReader):
        # Without a line's end, what is no size of a chunk would be waited for in vain
        unreader = body.reader.req.unreader
        unreader.unread(begin := unreader.read())
        if begin[:1] not in HEX_DIGITS:
            raise InvalidChunkSize(begin)
    data: bytes = body.read(MAX_BODY_BYTES + 1)
    if len(data) < length:
        raise NoMoreData
    return data


def refuse(client: Any, address: Any, status: int, reason: str, why: str | None = None) -> None:
    """Answer a request that could not be read with an error."""
    ip = address[0] if address else None
    event("request_refused", logging.WARNING, address=ip, status=status, why=why)
    answer_error(client, status, reason)


def answer_error(client: Any, status: int, reason: str) -> None:
    with contextlib.suppress(OSError):  # the client has gone
        util.write_error(client, status, reason, "")


def next_begins(client: Any, parser: Any, seconds: float) -> bool:
    """Whether the first byte of the connection's next request comes within `seconds`."""
    client.settimeout(seconds)
    try:
        return bool(parser.unreader.buf.getvalue() or client.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        client.settimeout(SEND_SECONDS)


def accept_who_waits(server: StreamServer) -> None:
    """Accept every connection in the queue of the listening socket, and then close it: whoever
    comes later is refused at once, which makes a router try another dyno."""
    server.stop_accepting()
    while (accepted := server.do_read()) or waiting(server.socket):
        if accepted:
            server.do_handle(*accepted)
    server.close()


def waiting(listener: Any) -> int:
    """How many connections wait to be accepted; 0 if the system does not tell."""
    if not hasattr(socket, "TCP_INFO") or listener.family == socket.AF_UNIX:
        return 0
    # tcpi_unacked is the length of a listening socket's queue (Linux, tcp_get_info())
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int(struct.unpack_from("I", info, 24)[0])


def unread(client: Any) -> int:
    """How many bytes have arrived that were not read."""
    return int(struct.unpack("i", fcntl.ioctl(client.fileno(), termios.FIONREAD, b"\0" * 4))[0])


def shut(client: Any, how: int) -> None:
    """Shut the connection down, whoever waits for it: gevent's own shutdown() would raise there."""
    with contextlib.suppress(OSError):  # the client was quicker
        client._sock.shutdown(how)
