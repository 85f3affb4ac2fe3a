"""The worker: threads that deliver what is due."""

import logging
import random
import threading
from collections.abc import Callable

from flask import current_app

from service.database.models import DeliveryState
from service.logs import event
from service.webhooks import queue
from service.webhooks.delivery import deliver_batch

POLL_SECONDS = 0.5
# The longest pause while the database fails
MAX_PAUSE_SECONDS = 5


def work(
    stop: threading.Event,
    watch: bool,
    threads: int = 8,
    on_done: Callable[[DeliveryState], None] = lambda state: None,
) -> None:
    """Deliver what is due in `threads` threads until `stop` is set; unless `watch`, until none is.

    Attempts in progress when `stop` is set are finished. `on_done(state)` is called after each.
    """
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # of a LocalProxy

    def run() -> None:
        pause = POLL_SECONDS
        while not stop.is_set():
            with app.app_context():
                try:
                    batch = queue.claim_due()
                    pause = POLL_SECONDS
                    if batch:
                        deliver_batch(batch, stop, on_done)
                        continue
                except Exception:
                    event("worker_failed", logging.ERROR, exc_info=True)
                    pause = min(2 * pause, MAX_PAUSE_SECONDS)
            if not watch:
                return
            stop.wait(pause * random.uniform(0.8, 1.2))

    pool = [threading.Thread(target=run, name=f"deliver-{n}") for n in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
