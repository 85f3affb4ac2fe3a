"""The database: URLs, transactions that are tried again, migrations, several processes."""

import contextlib
import functools
import os
import shutil
import sqlite3
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
import requests
from alembic.script import ScriptDirectory
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flask_migrate import downgrade, upgrade
from sqlalchemy import event, func, inspect, select, text
from sqlalchemy.exc import DBAPIError

from config import POOL, POOL_SIZE, Config, ConfigError, database
from service.database import migrating, schema
from service.database.columns import utcnow
from service.database.engine import WRITE, db
from service.database.models import Message, Operator, PhoneNumber, SystemSummary, User, UserSummary
from service.database.writing import release, transact, transact_within
from service.webhooks import endpoint
from tests.conftest import SECRET_KEY, SYSTEM_KEY
from tests.databases import on_mariadb, on_sqlite, skip_or_fail
from tests.fixtures import BIN, ROOT
from tests.forms import offered, post, token
from tests.mariadb import MariaDB, missing
from tests.meanwhile import answer, in_threads, listening
from tests.peers import raw_server, sandbox, serving, until

# --- DATABASE_URL -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "hosts", "encrypted"),
    [
        ("mysql://u:p@h/n", [("h", 3306)], False),
        ("mysql2://u:p@h:3307/n?reconnect=true", [("h", 3307)], False),
        ("mysql+pymysql://u:p%40@h/n?charset=utf8&reconnect=true", [("h", 3306)], False),
        ("mariadb://u:p@h/n?useSSL=false&autoReconnect=true", [("h", 3306)], False),
        ("mysql://u:p@h:25060/n?ssl-mode=REQUIRED", [("h", 25060)], True),
        ("mysql://u:p@h/n?ssl_mode=VERIFY_IDENTITY", [("h", 3306)], True),
        ("mysql://u:p@h/n?sslmode=DISABLED", [("h", 3306)], False),
        ("mysql://u:p@a:1,b,[::1]:3/n", [("a", 1), ("b", 3306), ("::1", 3)], False),
    ],
)
def test_database_url_as_add_ons_give_it(url, hosts, encrypted):
    config = Config({"DATABASE_URL": url})
    assert hosts == config.DATABASE_HOSTS
    assert config.SQLALCHEMY_DATABASE_URI.drivername == "mysql+pymysql"
    assert not config.SQLALCHEMY_DATABASE_URI.query
    connect = config.SQLALCHEMY_ENGINE_OPTIONS["connect_args"]
    assert isinstance(connect.get("ssl"), ssl.SSLContext) == encrypted


@pytest.mark.parametrize(
    "name", ["JAWSDB_URL", "JAWSDB_MARIA_URL", "CLEARDB_DATABASE_URL", "MYSQL_URL"]
)
def test_an_add_ons_variable_counts_when_database_url_is_unset(name):
    given = {name: "mysql://u:p@add-on/n"}
    assert Config(given).SQLALCHEMY_DATABASE_URI.host == "add-on"
    own = Config(given | {"DATABASE_URL": "sqlite:///x"}).SQLALCHEMY_DATABASE_URI
    assert own == "sqlite:///x"


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:p@h", "mysql:///n", "postgres://u:p@h/n", "mysql://u@h:x/n", "mysql://u@h:65536/n",
        "mysql://u@a,/n", "nonsense", "mysql://u@h/n?ssl-mode=maybe", "mysql://u@h/n?ssl-ca=/none",
    ],
)  # fmt: skip
def test_a_wrong_database_url_is_named_and_not_repeated(url):
    with pytest.raises(ConfigError, match="DATABASE_URL") as e:
        database(url)
    assert url not in str(e.value)


