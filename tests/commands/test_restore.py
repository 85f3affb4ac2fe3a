"""flask restore: a backup written into the database, whatever a crash has left beside it."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from service.commands import checks
from service.database.engine import db
from tests.databases import on_sqlite

pytestmark = on_sqlite
# Another process, which has rows in the write-ahead log when it is killed
WRITER = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA wal_autocheckpoint=0")
rows = [("x" * 500,)] * 2000
database.executemany("INSERT INTO audit_entries (at, actor, action) VALUES (0, 'x', ?)", rows)
database.commit()
print("written", flush=True)
time.sleep(600)
"""


@pytest.fixture
def file(app):
    with app.app_context():
        return Path(db.engine.url.database)


@pytest.fixture
def backup(flask, make_user, tmp_path):
    """A backup with one user."""
    make_user(name="Ann")
    flask("backup", tmp_path / "backup")
    return tmp_path / "backup"


@contextlib.contextmanager
def writing(file):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, file], stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b"written\n"
        yield
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()


def close(app):
    with app.app_context():
        db.engine.dispose()


def rows(file):
    """All rows of the database, but for the audit entry of the restoration."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = database.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
        found = {name: database.execute(f"SELECT * FROM {name}").fetchall() for (name,) in tables}
    return found | {
        "audit_entries": [row for row in found["audit_entries"] if "restored" not in row],
        "sqlite_sequence": [],
    }


@pytest.mark.parametrize("is_copied", [False, True])
def test_what_a_killed_process_left_is_not_replayed_over_the_backup(
    app, flask, file, backup, make_user, is_copied
):
    """Nor over one that was copied into the file's place by hand."""
    make_user(name="Ben")
    close(app)
    with writing(file):
        pass
    log = Path(f"{file}-wal")
    assert log.stat().st_size > 1_000_000
    if is_copied:
        shutil.copy(backup, file)
    told = flask("restore", backup, "--yes", "--json")
    assert told == {"file": str(backup), "users": 1, "phone_numbers": 0, "messages": 0}
    assert [user["name"] for user in flask("users", "list", "--json")] == ["Ann"]
    close(app)
    assert rows(file) == rows(backup)
    assert {oct(path.stat().st_mode & 0o777) for path in file.parent.glob(f"{file.name}*")} == {
        "0o600"
    }
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_it_asks_and_is_audited(app, flask, file, backup, make_user):
    make_user(name="Ben")
    runner = app.test_cli_runner()
    asked = runner.invoke(args=["restore", str(backup)], input="n\n")
    assert asked.exit_code == 1
    assert f"Replace all of {file} by {backup} (1 users, 0 phone_numbers" in asked.output
    assert len(flask("users", "list", "--json")) == 2
    assert runner.invoke(args=["restore", str(backup)], input="y\n").exit_code == 0
    assert len(flask("users", "list", "--json")) == 1
    assert flask("audit", "--json")[0]["action"] == "restored"


def test_it_makes_a_database_that_is_gone(app, flask, file, backup):
    close(app)
    file.unlink()
    flask("restore", backup, "--yes")
    assert len(flask("users", "list", "--json")) == 1
    assert oct(file.stat().st_mode) == "0o100600"


def test_it_wants_web_and_worker_stopped(app, flask, file, backup):
    close(app)
    before = file.read_bytes()
    with writing(file):
        told = flask("restore", backup, "--yes", exit_code=1)
    assert "another process has the database open: stop web and worker first" in told
    assert file.read_bytes() == before


def damage(path):
    with path.open("r+b") as file:
        for page in range(2, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(os.urandom(100))


def text(path):
    path.write_text("users: Ann\n" * 1000)


def other_program(path):
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE users (id INTEGER)")


def newer(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num='9999'")
        database.commit()


def half(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (damage, "is damaged"),
        (half, "is damaged"),
        (text, "is no SQLite database"),
        (other_program, "is no database of this service"),
        (lambda path: os.truncate(path, 0), "is no database of this service"),
        (newer, "another version of this service: this version knows none named 9999"),
        (Path.unlink, "does not exist"),
    ],
)
def test_a_file_that_is_no_backup_is_refused_and_changes_nothing(
    app, flask, file, backup, spoil, sentence
):
    spoil(backup)
    close(app)
    before = file.read_bytes()
    told = flask("restore", backup, "--yes", exit_code=2 if spoil is Path.unlink else 1)
    assert sentence in told and "unexpectedly" not in told
    close(app)
    assert file.read_bytes() == before


def test_an_older_schema_is_restored_and_to_be_upgraded(app, flask, file, backup):
    with contextlib.closing(sqlite3.connect(backup)) as database:
        database.execute("UPDATE alembic_version SET version_num='0007'")
        database.commit()
    assert "run `flask db upgrade`" in flask("restore", backup, "--yes")


def test_the_database_itself_is_no_backup_of_it(flask, file):
    assert "is the database itself" in flask("restore", file, "--yes", exit_code=2)


def test_a_database_that_sqlite_cannot_open_has_to_be_moved_away(app, flask, file, backup):
    close(app)
    text(file)
    told = flask("restore", backup, "--yes", exit_code=1)
    assert f"SQLite cannot write into {file} (SQLITE_NOTADB): move it away" in told
    file.unlink()
    flask("restore", backup, "--yes")
    assert len(flask("users", "list", "--json")) == 1


def test_doctor_tells_of_a_damaged_file(app, file, make_user):
    with app.app_context():
        assert [*checks.sound_file()] == []
    close(app)
    damage(file)
    with app.app_context():
        [found] = checks.sound_file()
    assert "damaged" in found or "no sound database" in found


def test_for_mysql_it_says_what_to_use(make_app, flask, tmp_path):
    runner = make_app(DATABASE_URL="mysql://u:p@127.0.0.1/n").test_cli_runner()
    (tmp_path / "dump").touch()
    for command in ("backup", "restore"):
        told = flask(command, tmp_path / "dump", exit_code=1, runner=runner)
        assert "SQLite only; for MySQL" in told and "mariadb" in told
