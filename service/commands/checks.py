"""The checks of `flask doctor`; each yields a sentence about what is wrong."""

import os
from collections.abc import Iterator
from datetime import timedelta

from flask import current_app
from sqlalchemy import QueuePool, text
from sqlalchemy.exc import SQLAlchemyError

from service import upstream
from service.database.engine import db
from service.database.health import unwritable
from service.database.schema import is_current
from service.logs import describe
from service.webhooks import queue


def run() -> list[str]:
    """The findings of all checks; empty if there is nothing to report."""
    return [sentence for check in CHECKS for sentence in check()]


def main_server() -> Iterator[str]:
    """Ask the main server for its countries: a real call with the real key."""
    try:
        upstream.init()
    except upstream.NotConfigured:
        for name in ("MAIN_SERVER_URL", "SYSTEM_API_KEY"):
            if not current_app.config[name]:
                yield f"{name} is not set"
    except upstream.Refused as e:
        wrong = " (is SYSTEM_API_KEY wrong?)" if e.status in (401, 403) else ""
        yield f"the main server answered {e.status}{wrong}"
    except upstream.UpstreamError as e:
        yield f"the main server cannot be used: {type(e).__name__}: {e}"


def secret_key() -> Iterator[str]:
    if current_app.config.get("SECRET_KEY_IS_OWN"):
        yield "SECRET_KEY is not set: the one in instance/secret_key serves this machine only"
    elif len(current_app.config["SECRET_KEY"]) < 32:
        yield "SECRET_KEY has fewer than 32 characters"


def schema() -> Iterator[str]:
    """The database answers, its schema is current, and a write would work."""
    try:
        if not is_current():
            yield "the database schema is not current: run `flask db upgrade`"
        if obstacle := unwritable():
            yield obstacle
    except SQLAlchemyError as e:
        yield f"the database does not answer: {describe(e)}"


def lasting_disk() -> Iterator[str]:
    """A PaaS discards a dyno's disk with the dyno (DYNO is set on Heroku and similar)."""
    if db.engine.dialect.name == "sqlite" and os.environ.get("DYNO"):
        yield "the database is SQLite on a disk that this platform throws away: set DATABASE_URL"


def connections() -> Iterator[str]:
    """The pools of all processes fit into the database server's limit."""
    if db.engine.dialect.name == "sqlite":
        return
    limits = "SELECT @@max_connections, @@max_user_connections"
    try:
        allowed = min(limit for limit in db.session.execute(text(limits)).one() if limit)
    except SQLAlchemyError:
        return  # reported by schema()
    finally:
        db.session.rollback()
    processes = current_app.config["WEB_CONCURRENCY"] + 1
    size = db.engine.pool.size() if isinstance(db.engine.pool, QueuePool) else 1
    if size * processes > allowed:
        yield (
            f"{processes} processes (WEB_CONCURRENCY and a worker) of {size} "
            f"connections are more than the {allowed} that the database server allows"
        )


def due_deliveries() -> Iterator[str]:
    """A worker claims what is due within a second: what has long been due has no worker."""
    try:
        late = queue.due_count(late=timedelta(minutes=1))
    except SQLAlchemyError:
        return  # reported by schema()
    finally:
        db.session.rollback()
    if late:
        yield f"{late} webhook deliveries are due and no worker takes them"


CHECKS = (main_server, secret_key, schema, lasting_disk, connections, due_deliveries)
