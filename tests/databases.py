"""The databases that the tests run on: a migrated SQLite file each, and MariaDB, emptied each."""

import os
import shutil

import pytest

from config import Config
from service import create_app
from service.database import migrating
from service.database.engine import db
from tests import mariadb
from tests.conftest import SECRET_KEY


def skip_or_fail(reason):
    """Skip with the reason; where every part is required, a part that is missing is a failure."""
    if os.environ.get("REQUIRE_ALL", "0") not in ("", "0"):
        pytest.fail(f"REQUIRE_ALL is set, but {reason}")
    pytest.skip(reason)


def migrate(url):
    app = create_app(Config({"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY}))
    with app.app_context():
        migrating.upgrade(app)
        db.engine.dispose()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sqlite") / "migrated.sqlite3"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def mariadb_server(tmp_path_factory):
    if reason := mariadb.missing():
        skip_or_fail(reason)
    # What the tests check survives kill -9 of the server all the same: the log is in the kernel
    server = mariadb.MariaDB(
        tmp_path_factory.mktemp("mariadb"), "--innodb-flush-log-at-trx-commit=2"
    ).start()
    try:
        server.run("CREATE DATABASE migrated")
        migrate(server.url("migrated"))
        yield server
    finally:
        server.stop()


def emptied(server):
    """The migrated database without a row: quicker than migrating one for each test."""
    with server.connect("migrated") as connection, connection.cursor() as cursor:
        cursor.execute("SHOW TABLES")
        tables = [name for (name,) in cursor.fetchall() if name != "alembic_version"]
        cursor.execute("SET FOREIGN_KEY_CHECKS=0")
        for table in tables:
            if cursor.execute(f"SELECT 1 FROM {table} LIMIT 1"):
                cursor.execute(f"TRUNCATE {table}")
            else:
                cursor.execute(f"ALTER TABLE {table} AUTO_INCREMENT=1")
    return server.url("migrated")


# For what SQLite does not have: deadlocks, TLS
on_mariadb = pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
# For what is the same on every engine, and for what only SQLite has
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(params=["sqlite", "mariadb"])
def database_url(request, tmp_path):
    """DATABASE_URL of a migrated, empty database; each test runs once on each engine."""
    if request.param == "mariadb":
        return emptied(request.getfixturevalue("mariadb_server"))
    shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "test.sqlite3")
    return f"sqlite:///{tmp_path / 'test.sqlite3'}"


@pytest.fixture
def empty_database_url(request, database_url, tmp_path):
    """DATABASE_URL of a database without any table, on the same engine."""
    if database_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path / 'empty.sqlite3'}"
        return
    server = request.getfixturevalue("mariadb_server")
    server.run("CREATE DATABASE fresh")
    yield server.url("fresh")
    server.run("DROP DATABASE fresh")