def certificate(folder):
    """A self-signed certificate for `db.test`, as files that MariaDB reads."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "db.test")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("db.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )


@pytest.fixture(scope="session")
def tls_server(tmp_path_factory):
    if reason := missing():
        skip_or_fail(reason)
    folder = tmp_path_factory.mktemp("tls")
    certificate(folder)
    files = (f"--ssl-cert={folder}/cert.pem", f"--ssl-key={folder}/key.pem")
    server = MariaDB(folder, *files).start()
    server.run("CREATE DATABASE n")
    yield server
    server.stop()


@on_mariadb
@pytest.mark.parametrize(
    ("query", "encrypted"),
    [
        ("ssl-mode=DISABLED", False),
        ("ssl-mode=PREFERRED", True),
        ("ssl-mode=REQUIRED", True),
        ("ssl-mode=VERIFY_CA&ssl-ca={folder}/cert.pem", True),
        ("ssl-ca={folder}/cert.pem", True),
        ("ssl-mode=VERIFY_CA", None),
        ("ssl-mode=VERIFY_IDENTITY&ssl-ca={folder}/cert.pem", None),
    ],
)
def test_ssl_mode_against_a_server_with_tls(make_app, tls_server, query, encrypted):
    """None: refused, since the certificate is of nobody we trust, or of another name."""
    url = tls_server.url("n").partition("?")[0] + "?" + query.format(folder=tls_server.folder)
    with make_app(DATABASE_URL=url).app_context():
        if encrypted is None:
            with pytest.raises(DBAPIError):
                db.session.execute(text("SELECT 1"))
        else:
            _, cipher = db.session.execute(text("SHOW STATUS LIKE 'Ssl_cipher'")).one()
            assert bool(cipher) == encrypted


def test_connections_are_set_up_as_promised(app):
    with app.app_context():
        if db.engine.dialect.name == "sqlite":
            pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            found = [db.session.scalar(text(f"PRAGMA {name}")) for name in pragmas]
            assert found == ["wal", 2, 1, 0]  # SQLite itself never waits
        else:
            variables = "@@tx_isolation, @@character_set_connection, @@innodb_lock_wait_timeout"
            found = db.session.execute(text(f"SELECT {variables}")).one()
            assert tuple(found) == ("READ-COMMITTED", "utf8mb4", 10)
            assert db.engine.pool.size() == POOL_SIZE
            for table in inspect(db.engine).get_table_names():
                options = inspect(db.engine).get_table_options(table)
                assert options["mysql_engine"] == "InnoDB"
                if table != "alembic_version":
                    assert options["mysql_default charset"] == "utf8mb4"


def test_emoji_and_microseconds_come_back_as_they_went(app, client, make_provider):
    sms_text = "код 🔑 ١٢٣٤ \U0001f600 \u202e"
    before = utcnow()
    path = make_provider()
    assert client.post(path, json={"to": "123456", "text": sms_text}).status_code == 200
    with app.app_context():
        message = db.session.scalar(select(Message))
        assert message.sms_text == sms_text
        assert before <= message.created_at <= utcnow()


# --- transactions that are tried again ----------------------------------------------------


@pytest.fixture
def two_users(make_user):
    return [make_user().id, make_user().id]


def rename(user_id, name):
    db.session.execute(text("UPDATE users SET name = :n WHERE id = :i"), {"n": name, "i": user_id})


@on_mariadb
def test_a_real_deadlock_is_tried_again_as_a_whole(app, two_users):
    """Two transactions lock two rows in opposite order, so that one is the victim (1213)."""
    both_hold_one = threading.Barrier(2, timeout=60)
    runs = []

    def call(i):
        first, second = two_users if i else reversed(two_users)

        def work(tx):
            runs.append(i)
            rename(first, f"by {i}")
            if len(runs) <= 2:
                both_hold_one.wait()
            rename(second, f"by {i}")

        with app.app_context():
            transact(work)

    in_threads(2, call)
    with app.app_context():
        assert len(set(db.session.scalars(select(User.name)))) == 1  # one of them, wholly
        assert len(runs) == 3


def test_several_users_are_counted_in_one_order(app, two_users):
    """Whatever theirs is: two that lock each other's rows in turn would be a deadlock."""
    first, second = sorted(two_users)
    with app.app_context():
        counted = []

        def note(_connection, _cursor, statement, parameters, *_):
            if "INTO user_summaries" in statement:
                counted.append(
                    [row["user_id"] if isinstance(row, dict) else row[0] for row in parameters]
                )

        with listening(app, before_cursor_execute=note):
            transact(lambda tx: tx.count_delivered({second: 1, first: 2}, utcnow()))
        assert counted == [[first, second]]
        rows = db.session.scalars(select(UserSummary).order_by(UserSummary.user_id))
        assert [row.webhooks_delivered for row in rows] == [2, 1]
        assert db.session.scalar(select(func.sum(SystemSummary.webhooks_delivered))) == 3


