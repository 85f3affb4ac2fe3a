"""Nobody else on the machine reads what the service keeps in files."""

import os

import pytest
from sqlalchemy import text

from service.database import migrating
from service.database.engine import db
from tests.databases import on_sqlite

FILES = ("service.sqlite3", "service.sqlite3-wal", "service.sqlite3-shm", "secret_key")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The instance folder, under the umask that most systems have."""
    monkeypatch.setattr("flask.Flask.auto_find_instance_path", lambda self: str(tmp_path / "i"))
    before = os.umask(0o022)
    yield tmp_path / "i"
    os.umask(before)


@on_sqlite
@pytest.mark.parametrize("is_earlier", [False, True])
def test_nobody_else_reads_the_database(make_app, folder, is_earlier):
    """Nor the files that an older version made."""
    if is_earlier:
        folder.mkdir(mode=0o755)
        for name in FILES[:2]:
            (folder / name).touch(0o644)
    app = make_app(DATABASE_URL="", SECRET_KEY="")
    with app.app_context():
        migrating.upgrade(app)
        with db.engine.connect() as connection:
            assert connection.execute(text("PRAGMA secure_delete")).scalar() == 1
            modes = {path.name: oct(path.stat().st_mode) for path in folder.iterdir()}
        assert modes == dict.fromkeys(FILES, "0o100600")
        assert oct(folder.stat().st_mode) == "0o40700"
        db.engine.dispose()
