"""Per-process limits, keyed by name: on concurrency, and on the rate of calls."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator

from flask import Flask, current_app

from service.errors import TooManyTries
from service.metrics import IN_USE, PLACES

# Of the calls that a process handles at once, how many may wait for whom. The rest is left to those
# that wait for nobody
SHARES = {"main_server": 0.3, "receivers": 0.15, "waiters": 0.45}
# ... and how many may be waited for until they have sent their request
SLOW_CLIENTS = 0.1
# How many of the calls that ask the main server run at once, before they ask and after: hundreds of
# them often come back at the same moment, and all others' calls would queue behind them
RUNNING_BEFORE, RUNNING_AFTER = 4, 2


def init_app(app: Flask) -> None:
    connections = app.config["WORKER_CONNECTIONS"]
    app.extensions["gate"] = Gate(RUNNING_BEFORE, RUNNING_AFTER)
    app.extensions["shares"] = {
        name: Slots(int(part * connections), name) for name, part in SHARES.items()
    }


def share(name: str) -> "Slots":
    """The places of one of SHARES, taken by user."""
    found: Slots = current_app.extensions["shares"][name]
    return found


def gate() -> "Gate":
    """The gate of the calls that ask the main server."""
    found: Gate = current_app.extensions["gate"]
    return found


class Gate:
    """Lets few calls run at once, in their order; a call that waits for somebody goes outside.

    `before` of them run that were not outside yet, and `after` that were: so neither wait for the
    other ones' crowd.
    """

    def __init__(self, before: int, after: int) -> None:
        self._before, self._after = threading.Semaphore(before), threading.Semaphore(after)
        self._call = threading.local()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        self._take(self._before)
        try:
            yield
        finally:
            self._call.place.release()

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        self._call.place.release()
        try:
            yield
        finally:
            self._take(self._after)

    def _take(self, place: threading.Semaphore) -> None:
        place.acquire()
        self._call.place = place


class Slots:
    """Counts what is in progress for each name: at most `places` in all, a quarter for one name.

    The total is a metric, if it has a `title`.
    """

    def __init__(self, places: int, title: str | None = None) -> None:
        self.places, self.quarter = places, max(1, places // 4)
        self._in_use = title and IN_USE.labels(title)
        if title:
            PLACES.labels(title).set(places)
        self._busy: Counter[Hashable] = Counter()
        self._lock = threading.Lock()

    def busy(self) -> Counter[Hashable]:
        """How much is in progress for each name."""
        with self._lock:
            return self._busy.copy()

    @contextlib.contextmanager
    def take(self, name: Hashable, limit: int | None = None) -> Iterator[bool]:
        """Hold a place while the block runs; yields whether one was free for `name`, which gets
        `limit` of them (default: a quarter)."""
        limit = self.quarter if limit is None else limit
        with self._lock:
            taken = self._busy[name] < limit and self._busy.total() < self.places
            self._busy[name] += taken
        if self._in_use:
            self._in_use.inc(taken)
        try:
            yield taken
        finally:
            with self._lock:
                self._busy[name] -= taken
                if not self._busy[name]:
                    del self._busy[name]
            if self._in_use:
                self._in_use.dec(taken)


class Throttle:
    """Allows each name `limit` calls of `take` in `seconds` seconds."""

    MAX_NAMES = 10_000

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit, self.seconds = limit, seconds
        self._taken: dict[Hashable, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def check(self, name: Hashable) -> None:
        """Raise TooManyTries if `name` has no calls left."""
        with self._lock:
            since, taken = self._taken.get(name, (0, 0))
        wait = since + self.seconds - time.monotonic()
        if taken >= self.limit and wait > 0:
            seconds = int(wait) + 1
            raise TooManyTries(
                f"{TooManyTries.message} Try again in {seconds} seconds.",
                headers={"Retry-After": str(seconds)},
            )

    def take(self, name: Hashable) -> None:
        """Use up one call; raises TooManyTries if none was left."""
        self.check(name)
        with self._lock:
            now = time.monotonic()
            since, taken = self._taken.pop(name, (now, 0))
            fresh = since + self.seconds > now
            # Moved to the end: the least recently used names are dropped first
            self._taken[name] = (since, taken + 1) if fresh else (now, 1)
            if len(self._taken) > self.MAX_NAMES:
                del self._taken[next(iter(self._taken))]