@pytest.fixture
def locked_out(app, database_url, monkeypatch):
    """Somebody else writes, and who waits for that gives up soon.

    Gives `errors`, the numbers of the failures so far, and `release`, called after each.
    """
    state = SimpleNamespace(errors=[], release=lambda: None)
    monkeypatch.setattr("service.database.engine.SQLITE_BUSY_SECONDS", 0.01)
    with app.app_context():
        engine = db.engine
        if not database_url.startswith("sqlite"):
            engine.dispose()  # until then a connection has the promised patience

            @event.listens_for(engine, "connect")
            def hurry(connection, _record):
                connection.query("SET innodb_lock_wait_timeout=1")

        @event.listens_for(engine, "handle_error")
        def failed(context):
            state.errors.append(str(context.original_exception))
            state.release()

        with engine.connect() as holder:
            if engine.dialect.name == "sqlite":
                holder.exec_driver_sql(WRITE)
            holder.execute(text("UPDATE users SET name = 'holder'"))
            state.rollback = holder.rollback
            yield state


def test_a_lock_held_too_long_is_tried_again(app, two_users, locked_out):
    """SQLite "database is locked", MySQL 1205: the whole of it, and counted once."""
    locked_out.release = locked_out.rollback

    def work(tx):
        tx.count(None, utcnow(), requests=1)  # MySQL takes back the last statement only
        rename(two_users[0], "got there")

    transact(work)
    assert len(locked_out.errors) == 1
    assert "locked" in locked_out.errors[0] or "1205" in locked_out.errors[0]
    assert db.session.get(User, two_users[0]).name == "got there"
    assert db.session.scalar(select(func.sum(SystemSummary.requests))) == 1


def test_a_lock_that_is_never_free_is_given_up(app, two_users, locked_out):
    """After the patience, with longer and longer pauses between the tries."""
    with pytest.raises(DBAPIError, match=r"locked|1205"):
        transact_within(0.5, lambda tx: rename(two_users[0], "never"))
    # At least 0.01 + 0.02 + 0.04 + … seconds between them
    assert 1 <= len(locked_out.errors) <= 7
    assert not db.session().in_transaction()


PASSING = [1213, 1205, 1053, 2003, 2006, 2013, 2055, 1040, 1047, 1290, 1792, 1836]


@on_mariadb
def test_a_server_that_becomes_read_only_is_left_for_the_one_that_has_its_name(
    app, client, make_app, mariadb_server, two_users
):
    """A failover: the connection is given up, and the transaction run again on a fresh one."""
    mariadb_server.run("CREATE OR REPLACE USER app@'127.0.0.1'")  # read_only does not bind root
    mariadb_server.run("GRANT ALL ON migrated.* TO app@'127.0.0.1'")
    url = mariadb_server.url("migrated").replace("root@", "app@")
    seen = []

    def work(tx):
        seen.append(db.session.scalar(text("SELECT CONNECTION_ID()")))
        if len(seen) > 1:
            mariadb_server.run("SET GLOBAL read_only=0")
        rename(two_users[0], "written")

    with make_app(DATABASE_URL=url).app_context():
        mariadb_server.run("SET GLOBAL read_only=1")
        try:
            transact(work)
        finally:
            mariadb_server.run("SET GLOBAL read_only=0")
        assert db.session.get(User, two_users[0]).name == "written"
    assert len(set(seen)) == len(seen) == 2


@on_mariadb
def test_healthz_says_that_the_server_is_read_only(client, flask, mariadb_server):
    assert client.get("/healthz").status_code == 200
    mariadb_server.run("SET GLOBAL read_only=1")
    try:
        response = client.get("/healthz")
        problems = flask("doctor", "--json", exit_code=1)["problems"]
    finally:
        mariadb_server.run("SET GLOBAL read_only=0")
    assert answer(response) == (503, "The database is read-only")
    assert "The database is read-only" in problems


