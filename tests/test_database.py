"""The database: URLs, transactions that are tried again, migrations, several processes."""

import sqlite3
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flask_migrate import downgrade, upgrade
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import DBAPIError

from config import POOL_SIZE, Config, ConfigError, database
from service import checks, delivery
from service.models import (
    Message,
    PhoneNumber,
    SystemSummary,
    User,
    db,
    release,
    transact,
    utcnow,
)
from tests.conftest import SECRET_KEY, SYSTEM_KEY
from tests.databases import on_mariadb, skip_or_fail
from tests.fixtures import BIN, ROOT
from tests.mariadb import MariaDB, free_port, missing
from tests.peers import sandbox, serving
from tests.test_get_number import answer, in_threads

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
            pragmas = ("journal_mode", "synchronous", "foreign_keys")
            found = [db.session.scalar(text(f"PRAGMA {name}")) for name in pragmas]
            assert found == ["wal", 2, 1]
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


def test_a_real_deadlock_is_tried_again_as_a_whole(app, two_users):
    """Two transactions lock two rows in opposite order: on MariaDB one is the victim (1213)."""
    both_hold_one = threading.Barrier(2, timeout=60)
    runs = []

    def call(i):
        first, second = two_users if i else reversed(two_users)

        def work():
            runs.append(i)
            rename(first, f"by {i}")
            if len(runs) <= 2 and db.engine.dialect.name != "sqlite":
                both_hold_one.wait()
            rename(second, f"by {i}")

        with app.app_context():
            transact(work)

    in_threads(2, call)
    with app.app_context():
        assert len(set(db.session.scalars(select(User.name)))) == 1  # one of them, wholly
        assert len(runs) == (2 if db.engine.dialect.name == "sqlite" else 3)


def test_a_lock_held_too_long_is_tried_again(app, two_users):
    """SQLite "database is locked", MySQL 1205: who waits gets there once the lock is free."""
    held, tries, free = threading.Event(), [], threading.Event()

    def hold():
        with app.app_context(), db.engine.connect().execution_options(writes=True) as connection:
            connection.execute(text("UPDATE users SET name = 'holder'"))
            held.set()
            free.wait(60)
            connection.rollback()

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)

    with app.app_context():
        sqlite = db.engine.dialect.name == "sqlite"
        short = "PRAGMA busy_timeout=10" if sqlite else "SET SESSION innodb_lock_wait_timeout=1"
        with db.engine.connect() as connection:  # the pool's, which the transaction takes next
            connection.execute(text(short))

        def work():
            tries.append(1)
            if not sqlite and len(tries) == 2:
                free.set()
                holder.join()
            rename(two_users[0], "got there")

        if sqlite:
            threading.Timer(0.5, free.set).start()
        transact(work)
        assert db.session.get(User, two_users[0]).name == "got there"
    holder.join()
    assert len(tries) >= (1 if sqlite else 2)


def test_a_lost_connection_is_tried_again(app, two_users):
    runs = []

    def work():
        runs.append(1)
        rename(two_users[0], f"run {len(runs)}")
        if len(runs) == 1 and db.engine.dialect.name != "sqlite":
            me = db.session.scalar(text("SELECT CONNECTION_ID()"))
            with db.engine.connect() as other:
                other.execute(text(f"KILL CONNECTION {me}"))
        rename(two_users[1], f"run {len(runs)}")

    with app.app_context():
        transact(work)
        assert set(db.session.scalars(select(User.name))) == {f"run {len(runs)}"}
        assert len(runs) == (1 if db.engine.dialect.name == "sqlite" else 2)


def test_what_does_not_pass_is_not_tried_again_and_what_passes_is_bounded(app, two_users):
    runs = []

    def wrong():
        runs.append(1)
        db.session.execute(text("SELECT nonsense FROM users"))

    with app.app_context():
        with pytest.raises(DBAPIError):
            transact(wrong)
        assert len(runs) == 1
        if db.engine.dialect.name == "sqlite":
            return

        def deadlock():
            runs.append(1)
            db.session.execute(text("SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213"))

        with pytest.raises(DBAPIError, match="1213"):
            transact(deadlock, patience=0.2)
        assert len(runs) > 3


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


def test_migrations_over_data_up_and_down(make_app, empty_database_url):
    app = make_app(DATABASE_URL=empty_database_url)
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
        assert (user.name, *delivery._secrets(user)) == ("Ann 🔑", "whsec_old")
        assert checks.schema_is_current()
        release()
        downgrade(revision="0001")
        secret = db.session.scalar(text("SELECT webhook_secret FROM users"))
        assert secret == "whsec_old"
        release()
        downgrade(revision="base")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_new_sqlite_file_waits_for_the_process_that_makes_it(make_app, tmp_path):
    """Switching to WAL is refused, not delayed, while another process writes: it is tried again."""
    path = tmp_path / "new.sqlite3"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    commit = threading.Timer(0.3, other.execute, ["COMMIT"])
    commit.start()
    with make_app(DATABASE_URL=f"sqlite:///{path}").app_context():
        assert db.session.scalar(text("PRAGMA journal_mode")) == "wal"
    commit.join()
    other.close()


def test_release_processes_at_once_do_no_harm(make_app, empty_database_url):
    env = {"PATH": str(BIN), "DATABASE_URL": empty_database_url, "SECRET_KEY": SECRET_KEY}
    command = [BIN / "flask", "db", "upgrade"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    running = [subprocess.Popen(command, cwd=ROOT, env=env, **output) for _ in range(4)]
    outputs = [process.communicate()[0].decode() for process in running]
    assert [process.returncode for process in running] == [0] * 4, outputs
    with make_app(DATABASE_URL=empty_database_url).app_context():
        assert checks.schema_is_current()


# --- several processes --------------------------------------------------------------------


def test_two_processes_of_eight_threads_lose_nothing(start, make_user, app, tmp_path, database_url):
    """No "database is locked", no lost update, under 2 processes of 8 threads each."""
    users, statuses = [make_user() for _ in range(4)], []
    with sandbox() as main_server:
        port = free_port()
        _, url = start(
            "gunicorn", "--bind", f"127.0.0.1:{port}", "wsgi:app", port=port,
            DATABASE_URL=database_url, MAIN_SERVER_URL=main_server, SYSTEM_API_KEY=SYSTEM_KEY,
            SECRET_KEY=SECRET_KEY, WEB_CONCURRENCY="2", THREADS="8",
        )  # fmt: skip

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
