"""Whether the database could be written to, found out without a write."""

import os
import shutil
from pathlib import Path

from sqlalchemy import text

from service.database.engine import db
from service.database.writing import release

READ_ONLY = "The database is read-only"
DISK_FULL = "The database's disk is full"
# Below this, SQLite cannot even extend its write-ahead log
MIN_FREE_BYTES = 2**20
_MYSQL = text("SELECT @@global.read_only, @@global.innodb_read_only")


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