@on_sqlite
@pytest.mark.parametrize(
    ("module", "name", "value", "sentence"),
    [
        (os, "access", lambda path, mode: path.suffix != ".sqlite3", "The database is read-only"),
        (os, "access", lambda path, mode: path.suffix == ".sqlite3", "The database is read-only"),
        (
            shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20 - 1),
            "The database's disk is full",
        ),
    ],
)  # fmt: skip
def test_healthz_says_why_sqlite_could_not_write(
    client, monkeypatch, module, name, value, sentence
):
    """As the system would: who tests may be root, whom no file refuses."""
    assert client.get("/healthz").status_code == 200
    monkeypatch.setattr(module, name, value)
    assert answer(client.get("/healthz")) == (503, sentence)


@on_mariadb
@pytest.mark.parametrize("code", PASSING)
def test_what_passes_on_mysql_is_tried_again(app, two_users, code):
    """Deadlock, lock wait, shutdown, no server, lost connections, too many of them, Galera."""
    connections = []

    def work(tx):
        connections.append(db.session.scalar(text("SELECT CONNECTION_ID()")))
        tx.count(two_users[0], utcnow(), requests=1)
        if len(connections) == 1:
            db.session.execute(text(f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = {code}"))

    with app.app_context():
        transact(work)
        assert len(connections) == 2
        assert db.session.scalar(select(func.sum(UserSummary.requests))) == 1
        if code == 1047:  # a node that has lost the others is left for another one
            assert len(set(connections)) == 2


@on_mariadb
def test_a_lost_connection_is_tried_again(app, two_users):
    runs = []

    def work(tx):
        runs.append(1)
        rename(two_users[0], f"run {len(runs)}")
        if len(runs) == 1:
            me = db.session.scalar(text("SELECT CONNECTION_ID()"))
            with db.engine.connect() as other:
                other.execute(text(f"KILL CONNECTION {me}"))
        rename(two_users[1], f"run {len(runs)}")

    with app.app_context():
        transact(work)
        assert set(db.session.scalars(select(User.name))) == {"run 2"}


@on_mariadb
def test_a_connection_that_died_while_idle_is_replaced_before_it_is_used(
    client, make_user, mariadb_server
):
    """A mere read is not tried again: without a look at the connection it would be a 500."""
    path = f"/api/numbers/{make_user().key}"
    assert client.get(path).status_code == 200
    sql = "SELECT id FROM information_schema.processlist WHERE db = 'migrated'"
    killed = [id for (id,) in mariadb_server.run(sql)]
    for id in killed:
        mariadb_server.run(f"KILL CONNECTION {id}")
    time.sleep(1.1)  # a connection used within a second is taken to be alive
    assert killed
    assert client.get(path).status_code == 200


@on_mariadb
def test_nodes_are_tried_in_turn_and_the_one_that_answered_is_kept(make_app, mariadb_server):
    tried = []

    def hang_up(connection, _stopped):
        tried.append(1)

    with raw_server(hang_up) as dead:
        port = dead.rpartition(":")[2]
        nodes = f"127.0.0.1:{port},127.0.0.1:{mariadb_server.port}"
        with make_app(DATABASE_URL=f"mysql://root@{nodes}/migrated").app_context():
            for _ in range(3):
                assert db.session.scalar(text("SELECT 1")) == 1
                db.session.remove()
                db.engine.dispose()
        assert len(tried) == 1
        url = f"mysql://root@127.0.0.1:{port},127.0.0.1:{port}/migrated"
        with make_app(DATABASE_URL=url).app_context(), pytest.raises(DBAPIError):
            db.session.scalar(text("SELECT 1"))
        assert len(tried) == 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_work_that_fails_changes_nothing(app, two_users, error):
    """Not even with the next transaction, which the same thread or another one makes."""

    def work(tx):
        tx.count(two_users[0], utcnow(), requests=1)
        rename(two_users[0], "half")
        raise error

    with app.app_context():
        with pytest.raises(error):
            transact(work)
        assert not db.session().in_transaction()

        def next_one(_):
            with app.app_context():
                transact(lambda tx: rename(two_users[1], "next"))

        in_threads(1, next_one)
        transact(lambda tx: None)
        assert set(db.session.scalars(select(User.name))) == {"Ann", "next"}
        assert db.session.scalar(select(func.count()).select_from(UserSummary)) == 0


def test_what_does_not_pass_is_not_tried_again(app):
    runs = []

    def wrong(tx):
        runs.append(1)
        db.session.execute(text("SELECT nonsense FROM users"))

    with app.app_context(), pytest.raises(DBAPIError):
        transact(wrong)
    assert len(runs) == 1


@on_sqlite
def test_on_sqlite_a_writer_has_the_lock_from_the_start_and_a_reader_never(app, tmp_path):
    """One that took it later would be refused half-way, when another was quicker."""
    other = sqlite3.connect(tmp_path / "test.sqlite3", isolation_level=None, timeout=0)

    def refused(tx):
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")

    with contextlib.closing(other), app.app_context():
        transact(refused)
        assert db.session.scalar(select(func.count()).select_from(User)) == 0
        other.execute("BEGIN IMMEDIATE")
        assert db.session.scalar(select(func.count()).select_from(User)) == 0
        other.execute("ROLLBACK")


@on_sqlite
def test_who_waits_for_the_turn_to_write_holds_no_connection(app):
    """Threads of a process write one after the other; the pool of 3 is there for the others."""
    waiting, go_on = threading.Barrier(POOL_SIZE, timeout=60), threading.Event()

    def call(i):
        with app.app_context():
            db.session.scalar(text("SELECT 1"))  # so it has a connection
            if i == 0:
                transact(lambda tx: (waiting.wait(), go_on.wait(60)))
            else:
                waiting.wait()
                transact(lambda tx: None)

    callers = threading.Thread(target=in_threads, args=(POOL_SIZE, call))
    callers.start()
    try:
        with app.app_context():
            pool = db.engine.pool
            until(lambda: pool.checkedout() == 1)
            time.sleep(0.2)  # who does not wait for the turn has asked for the lock by then
            assert pool.checkedout() == 1
            assert db.session.scalar(text("SELECT 1")) == 1
    finally:
        go_on.set()
        callers.join()


@on_mariadb
def test_of_two_rotations_that_overlap_the_second_sees_the_first(app, make_user, mariadb_server):
    """It waits for the user's row, and then finds that its offer is out of date."""
    user, told = make_user(), {}
    browsers = []
    for _ in range(2):
        browser = app.test_client()
        post(browser, "/login", api_key=user.key)
        key, form = offered(browser, "key", user.key)
        browsers.append((browser, key, form | {"csrf_token": token(browser, "/logout")}))

    def rotate(browser, key, form):
        browser.post("/profile/key", data=form)
        told[key] = browser.get("/profile/edit").status_code == 200

    has_the_row = "SELECT 1 FROM information_schema.processlist WHERE state = 'User lock'"
    threads = [threading.Thread(target=rotate, args=args) for args in browsers]
    gate = "IF GET_LOCK('gate', 60) THEN DO RELEASE_LOCK('gate'); END IF;"
    mysql_trigger(app, "UPDATE", "users", gate)
    try:
        with mariadb_server.connect() as holder, holder.cursor() as cursor:
            cursor.execute("SELECT GET_LOCK('gate', 0)")
            threads[0].start()
            until(lambda: mariadb_server.run(has_the_row))
            threads[1].start()
            until(mariadb_server.row_lock_waits)
        for thread in threads:
            thread.join()
    finally:
        drop_triggers(app)
    (_, first, _), (_, second, _) = browsers
    assert told == {first: True, second: False}
    statuses = [app.test_client().get(f"/api/numbers/{key}").status_code for key in told]
    assert statuses == [200 if done else 401 for done in told.values()]


# --- rows ---------------------------------------------------------------------------------


def test_times_come_back_in_utc_whatever_zone_they_were_given_in(app, make_user):
    given = datetime(2026, 3, 1, 1, 30, 0, 123456, timezone(timedelta(hours=2)))
    user = make_user(created_at=given)
    with app.app_context():
        row = db.session.get(User, user.id, populate_existing=True)
        assert row.created_at.isoformat() == "2026-02-28T23:30:00.123456+00:00"
        assert row.webhook_open_until is None


def test_counts_are_the_days_and_spread_over_the_shards(app, two_users):
    """A count of nobody is the deployment's alone; a day is UTC's."""
    at = datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))

    def some(tx):
        for _ in range(40):
            tx.count(two_users[0], at, sms=1, otps=2)
            tx.count(None, at, sms=1, unmatched=1)
        tx.count(two_users[1], at + timedelta(days=1), webhooks_delivered=3)

    with app.app_context():
        transact(some)
        own = {(row.user_id, row.day.day): row for row in db.session.scalars(select(UserSummary))}
        assert set(own) == {(two_users[0], 28), (two_users[1], 1)}
        first = own[two_users[0], 28]
        assert (first.sms, first.otps, first.requests, first.numbers) == (40, 80, 0, 0)
        assert own[two_users[1], 1].webhooks_delivered == 3
        shards = db.session.scalars(select(SystemSummary)).all()
        on_28 = [row for row in shards if row.day.day == 28]
        assert 1 < len(on_28) <= 16
        assert {row.shard for row in shards} <= set(range(16))
        assert [sum(getattr(row, name) for row in on_28) for name in ("sms", "unmatched")] == [
            80,
            40,
        ]


