"""What is deleted when its time is over, in small transactions."""

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from flask import Flask, current_app
from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.exc import IntegrityError

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import (
    Attempt,
    AuditEntry,
    Chore,
    Delivery,
    DeliveryState,
    Message,
)
from service.database.writing import Transaction, is_duplicate_key, release, transact
from service.logs import event

BATCH = 500
# The audit trail is kept so many times as long as messages
AUDIT_FACTOR = 12
PURGE = "purge"
EVERY, LEASE = timedelta(days=1), timedelta(hours=1)
LOOK_SECONDS = 60

Record = Attempt | AuditEntry | Delivery | Message
# Called with the name of a table and how many of its rows were deleted so far
OnBatch = Callable[[str, int], None]


def purge(on_batch: OnBatch) -> dict[str, int]:
    """Delete messages and ended deliveries older than RETENTION_DAYS, and audit entries that are
    AUDIT_FACTOR times as old; returns the rows by table. What `on_batch` raises ends it."""
    now, kept = utcnow(), timedelta(days=current_app.config["RETENTION_DAYS"])
    before = now - kept
    is_over = (Delivery.created_at < before) & (Delivery.state != DeliveryState.PENDING)
    is_undelivered = ~select(Delivery.id).where(Delivery.message_id == Message.id).exists()
    old_delivery = select(Delivery.id).where(is_over)
    is_old_attempt = (Attempt.started_at < before) | Attempt.delivery_id.in_(old_delivery)
    is_old_message = (Message.created_at < before) & is_undelivered
    is_old_entry = AuditEntry.at < now - AUDIT_FACTOR * kept
    counts = {
        "attempts": delete_in_batches(Attempt, is_old_attempt, on_batch),
        "deliveries": delete_in_batches(Delivery, is_over, on_batch),
        "messages": delete_in_batches(Message, is_old_message, on_batch),
        "audit_entries": delete_in_batches(AuditEntry, is_old_entry, on_batch),
    }
    transact(_note_done)
    truncate_log()
    return counts


def truncate_log() -> None:
    """Have SQLite forget the log in which what was deleted may still stand."""
    if db.engine.dialect.name == "sqlite":
        with db.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def delete_in_batches(
    model: type[Record], condition: ColumnElement[bool], on_batch: OnBatch
) -> int:
    """Delete the rows in batches, each in its own short transaction; returns their number."""
    total = 0
    while True:
        ids = list(db.session.scalars(select(model.id).where(condition).limit(BATCH)))
        release()
        if not ids:
            return total
        transact(_delete, model, ids)
        total += len(ids)
        on_batch(model.__tablename__, total)


def purged_at() -> datetime | None:
    """When the last purge ended."""
    return db.session.scalar(select(Chore.done_at).where(Chore.name == PURGE))


def purge_daily(app: Flask, stop: threading.Event) -> None:
    """Purge once a day until `stop` is set; of several processes, one does."""

    def go_on(_table: str, _deleted: int) -> None:
        if stop.is_set():
            raise InterruptedError

    with app.app_context():
        while not stop.is_set():
            try:
                if _claim_once():
                    counts: dict[str, Any] = dict(purge(go_on))
                    event("purged", **counts)
            except InterruptedError:
                return
            except Exception:
                event("purge_failed", logging.ERROR, exc_info=True)
            release()
            stop.wait(LOOK_SECONDS)


def _claim_once() -> bool:
    """Whether the purge is due and this process's to do."""
    try:
        return transact(_claim)
    except IntegrityError as e:
        if is_duplicate_key(e):
            return False  # another process was quicker
        raise


def _claim(tx: Transaction) -> bool:
    now = utcnow()
    chore = tx.session.get(Chore, PURGE, with_for_update=True, populate_existing=True)
    if chore is None:
        chore = Chore(name=PURGE)
        tx.session.add(chore)
    is_done = chore.done_at is not None and chore.done_at > now - EVERY
    if is_done or (chore.leased_until is not None and chore.leased_until > now):
        return False
    chore.leased_until = now + LEASE
    tx.session.flush()
    return True


def _note_done(tx: Transaction) -> None:
    tx.upsert(Chore, {"name": PURGE}, {"done_at": utcnow(), "leased_until": None})


def _delete(tx: Transaction, model: type[Record], ids: list[int]) -> None:
    tx.execute(delete(model).where(model.id.in_(ids)))
