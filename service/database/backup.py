"""A copy of the SQLite database, made while the service runs."""

import contextlib
import os
import sqlite3
from pathlib import Path


def back_up(database: Path, target: Path) -> None:
    """Copy `database` to the new file `target`, as it is at this moment (SQLite's online backup,
    https://sqlite.org/backup.html); writers do not wait. Raises FileExistsError, another OSError,
    or sqlite3.Error, and leaves no half of a copy."""
    draft = target.with_name(f".{target.name}.part")
    if target.exists():
        raise FileExistsError(target)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        source, copy = sqlite3.connect(f"file:{database}?mode=ro", uri=True), sqlite3.connect(draft)
        with contextlib.closing(source), contextlib.closing(copy):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file
        os.link(draft, target)
    finally:
        draft.unlink(missing_ok=True)