def test_upsert_makes_a_row_or_changes_what_it_is_given_of_it(app):
    def write(id, **values):
        transact(lambda tx: tx.upsert(Operator, {"id": id}, values | {"updated_at": utcnow()}))

    with app.app_context():
        write(1, name="One", country_id=1)
        write(2, name="Two", country_id=2)
        write(2, name="Deux")
        rows = db.session.execute(select(Operator.id, Operator.name, Operator.country_id))
        assert [tuple(row) for row in rows] == [(1, "One", 1), (2, "Deux", 2)]


# --- the database refuses at the wrong moment ----------------------------------------------


def mysql_trigger(app, event, table, body):
    """Make the real server refuse, or count in the table `failures`."""
    with app.app_context():
        for sql in (
            "CREATE TABLE IF NOT EXISTS failures (n INT) ENGINE=Aria TRANSACTIONAL=0",
            "DELETE FROM failures",
            f"CREATE TRIGGER fails BEFORE {event} ON {table} FOR EACH ROW BEGIN {body} END",
        ):
            with db.engine.begin() as connection:
                connection.exec_driver_sql(sql)


DEADLOCK_TWICE = """
    IF (SELECT COUNT(*) FROM failures) < 2 THEN
        INSERT INTO failures VALUES (1);  -- in a table that no rollback empties
        SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213;
    END IF;
"""


