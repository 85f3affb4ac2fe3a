"""Cuts a connection when the time of the call that uses it is up."""

import contextlib
import heapq
import itertools
import os
import socket
import threading
import time
from typing import Any, Self


class Deadline:
    """Cuts this call's connection when the time is up."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self.over = False
        self.expired = False
        self._connection: Any = None
        self._handle: socket.socket | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        _watchdog.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.over = True
            self._let_go()

    def remaining(self) -> float:
        return max(0.001, self.ends - time.monotonic())

    def is_up(self) -> bool:
        return self.expired or time.monotonic() >= self.ends

    def shorten(self, seconds: float) -> None:
        """Leave the call at most so many seconds from now."""
        ends = time.monotonic() + seconds
        if ends < self.ends:
            self.ends = ends
            _watchdog.add(self)

    def watch(self, connection: Any, sock: socket.socket) -> None:
        """Cut `sock`, which `connection` uses for this call, when the time is up.

        Through a descriptor of our own: TLS takes the socket over, and http.client closes it
        early when the answer's end is the connection's.
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
            # The pool may have lent the connection to another call by now
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
    """One thread that expires all deadlines: a timer each would be a thread each."""

    def __init__(self) -> None:
        # A heap of (when, tie-breaker, deadline); those that are over stay in it until they come up
        self._pending: list[tuple[float, int, Deadline]] = []
        self._added = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, deadline: Deadline) -> None:
        with self._changed:
            entry = (deadline.ends, next(self._added), deadline)
            heapq.heappush(self._pending, entry)
            if self._thread is None or not self._thread.is_alive():  # a fork has no threads
                self._thread = threading.Thread(target=self._run, name="deadlines", daemon=True)
                self._thread.start()
            elif self._pending[0] is entry:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._pending and self._pending[0][2].over:
                    heapq.heappop(self._pending)
                wait = self._pending[0][0] - time.monotonic() if self._pending else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                deadline = heapq.heappop(self._pending)[2]
            deadline.expire()


_watchdog = _Watchdog()
