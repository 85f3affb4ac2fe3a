"""A copy of the SQLite database, made while the service runs, and restored while it does not."""

import contextlib
import os
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

from service.database.engine import keep_private

# What tells an operator which backup it is, and that it is one of this service
COUNTED = ("users", "phone_numbers", "messages")
# How long another process that has the database open is waited for
IN_USE_SECONDS = 2


class Unfit(Exception):
    """A file that is no backup to restore, or a database that cannot be replaced now; the message
    says why."""


def back_up(database: Path, target: Path) -> None:
    """Copy `database` to the new file `target`, as it is at this moment (SQLite's online backup,
    https://sqlite.org/backup.html); writers do not wait. Raises FileExistsError, another OSError,
    or sqlite3.Error, and leaves no half of a copy."""
    draft = target.with_name(f".{target.name}.part")
    if target.exists():
        raise FileExistsError(target)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        source, copy = _read_only(database), sqlite3.connect(draft)
        with contextlib.closing(source), contextlib.closing(copy):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file
        os.link(draft, target)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def opened(file: Path, revisions: Collection[str]) -> Iterator[sqlite3.Connection]:
    """The backup `file`, once it is found to be sound, and of this service at one of the
    `revisions` of its schema; raises Unfit."""
    with contextlib.closing(_read_only(file)) as source:
        try:
            [found] = source.execute("PRAGMA quick_check(1)").fetchone()
            tables = {name for (name,) in source.execute("SELECT name FROM sqlite_master")}
            is_ours = tables.issuperset({"alembic_version", *COUNTED})
            select = "SELECT version_num FROM alembic_version"
            found_revisions = {name for (name,) in source.execute(select)} if is_ours else set()
        except sqlite3.Error as e:
            what = {"SQLITE_NOTADB": "is no SQLite database", "SQLITE_CORRUPT": "is damaged"}
            why = what.get(e.sqlite_errorname, f"cannot be read: {e.sqlite_errorname}")
            raise Unfit(f"{file} {why}") from e
        if found != "ok":
            raise Unfit(f"{file} is damaged: SQLite's quick_check says {found!r}")
        if not found_revisions:
            raise Unfit(f"{file} is no database of this service")
        if unknown := found_revisions.difference(revisions):
            known = f"this version knows none named {', '.join(sorted(unknown))}"
            raise Unfit(f"{file} has the schema of another version of this service: {known}")
        yield source


def counts(source: sqlite3.Connection) -> dict[str, int]:
    """How many rows some tables have."""
    select = "SELECT count(*) FROM "
    return {table: source.execute(select + table).fetchone()[0] for table in COUNTED}


def restore(source: sqlite3.Connection, database: Path) -> None:
    """Write all of `source` into `database`, in one transaction. Raises Unfit, and leaves it as it
    was, if another process has it open, or SQLite cannot write into it.

    A file that merely took its place would find the write-ahead log of a database that was killed
    still beside it, and SQLite would replay that over it.
    """
    keep_private(database)
    target = sqlite3.connect(database, timeout=IN_USE_SECONDS, isolation_level=None)
    with contextlib.closing(target):
        try:
            # Kept until it is closed. No other connection may be open, not even an idle one: its
            # process would go on with rows that are gone
            target.execute("PRAGMA locking_mode=EXCLUSIVE")
            target.execute("BEGIN EXCLUSIVE")
            target.execute("COMMIT")
            source.backup(target)
            # Else what was there before could still be read from the log
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as e:
            if e.sqlite_errorname == "SQLITE_BUSY":
                sentence = "another process has the database open: stop web and worker first"
            elif e.sqlite_errorname in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
                sentence = "the database's disk is full"
            else:
                name = database.name
                sentence = (
                    f"SQLite cannot write into {database} ({e.sqlite_errorname}): move it away, "
                    f"with {name}-wal and {name}-shm beside it, and restore again"
                )
            raise Unfit(sentence) from e


def _read_only(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)
