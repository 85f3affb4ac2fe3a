"""What is wrong with the database, in one sentence: as it is now, or as an error told it."""

import os
import shutil
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.database.engine import db, error_code
from service.database.writing import release
from service.logs import describe

NOT_CURRENT = "the database schema is not current: run `flask db upgrade`"
READ_ONLY = "The database is read-only"
DISK_FULL = "The database's disk is full"
BUSY = "the database is busy: all connections are in use, or it is locked"
AWAY = "the database does not answer: is its server running, and is DATABASE_URL right?"
LOGIN = "the database server refuses the user, or the password, of DATABASE_URL"
# By the error's number of MySQL, or the first part of its name of SQLite
_SENTENCES: dict[object, str] = {
    **dict.fromkeys((1146, 1054), NOT_CURRENT),
    **dict.fromkeys((1044, 1045, 1698), LOGIN),
    1049: "the database that DATABASE_URL names does not exist",
    **dict.fromkeys((2002, 2003, 2005, 2006, 2013), AWAY),
    **dict.fromkeys((1040, 1203, 1205, 1213, "SQLITE_BUSY", "SQLITE_LOCKED"), BUSY),
    **dict.fromkeys((1290, 1792, 1836, "SQLITE_READONLY"), READ_ONLY),
    **dict.fromkeys((1021, 1114, "SQLITE_FULL"), DISK_FULL),
    "SQLITE_CANTOPEN": "the database's file cannot be opened: is its folder there, and yours?",
    **dict.fromkeys(
        ("SQLITE_NOTADB", "SQLITE_CORRUPT"), "the database's file is no sound database"
    ),
}
# Below this, SQLite cannot even extend its write-ahead log
MIN_FREE_BYTES = 2**20
_MYSQL = text("SELECT @@global.read_only, @@global.innodb_read_only")


def explain(error: SQLAlchemyError) -> str:
    """What an error of the database means to its operator, without anything that it quotes."""
    if isinstance(error, PoolTimeout):
        return BUSY
    if not isinstance(error, DBAPIError):
        return f"the database failed: {describe(error)}"
    if is_old_schema(error):
        return NOT_CURRENT
    name = "_".join(str(getattr(error.orig, "sqlite_errorname", "")).split("_")[:2])
    sentence = _SENTENCES.get(name or error_code(error.orig))
    return sentence or f"the database failed: {describe(error)}"


def is_old_schema(error: DBAPIError) -> bool:
    """Whether a table or a column is missing."""
    told = str(error.orig)
    is_missing = any(part in told for part in ("no such table", "no such column", "has no column"))
    return is_missing or _SENTENCES.get(error_code(error.orig)) is NOT_CURRENT


def unwritable() -> str | None:
    """Why a write would fail now, in one sentence; None if nothing indicates that it would.

    Raises SQLAlchemyError if the database is down.
    """
    if db.engine.dialect.name == "sqlite":
        return _unwritable_file(db.engine.url.database or ":memory:")
    try:
        flags = db.session.execute(_MYSQL).one()
    finally:
        release()
    return READ_ONLY if any(flag not in (0, "OFF") for flag in flags) else None


def _unwritable_file(name: str) -> str | None:
    file = Path(name)
    if not file.exists():
        return None  # in memory, or not created yet
    # SQLite writes its log beside the file
    if not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
        return READ_ONLY
    return DISK_FULL if shutil.disk_usage(file.parent).free < MIN_FREE_BYTES else None
