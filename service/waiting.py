"""Calls that wait for an SMS: told by ingestion in their process, and by one query for all."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from flask import Flask, current_app
from sqlalchemy import func, select

from service.database.engine import db
from service.database.models import Message, User
from service.logs import event

POLL_SECONDS = 0.5
# Ids are not committed in order, so each poll starts so many ids below the newest. An SMS that is
# committed even later is found by the call's own last look
MARGIN = 1000


@dataclass(eq=False)
class Bell:
    """Rung when there is an SMS with an id above `after` to one of `digits` (None: to any)."""

    after: int
    digits: set[str] | None
    rung: threading.Event = field(default_factory=threading.Event)

    def ring_for(self, id: int, digits: str) -> None:
        if id > self.after and (self.digits is None or digits in self.digits):
            self.rung.set()


class Waiters:
    """The bells of a process's waiting calls, and the thread that asks the database for them all.

    The thread runs while somebody waits.
    """

    def __init__(self, app: Flask) -> None:
        self._app, self._lock = app, threading.Lock()
        self._bells: dict[int | None, set[Bell]] = {}
        self._watcher: threading.Thread | None = None

    @contextlib.contextmanager
    def hanging(self, bell: Bell, user_id: int) -> Iterator[None]:
        """While the block runs, `bell` is rung for the user's SMS."""
        with self._lock:
            self._bells.setdefault(user_id, set()).add(bell)
        try:
            yield
        finally:
            with self._lock:
                self._bells[user_id].remove(bell)
                if not self._bells[user_id]:
                    del self._bells[user_id]

    def tell(self, user_id: int | None, id: int, digits: str) -> None:
        """Ring the bells that an SMS just committed, or found, is for."""
        with self._lock:
            for bell in self._bells.get(user_id, ()):
                bell.ring_for(id, digits)

    def end(self, user_id: int) -> None:
        """Ring all bells of a user who has been deactivated, so that their calls end."""
        with self._lock:
            for bell in self._bells.get(user_id, ()):
                bell.rung.set()

    def wait(self, bell: Bell, seconds: float) -> None:
        """Wait until `bell`, which must be hanging, is rung, for `seconds` at most."""
        with self._lock:
            # A fork inherits the object, but no thread
            if not (self._watcher and self._watcher.is_alive()):
                self._watcher = threading.Thread(target=self._watch, name="waiters", daemon=True)
                self._watcher.start()
        bell.rung.wait(seconds)
        bell.rung.clear()

    def _watch(self) -> None:
        newest, has_failed = None, False
        while True:
            time.sleep(POLL_SECONDS)
            with self._lock:
                if not self._bells:
                    self._watcher = None  # who comes now starts another
                    return
            try:
                newest = self._poll(newest)
                has_failed = False
            except Exception:  # the calls go on waiting, and look themselves in the end
                if not has_failed:
                    event("waiters_failed", logging.ERROR, exc_info=True)
                has_failed = True

    def _poll(self, newest: int | None) -> int | None:
        """Tell of all SMS since MARGIN ids before `newest`, and of users who were deactivated.

        Returns the newest id, if any.
        """
        with self._app.app_context():  # which ends with the connection released
            if newest is None:
                newest = db.session.scalar(select(func.max(Message.id))) or 0
            recent = select(Message.user_id, Message.id, Message.digits)
            rows = db.session.execute(recent.where(Message.id > newest - MARGIN)).all()
            is_waiting = User.id.in_(list(self._bells))
            ended = db.session.scalars(select(User.id).where(is_waiting, ~User.may_call)).all()
        for row in rows:
            self.tell(*row)
        for user_id in ended:
            self.end(user_id)
        # Without rows the newest is gone, unless there was none
        return max((row.id for row in rows), default=newest and None)


def init_app(app: Flask) -> None:
    app.extensions["waiters"] = Waiters(app)


def waiters() -> Waiters:
    """Those of this process."""
    found: Waiters = current_app.extensions["waiters"]
    return found
