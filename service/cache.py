"""One cached value, fetched once for all concurrent callers."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedCache(Generic[T]):
    """One value cached for `seconds`; concurrent misses share one fetch, errors are not cached."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._value: T
        self._until = 0.0
        self._fetching: Future[T] | None = None

    def fresh(self) -> T | None:
        """The cached value, if there is one."""
        with self._lock:
            return self._value if time.monotonic() < self._until else None

    def get(self, fetch: Callable[[], T]) -> T:
        """The cached value, else the result of `fetch()`; raises whatever `fetch` raised."""
        if not self.seconds:
            return fetch()
        with self._lock:
            if time.monotonic() < self._until:
                return self._value
            fetching = self._fetching
            is_first = fetching is None
            if fetching is None:
                fetching = self._fetching = Future()
        if is_first:
            self._fetch(fetch, fetching)
        return fetching.result()

    def _fetch(self, fetch: Callable[[], T], fetching: "Future[T]") -> None:
        try:
            value = fetch()
        except BaseException as e:
            with self._lock:
                self._fetching = None
            fetching.set_exception(e)
            return
        with self._lock:
            self._value, self._until = value, time.monotonic() + self.seconds
            self._fetching = None
        fetching.set_result(value)