@on_mariadb
def test_a_retry_never_repeats_the_call_to_the_main_server(app, client, make_user, requests_mock):
    number = {"status": "success", "data": {"phone_number": "+12025550123"}}
    requests_mock.get(f"http://main.test/api/get-number/{SYSTEM_KEY}", json=number)
    mysql_trigger(app, "UPDATE", "phone_numbers", DEADLOCK_TWICE)
    try:
        assert client.get(f"/api/get-number/{make_user().key}?country_id=1").status_code == 200
    finally:
        drop_triggers(app)
    assert len(requests_mock.request_history) == 1
    with app.app_context():
        assert db.session.scalar(select(func.sum(SystemSummary.numbers))) == 1


@on_mariadb
def test_a_retry_never_repeats_the_webhook(app, client, make_user, make_provider, assign, receiver):
    assign(make_user(webhook_url=receiver.url).id)
    mysql_trigger(app, "INSERT", "attempts", DEADLOCK_TWICE)
    try:
        sms = {"to": "12025550123", "text": "Your code is 123456"}
        answer = client.post(make_provider(), json=sms).json["data"]
    finally:
        drop_triggers(app)
    assert answer["webhook"] == "delivered"
    assert len(receiver.received) == 1
    with app.app_context():
        assert db.session.scalar(select(func.sum(SystemSummary.webhooks_delivered))) == 1


def drop_triggers(app):
    with app.app_context(), db.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER fails")
        connection.exec_driver_sql("DROP TABLE IF EXISTS failures")


# --- a number that could not be recorded --------------------------------------------------


