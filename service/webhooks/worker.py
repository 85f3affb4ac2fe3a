"""The worker: it claims what is due, and hands it to threads that deliver it."""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from flask import Flask, current_app

from service.database.models import Delivery, DeliveryState
from service.database.writing import transact
from service.logs import event
from service.webhooks import queue
from service.webhooks.delivery import deliver_batch
from service.webhooks.pace import pace

# Attempts in progress at once
THREADS = 64
POLL_SECONDS = 0.5
CHORE_SECONDS = 15
# The longest pause while the database fails
MAX_PAUSE_SECONDS = 5


OnDone = Callable[[DeliveryState], None]


class _Place(NamedTuple):
    """What a thread is occupied with: a batch of this user."""

    user_id: int
    was_slow: bool

    @property
    def is_slow(self) -> bool:
        return self.was_slow or pace().is_slow(self.user_id)


def work(
    stop: threading.Event,
    watch: bool,
    threads: int = THREADS,
    on_done: OnDone = lambda state: None,
    chore: Callable[[], object] = lambda: None,
) -> None:
    """Deliver what is due in `threads` threads until `stop` is set; unless `watch`, until none is.

    Attempts in progress when `stop` is set are finished. `on_done(state)` is called after each;
    `chore()` before all, and then every CHORE_SECONDS.
    """
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # of a LocalProxy
    running: dict[Future[None], _Place] = {}
    pause, chore = POLL_SECONDS, _every(CHORE_SECONDS, chore)
    with ThreadPoolExecutor(threads, "deliver") as pool:
        while not stop.is_set():
            running = {future: place for future, place in running.items() if not future.done()}
            try:
                with app.app_context():
                    chore()
                    places = _choose(running.values(), threads)
                    batches = transact(queue.claim_due, places) if places else []
            except Exception:
                event("worker_failed", logging.ERROR, exc_info=True)
                if not watch:
                    return
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
                stop.wait(pause * random.uniform(0.8, 1.2))
                continue
            pause = POLL_SECONDS
            for batch in batches:
                running[pool.submit(_run, app, batch, stop, on_done)] = places[batch[0].user_id]
            if batches:
                continue  # more may be due
            if running:
                wait(running, pause, FIRST_COMPLETED)
            elif places or watch:
                stop.wait(pause * random.uniform(0.8, 1.2))
            else:
                return


def _run(app: Flask, batch: Sequence[Delivery], stop: threading.Event, on_done: OnDone) -> None:
    with app.app_context():
        deliver_batch(batch, stop, on_done)


def _every(seconds: float, chore: Callable[[], object]) -> Callable[[], None]:
    """The chore, which then does nothing until `seconds` after its end."""
    next_at = 0.0

    def run() -> None:
        nonlocal next_at
        if time.monotonic() >= next_at:
            chore()
            next_at = time.monotonic() + seconds

    return run


def _choose(running: Collection[_Place], threads: int) -> dict[int, _Place]:
    """The users who get a thread now, one each; at random, so that several workers rarely compete.

    Endpoints that were slow or failed the last time get at most half of the threads. None gets a
    second thread unless few are in use: any may become slow, and fifty at once leave some free.
    """
    if len(running) == threads:
        return {}
    due = queue.due_users()
    random.shuffle(due)
    busy = Counter(place.user_id for place in running) | queue.slots().busy()
    free_for_slow = max(1, threads // 2) - sum(place.is_slow for place in running)
    chosen: dict[int, _Place] = {}
    for user_id, failures in due:
        place, used = _Place(user_id, failures > 0), len(running) + len(chosen)
        may_have_more = not failures and used < max(queue.SLOTS, threads // 4)
        is_free = busy[user_id] < (queue.SLOTS if may_have_more else 1)
        if is_free and used < threads and (free_for_slow > 0 or not place.is_slow):
            chosen[user_id] = place
            free_for_slow -= place.is_slow
    return chosen
