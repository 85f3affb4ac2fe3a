"""The checks of `flask doctor`; each yields a sentence about what is wrong."""

import contextlib
import functools
import ipaddress
import logging
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from flask import Flask, current_app
from sqlalchemy import QueuePool, select, text
from sqlalchemy.exc import SQLAlchemyError

from service import retention, upstream
from service.commands.secrets import SEALED
from service.database.columns import utcnow
from service.database.engine import db
from service.database.health import NOT_CURRENT, explain, unwritable
from service.database.models import Message, Provider, User
from service.database.schema import is_current
from service.keys import is_readable, is_under_secret_key
from service.logs import event
from service.webhooks import queue

MIN_SYSTEM_KEY = 16
Check = Callable[[], Iterator[str]]


def run() -> list[str]:
    """The findings of all checks; empty if there is nothing to report."""
    return list(dict.fromkeys(sentence for check in CHECKS for sentence in check()))


def log_local(app: Flask) -> None:
    """Log what is misconfigured, but for what only the main server could tell."""
    with app.app_context():
        for sentence in (sentence for check in LOCAL for sentence in check()):
            event("misconfigured", logging.WARNING, problem=sentence)


def needs_database(check: Check) -> Check:
    """Let a check find nothing where the database is away: schema() says so."""

    @functools.wraps(check)
    def run() -> Iterator[str]:
        try:
            yield from check()
        except SQLAlchemyError:
            return
        finally:
            db.session.rollback()

    return run


def main_server() -> Iterator[str]:
    """Ask the main server for its countries: a real call with the real key."""
    try:
        upstream.init()
    except upstream.NotConfigured:
        return  # configured() says so
    except upstream.Refused as e:
        wrong = " (is SYSTEM_API_KEY wrong?)" if e.status in (401, 403) else ""
        yield f"the main server answered {e.status}{wrong}"
    except upstream.UpstreamError as e:
        yield f"the main server cannot be used: {type(e).__name__}: {e}"


def configured() -> Iterator[str]:
    """The main server is named, and its key."""
    for name in ("MAIN_SERVER_URL", "SYSTEM_API_KEY"):
        if not current_app.config[name]:
            yield f"{name} is not set"


def system_key() -> Iterator[str]:
    """The main server chooses the key, and tells its address."""
    if 0 < len(current_app.config["SYSTEM_API_KEY"] or "") < MIN_SYSTEM_KEY:
        yield (
            f"SYSTEM_API_KEY has fewer than {MIN_SYSTEM_KEY} characters, so it can be guessed: "
            "ask the main server for a longer one"
        )
    url = urlsplit(current_app.config["MAIN_SERVER_URL"] or "")
    if url.scheme == "http" and not is_this_machine(url.hostname or ""):
        yield "MAIN_SERVER_URL is http, which shows SYSTEM_API_KEY to all on the way: use https"


def is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def secret_key() -> Iterator[str]:
    if current_app.config.get("SECRET_KEY_IS_OWN"):
        yield "SECRET_KEY is not set: the one in instance/secret_key serves this machine only"
    elif len(current_app.config["SECRET_KEY"]) < 32:
        yield "SECRET_KEY has fewer than 32 characters"


def schema() -> Iterator[str]:
    """The database answers, its schema is current, and a write would work."""
    try:
        if not is_current():
            yield NOT_CURRENT
        if obstacle := unwritable():
            yield obstacle
    except SQLAlchemyError as e:
        yield explain(e)


def lasting_disk() -> Iterator[str]:
    """A PaaS discards a dyno's disk with the dyno (DYNO is set on Heroku and similar)."""
    if db.engine.dialect.name == "sqlite" and os.environ.get("DYNO"):
        yield "the database is SQLite on a disk that this platform throws away: set DATABASE_URL"


def private_files() -> Iterator[str]:
    """The database's file and instance/ are their owner's alone; they are made so at each start,
    unless they are another's."""
    paths = [Path(current_app.instance_path)]
    if db.engine.dialect.name == "sqlite" and db.engine.url.database:
        paths.append(Path(db.engine.url.database))
    for path in paths:
        with contextlib.suppress(OSError):  # it is not there
            if path.stat().st_mode & 0o077:
                yield f"other accounts of this machine can read {path.name}: run `chmod go= {path}`"


