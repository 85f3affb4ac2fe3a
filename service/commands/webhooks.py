"""flask webhooks …: the deliveries to the users' webhooks, and the worker."""

import signal
import threading
import time
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from service import audit, retention
from service.commands.arguments import ROW_ID, USER_ID
from service.commands.checks import log_local
from service.commands.output import as_json, limit_option, limited, row_of, show
from service.database.engine import db
from service.database.health import NOT_CURRENT
from service.database.models import Attempt, Delivery, DeliveryState, User
from service.database.schema import is_current
from service.database.writing import release, transact
from service.sms import parts
from service.webhooks import endpoint, queue
from service.webhooks.by_hand import redeliver
from service.webhooks.worker import THREADS, work

webhooks = AppGroup("webhooks", help="The deliveries to the users' webhooks.")
PROGRESS_SECONDS = 2


@webhooks.command("deliver")
@click.option("--watch", is_flag=True, help="Go on until SIGTERM: the worker.")
@click.option("--threads", type=click.IntRange(1, 256), default=THREADS, show_default=True)
@as_json
def webhooks_deliver(watch: bool, threads: int, as_json: bool) -> None:
    """Deliver what is due, until nothing is; with --watch, run until SIGTERM."""
    try:
        if not is_current():
            raise click.ClickException(NOT_CURRENT)
    except SQLAlchemyError:
        if not watch:
            raise
    stop, lock = threading.Event(), threading.Lock()
    done = {"delivered": 0, "pending": 0, "dead": 0}
    last_shown = time.monotonic()

    def progress(state: DeliveryState) -> None:
        nonlocal last_shown
        with lock:
            done[state] += 1
            if not watch and time.monotonic() - last_shown > PROGRESS_SECONDS:
                last_shown = time.monotonic()
                click.echo(f"{done}, {queue.due()[0]} due", err=True)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # of a LocalProxy
    purging = threading.Thread(target=retention.purge_daily, args=(app, stop))
    if watch:  # which waits for its database
        log_local(app)
        purging.start()
    work(stop, watch, threads, on_done=progress, chore=parts.sweep)
    if watch:
        purging.join()
    show(done, as_json)


@webhooks.command("list")
@click.option("--state", type=click.Choice([str(state) for state in DeliveryState]))
@click.option("--user", "user_id", type=USER_ID)
@limit_option(50, most=1000)
@as_json
def webhooks_list(state: str | None, user_id: int | None, limit: int, as_json: bool) -> None:
    """List deliveries with their attempts, newest first."""
    query = select(Delivery).order_by(Delivery.id.desc())
    if state:
        query = query.where(Delivery.state == state)
    if user_id:
        query = query.where(Delivery.user_id == user_id)
    show([delivery_row(row) for row in limited(query, limit)], as_json)


def delivery_row(row: Delivery) -> dict[str, Any]:
    links = ("id", "webhook_id", "user=user_id", "message=message_id")
    columns = row_of(row, *links, "state", "result=last_result")
    user = db.session.get_one(User, row.user_id)
    columns["next_attempt_at"] = endpoint.next_attempt(row, user)
    query = select(Attempt).where(Attempt.delivery_id == row.id).order_by(Attempt.id)
    attempts = [
        row_of(attempt, "at=started_at", "ms", "trigger", "result")
        for attempt in db.session.scalars(query)
    ]
    return columns | {"attempts": attempts}


@webhooks.command("redeliver")
@click.argument("delivery_id", metavar="ID", type=ROW_ID, required=False)
@click.option("--failed", is_flag=True, help="All that are dead.")
@as_json
def webhooks_redeliver(delivery_id: int | None, failed: bool, as_json: bool) -> None:
    """Attempt a delivery again now, with a fresh schedule of retries."""
    if (delivery_id is None) == (not failed):
        raise click.UsageError("give an ID or --failed")
    dead = Delivery.state == DeliveryState.DEAD
    wanted = dead if failed else Delivery.id == delivery_id
    found = select(Delivery.id, Delivery.user_id).where(wanted).order_by(Delivery.id)
    rows = db.session.execute(found).all()
    if not failed and not rows:
        raise click.BadParameter(f"there is no delivery {delivery_id}", param_hint="ID")
    release()
    for id, user_id in rows:
        transact(audit.record, "redelivered", user_id, delivery_id=id)
    done = [{"id": id, "state": redeliver(id, user_id) or "being tried"} for id, user_id in rows]
    show(done, as_json)
