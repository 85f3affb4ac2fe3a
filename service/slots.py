"""Places that are taken for a while, so many for each name, in this process."""

import contextlib
import threading
from collections import Counter


class Slots:
    """How many things are under way for each name."""

    def __init__(self):
        self._busy = Counter()
        self._lock = threading.Lock()

    def full(self, limit):
        """The names that have `limit` under way."""
        with self._lock:
            return [name for name, busy in self._busy.items() if busy >= limit]

    @contextlib.contextmanager
    def take(self, name, limit):
        """Whether there is a free slot; it is held while the block runs."""
        with self._lock:
            free = self._busy[name] < limit
            self._busy[name] += free
        try:
            yield free
        finally:
            with self._lock:
                self._busy[name] -= free
                if not self._busy[name]:
                    del self._busy[name]