def test_a_number_not_recorded_is_logged_and_found_by_an_idempotent_repeat(
    make_app, make_user, database_url, capsys
):
    """One deployment is the other's main server; recording fails in the one in front."""
    reseller, ann = make_user(name="reseller"), make_user()
    with sandbox() as main_server, serving(make_app(MAIN_SERVER_URL=main_server)) as behind:
        front = make_app(MAIN_SERVER_URL=behind, SYSTEM_API_KEY=reseller.key)
        fail = f"NEW.state = 'assigned' AND NEW.user_id = {ann.id}"
        if database_url.startswith("sqlite"):
            refuse = f"WHEN {fail} BEGIN SELECT RAISE(ABORT, 'refused'); END"
        else:
            refuse = f"FOR EACH ROW IF {fail} THEN SIGNAL SQLSTATE '45000'; END IF"
        with front.app_context(), db.engine.begin() as connection:
            connection.exec_driver_sql(
                f"CREATE TRIGGER fails BEFORE UPDATE ON phone_numbers {refuse}"
            )
        path = f"/api/get-number/{ann.key}?country_id=2"
        call = {"headers": {"Idempotency-Key": "order-7"}}
        try:
            refused = front.test_client().get(path, **call)
        finally:
            drop_triggers(front)
        assert answer(refused) == (500, "Unable to get number")
        log = capsys.readouterr().out
        (line,) = [line for line in log.splitlines() if "event=number_not_recorded" in line]
        with front.app_context():
            lost = db.session.scalar(select(PhoneNumber).where(PhoneNumber.user_id == ann.id))
            granted = db.session.scalars(select(PhoneNumber.digits).where(PhoneNumber.digits > ""))
            (digits,) = granted.all()
        assert lost.state == "unknown"
        assert f"phone_number=+{digits} request={lost.id} user_id={ann.id}" in line
        assert "CRITICAL" in line
        assert ann.key not in log
        assert reseller.key not in log

        found = front.test_client().get(path, **call)
        assert answer(found)[1]["phone_number"] == f"+{digits}"


# --- migrations ---------------------------------------------------------------------------


def test_migrations_are_numbered_in_their_order():
    """So that the names of their files tell whether a schema is current."""
    script = ScriptDirectory(schema.MIGRATIONS)
    numbers = [revision.revision for revision in script.walk_revisions("base", "heads")]
    assert numbers == sorted(schema.revisions(), reverse=True)
    assert script.get_heads() == [max(schema.revisions())]


def test_migrations_over_data_up_and_down(make_app, empty_database_url):
    app = make_app(DATABASE_URL=empty_database_url)
    migrating.init_app(app)
    with app.app_context():
        upgrade(revision="0001")
        with db.engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO users (id, name, key_hash, active, approved, webhook_secret,"
                    " created_at) VALUES (1, 'Ann 🔑', 'h', 1, 1, 'whsec_old', '2026-01-01')"
                )
            )
            connection.execute(
                text(
                    "INSERT INTO deliveries (id, webhook_id, user_id, body, state, attempts,"
                    " created_at) VALUES (1, 'msg_1', 1, 'body', 'pending', 0, '2026-01-01')"
                )
            )
        upgrade()
        user = db.session.get(User, 1)
        assert (user.name, *endpoint.signing_secrets(user)) == ("Ann 🔑", "whsec_old")
        assert schema.is_current()
        release()
        downgrade(revision="0001")
        secret = db.session.scalar(text("SELECT webhook_secret FROM users"))
        assert secret == "whsec_old"
        release()
        downgrade(revision="base")


