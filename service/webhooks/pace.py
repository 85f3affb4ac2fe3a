"""Which endpoints are slow, as far as this process has called them."""

import threading
import time
from typing import NamedTuple

from flask import Flask, current_app

from service.database.models import User
from service.webhooks.attempt import Attempt
from service.webhooks.endpoint import pause_after

# An attempt is slow if it takes this share of WEBHOOK_TIMEOUT, as one that times out does
SLOW_SHARE = 0.8


def init_app(app: Flask) -> None:
    app.extensions["webhook_pace"] = Pace(app.config["WEBHOOK_TIMEOUT"])


def pace() -> "Pace":
    """What this process knows."""
    found: Pace = current_app.extensions["webhook_pace"]
    return found


class _Slow(NamedTuple):
    url: str | None
    streak: int  # consecutive slow attempts
    until: float  # no synchronous attempt before (monotonic)


class Pace:
    """The users whose endpoint was slow the last time, with the streak of its slow attempts."""

    MAX_USERS = 10_000

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._slow: dict[int, _Slow] = {}
        self._lock = threading.Lock()

    def note(self, user_id: int, attempt: Attempt) -> None:
        """Judge by an attempt, which may be late: it counts for the URL that it called."""
        with self._lock:
            last = self._slow.pop(user_id, None)
            if attempt.ms < SLOW_SHARE * self.timeout * 1000:
                return
            streak = last.streak + 1 if last and last.url == attempt.url else 1
            until = time.monotonic() + pause_after(streak)
            self._slow[user_id] = _Slow(attempt.url, streak, until)
            if len(self._slow) > self.MAX_USERS:  # the first was noted the longest ago
                del self._slow[next(iter(self._slow))]

    def is_slow(self, user_id: int) -> bool:
        """Whether the user's last attempt in this process was slow."""
        return user_id in self._slow

    def may_wait(self, user: User) -> bool:
        """Whether an SMS may wait for the user's endpoint, which pauses after a streak of slow
        attempts; then one of several concurrent callers may, and probes it."""
        with self._lock:
            last, now = self._slow.get(user.id), time.monotonic()
            if not last or last.url != user.webhook_url or not pause_after(last.streak):
                return True
            if last.until > now:
                return False
            self._slow[user.id] = last._replace(until=now + self.timeout)
            return True