def sound_file() -> Iterator[str]:
    """SQLite finds its file sound. It reads all of it, so no process asks this when it starts."""
    if db.engine.dialect.name != "sqlite":
        return
    try:
        found = db.session.scalar(text("PRAGMA quick_check(1)"))
    except SQLAlchemyError as e:
        yield explain(e)
        return
    finally:
        db.session.rollback()
    if found != "ok":
        yield f"the database's file is damaged: restore a backup (quick_check says {found!r})"


@needs_database
def connections() -> Iterator[str]:
    """The pools of all processes fit into the database server's limit."""
    if db.engine.dialect.name == "sqlite":
        return
    limits = "SELECT @@max_connections, @@max_user_connections"
    allowed = min(limit for limit in db.session.execute(text(limits)).one() if limit)
    processes = current_app.config["WEB_CONCURRENCY"] + 1
    size = db.engine.pool.size() if isinstance(db.engine.pool, QueuePool) else 1
    if size * processes > allowed:
        yield (
            f"{processes} processes (WEB_CONCURRENCY and a worker) of {size} "
            f"connections are more than the {allowed} that the database server allows"
        )


@needs_database
def due_deliveries() -> Iterator[str]:
    """A worker claims what is due within a second: what has long been due has no worker."""
    late, _ = queue.due(late=timedelta(minutes=1))
    if late:
        yield (
            f"{late} webhook deliveries have been due for a minute: no worker runs, "
            "or more are due than it can send"
        )


@needs_database
def old_messages() -> Iterator[str]:
    """The worker purges daily; a day and an hour late, it does not."""
    days = current_app.config["RETENTION_DAYS"]
    last = f"{at:%Y-%m-%d %H:%M}" if (at := retention.purged_at()) else "never"
    oldest = db.session.scalar(select(Message.created_at).order_by(Message.id).limit(1))
    if oldest and oldest < utcnow() - timedelta(days=days + 1, hours=1):
        yield (
            f"there are messages older than RETENTION_DAYS ({days}), since {oldest:%Y-%m-%d}, "
            f"and the last purge was {last}: run a worker, which purges daily, or `flask purge`"
        )


def last_purge() -> datetime | None:
    """When the last purge ended; None if there was none, or the database is away."""
    try:
        return retention.purged_at()
    except SQLAlchemyError:
        return None
    finally:
        db.session.rollback()


@needs_database
def sealed_secrets() -> Iterator[str]:
    """SECRET_KEY opens every secret that is stored."""
    for title, column in (("users' webhook secrets", User.webhook_secret),
                          ("providers' secrets", Provider.secret)):  # fmt: skip
        stored = select(column).where(column.is_not(None))
        if column.class_ is User:
            stored = stored.where(User.removed_at.is_(None))
        rows = db.session.scalars(stored.execution_options(yield_per=1000))
        if lost := sum(not is_readable(sealed) for sealed in rows if sealed):
            yield f"{lost} {title} are sealed under another SECRET_KEY: set it, or rotate them"


@needs_database
def former_secrets() -> Iterator[str]:
    """No stored secret is lost when SECRET_KEY_FALLBACKS is emptied."""
    if not current_app.config["SECRET_KEY_FALLBACKS"]:
        return
    former = 0
    for column in SEALED:
        rows = db.session.scalars(select(column).execution_options(yield_per=1000))
        former += sum(
            is_readable(sealed) and not is_under_secret_key(sealed) for sealed in rows if sealed
        )
    if former:
        yield f"{former} secrets are still under a former SECRET_KEY: run `flask secrets reseal`"


# What a process logs when it starts, and what `flask doctor` adds to it
LOCAL = (configured, system_key, secret_key, schema, lasting_disk, private_files, connections)
CHECKS = (
    main_server,
    *LOCAL,
    sound_file,
    due_deliveries,
    old_messages,
    sealed_secrets,
    former_secrets,
)
