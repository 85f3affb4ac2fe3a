"""The connection to the database: SQLite, MySQL, or a Galera cluster."""

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pymysql
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, MetaData, Table, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase

GALERA_NOT_READY = 1047
# A server that cannot be written to any more (--read-only, a read-only transaction, read-only mode)
# or has lost its cluster: after a failover another server has its name
UNFIT = {1290, 1792, 1836, GALERA_NOT_READY}
# How many seconds after its last use a connection is assumed to be alive
TRUSTED_SECONDS = 1
# How long a locked SQLite file is waited for, and the longest pause between two tries
SQLITE_BUSY_SECONDS = 15
SQLITE_PAUSE_SECONDS = 0.002
# Begins a transaction that takes SQLite's write lock at once, so that it does not fail half-way.
# Said by who writes: SQLAlchemy's event at each begin costs a tenth of a call
WRITE = "BEGIN IMMEDIATE"


class Base(DeclarativeBase):
    # Named constraints, so that a migration can drop them on every engine
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )

    @classmethod
    def table(cls) -> Table:
        """The table itself, for statements that bypass the ORM."""
        return cast(Table, cls.__table__)


# Rows are used after the commit: expiring them would open a new transaction.
# Parameters are hidden in error messages, which end up in the log.
db = SQLAlchemy(
    model_class=Base,
    session_options={"expire_on_commit": False},
    engine_options={"hide_parameters": True},
)


def set_up_mysql(engine: Engine, hosts: Iterable[tuple[str, int]]) -> None:
    """Connect to the first healthy one of `hosts` (name, port), starting with the last that worked.

    On a Galera cluster, every transaction sees what other nodes committed before it, and a node
    that has lost the cluster is abandoned for the next one.
    """
    ring = list(hosts)

    @event.listens_for(engine, "do_connect")
    def _connect(dialect: Any, _record: Any, args: Any, params: dict[str, Any]) -> Any:
        for is_last in [False] * (len(ring) - 1) + [True]:
            name, port = ring[0]
            try:
                connection = dialect.connect(*args, **params | {"host": name, "port": port})
                return _set_up_galera(connection)
            except dialect.loaded_dbapi.OperationalError:
                ring.append(ring.pop(0))
                if is_last:
                    raise

    @event.listens_for(engine, "checkin")
    def _note_use(_connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    event.listen(engine, "checkout", _ping)
    event.listen(engine, "handle_error", _leave_unfit_server)


def _ping(connection: Any, record: Any, _proxy: Any) -> None:
    # Pinging every time would be a third of all round trips; no server restarts within a second
    if time.monotonic() - record.info.get("used", 0) > TRUSTED_SECONDS:
        try:
            connection.ping(reconnect=False)
        except pymysql.err.Error as e:
            raise DisconnectionError from e


def _leave_unfit_server(context: Any) -> None:
    if error_code(context.original_exception) in UNFIT:
        context.is_disconnect = True


def error_code(error: object) -> object:
    """The driver's error number: the first argument of the error, or None."""
    return next(iter(getattr(error, "args", ())), None)


def _set_up_galera(connection: Any) -> Any:
    with connection.cursor() as cursor:
        if not _is_on(cursor, "VARIABLES LIKE 'wsrep_on'"):
            return connection
        if not _is_on(cursor, "STATUS LIKE 'wsrep_ready'"):
            connection.close()
            raise pymysql.err.OperationalError(GALERA_NOT_READY, "the node is not ready")
        cursor.execute("SET SESSION wsrep_sync_wait=1")
    return connection


def _is_on(cursor: Any, variable: str) -> bool:
    cursor.execute(f"SHOW {variable}")
    _, value = cursor.fetchone() or ("", "OFF")
    return bool(value == "ON")


def set_up_sqlite(engine: Engine) -> None:
    """Make SQLite safe for many threads and processes.

    Each statement is a transaction of its own, unless WRITE began one; synchronous=FULL, since
    what was acknowledged must survive a power cut. SQLite itself never waits for a lock, since that
    would stop every call of a process that is one thread.
    """

    @event.listens_for(engine, "do_connect")
    def _before(_dialect: Any, _record: Any, args: Any, _params: Any) -> None:
        keep_private(Path(args[0]))

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not emit BEGIN itself
        connection.execute("PRAGMA busy_timeout=0")
        # For good. This upgrades a lock, which no busy_timeout would wait for either
        # (https://sqlite.org/c3ref/busy_handler.html)
        _when_free(connection.execute, "PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        # What is purged is overwritten
        connection.execute("PRAGMA secure_delete=ON")

    @event.listens_for(engine, "do_execute")
    def _execute(cursor: Any, statement: str, parameters: Any, _context: Any) -> bool:
        _when_free(cursor.execute, statement, parameters)
        return True  # SQLAlchemy needs not execute it


def keep_private(path: Path) -> None:
    """Let nobody else on this machine read the database: it holds codes. SQLite gives the files
    beside it the same mode."""
    if path.name in ("", ":memory:"):
        return
    # Only what does not exist is opened: closing a file would release this process's locks on it
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        restrict(file)


def restrict(path: Path) -> None:
    """Leave a file or a folder to its owner alone, if there is one and it is ours."""
    with contextlib.suppress(OSError):
        if (mode := path.stat().st_mode) & 0o077:
            path.chmod(mode & 0o700)


def _when_free(execute: Callable[..., Any], *statement: Any) -> None:
    """Execute the statement as soon as the file is not locked; raises OperationalError if that
    takes too long."""
    give_up, pause = time.monotonic() + SQLITE_BUSY_SECONDS, 0.001
    while True:
        try:
            execute(*statement)
            return
        except sqlite3.OperationalError as e:
            # An extended code of SQLITE_BUSY, but not the one that waiting cannot help
            is_locked = e.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_locked or e.sqlite_errorcode == sqlite3.SQLITE_BUSY_SNAPSHOT:
                raise
            if time.monotonic() > give_up:
                raise
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, SQLITE_PAUSE_SECONDS)