@on_sqlite
def test_a_locked_sqlite_file_is_waited_for_without_standing_still(app, tmp_path, monkeypatch):
    """By a reader too, whom a recovery shuts out, and by pausing between tries: other calls of the
    same process go on meanwhile."""
    other = sqlite3.connect(tmp_path / "test.sqlite3", isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 10:
            other.close()

    with app.app_context():
        db.engine.dispose()
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr("time.sleep", pause)
        assert db.session.scalar(select(func.count()).select_from(User)) == 0
    assert len(pauses) == 10
    assert pauses[0] < pauses[-1] <= 0.02


@on_sqlite
def test_a_new_sqlite_file_waits_for_the_process_that_makes_it(make_app, tmp_path, monkeypatch):
    """Switching to WAL is refused, not delayed, while another process writes: it is tried again."""
    path, refused = tmp_path / "new.sqlite3", []
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    class Watched(sqlite3.Connection):
        def execute(self, *args):
            try:
                return super().execute(*args)
            except sqlite3.OperationalError as e:
                refused.append(str(e))
                other.execute("COMMIT")
                raise

    connect = functools.partial(sqlite3.connect, factory=Watched)
    monkeypatch.setattr(sqlite3.dbapi2, "connect", connect)
    with contextlib.closing(other), make_app(DATABASE_URL=f"sqlite:///{path}").app_context():
        assert db.session.scalar(text("PRAGMA journal_mode")) == "wal"
    assert refused == ["database is locked"]


@pytest.mark.server
def test_release_processes_at_once_do_no_harm(make_app, empty_database_url):
    env = {"PATH": str(BIN), "DATABASE_URL": empty_database_url, "SECRET_KEY": SECRET_KEY}
    command = [BIN / "flask", "db", "upgrade"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    running = [subprocess.Popen(command, cwd=ROOT, env=env, **output) for _ in range(4)]
    outputs = [process.communicate()[0].decode() for process in running]
    assert [process.returncode for process in running] == [0] * 4, outputs
    with make_app(DATABASE_URL=empty_database_url).app_context():
        assert schema.is_current()


# --- several processes --------------------------------------------------------------------


def test_two_processes_of_eight_threads_lose_nothing(serve, make_user, app, tmp_path):
    """No "database is locked", no lost update, under 2 processes of 8 threads each."""
    users, statuses = [make_user() for _ in range(4)], []
    with sandbox() as main_server:
        _, url = serve(MAIN_SERVER_URL=main_server, WEB_CONCURRENCY="2")

        def call(i):
            path = f"{url}/api/get-number/{users[i % 4].key}?country_id={i + 1}"
            with requests.Session() as session:
                statuses.extend(session.get(path, timeout=60).status_code for _ in range(20))

        in_threads(16, call)
    assert statuses == [200] * 320
    assert "DBAPIError" not in (tmp_path / "log").read_text()
    assert "OperationalError" not in (tmp_path / "log").read_text()
    with app.app_context():
        assert db.session.scalar(select(func.sum(SystemSummary.numbers))) == 320
        assert db.session.scalar(select(func.count()).select_from(PhoneNumber)) == 320


@contextlib.contextmanager
def no_connection_free(app):
    with app.app_context():
        taken = [db.engine.connect() for _ in range(POOL_SIZE)]
    try:
        yield
    finally:
        for connection in taken:
            connection.close()


@on_sqlite
def test_who_waits_in_vain_for_a_connection_is_told_to_come_again(
    monkeypatch, make_app, make_user, database_url
):
    assert Config({}).SQLALCHEMY_ENGINE_OPTIONS["pool_timeout"] == 5
    monkeypatch.setitem(POOL, "pool_timeout", 0.1)
    app = make_app()
    user, client = make_user(), app.test_client()
    with no_connection_free(app):
        busy = client.get(f"/api/get-number/{user.key}?country_id=1")
        page = client.post("/login", data={"csrf_token": token(client), "api_key": user.key})
        unhealthy = client.get("/healthz")
    sentence = "The service is busy. Try again in a moment."
    assert answer(busy) == (503, sentence)
    assert {int(a.headers["Retry-After"]) for a in (busy, page)} <= set(range(5, 16))
    assert (page.status_code, sentence in page.text) == (503, True)
    assert answer(unhealthy) == (503, "The database does not answer")


@on_sqlite
def test_a_transaction_waits_for_a_connection_as_for_a_lock(
    monkeypatch, make_app, two_users, database_url
):
    """What was granted or received meanwhile is recorded once there is one."""
    monkeypatch.setitem(POOL, "pool_timeout", 0.1)
    app = make_app()
    failed = threading.Event()
    with app.app_context():
        event.listen(db.session, "after_rollback", lambda session: failed.set())
        taken = no_connection_free(app)
        taken.__enter__()

        def let_go():
            failed.wait(60)
            taken.__exit__(None, None, None)

        thread = threading.Thread(target=let_go)
        thread.start()
        db.session.remove()
        transact(lambda tx: rename(two_users[0], "written"))
        thread.join()
        assert db.session.get(User, two_users[0]).name == "written"
