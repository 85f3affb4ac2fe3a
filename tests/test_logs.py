"""What the log tells: one line an event, its request's id, and nothing that is a secret."""

import io
import logging
import re

import pytest
from sqlalchemy import text

from service.database.engine import db
from tests.conftest import SYSTEM_KEY
from tests.forms import post, token

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def logged(app):
    """The lines of an event that were logged since it was called last."""
    # pytest gives another stdout to the test than to its fixtures
    [handler] = [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]
    handler.setStream(io.StringIO())

    def lines(event=""):
        text = handler.setStream(io.StringIO()).getvalue()
        return [line for line in text.split("\n") if f"event={event}" in line]

    return lines


@pytest.fixture
def failing(app):
    """Make every such change of users fail as the database does, in a sentence that quotes it."""

    def run(sql):
        with app.app_context(), db.engine.begin() as connection:
            connection.execute(text(sql))

    def fail(change, sentence):
        with app.app_context():
            sqlite = db.engine.dialect.name == "sqlite"
        if sqlite:
            body = f"BEGIN SELECT RAISE(ABORT, '{sentence}'); END"
        else:
            error = f"SET MYSQL_ERRNO = 1366, MESSAGE_TEXT = '{sentence}'"
            body = f"FOR EACH ROW SIGNAL SQLSTATE '45000' {error}"
        run(f"CREATE TRIGGER fails BEFORE {change} ON users {body}")
        return sqlite

    yield fail
    run("DROP TRIGGER IF EXISTS fails")


def test_a_database_error_is_logged_by_its_kind_alone(logged, client, make_user, failing):
    """A driver's sentence may quote the row that it was about: an SMS, a code."""
    user = make_user()
    assert post(client, "/login", api_key=user.key).status_code == 302
    sqlite = failing("UPDATE", "Incorrect string: Geheim code 918273")
    assert post(client, "/profile/edit", number_format="national").status_code == 500
    lines = logged()
    [line] = [line for line in lines if "event=unexpected_error" in line]
    kind = (
        "IntegrityError IntegrityError SQLITE_CONSTRAINT_TRIGGER"
        if sqlite
        else "DataError DataError 1366"
    )
    assert f"error='{kind}' at=/" in line
    assert not [line for line in lines if "Geheim" in line or "918273" in line]


@on_sqlite
def test_no_error_of_the_database_shows_the_row(app, failing):
    """SQLAlchemy would put all of it into its sentence, which ends where errors end."""
    failing("INSERT", "refused")
    result = app.test_cli_runner().invoke(args=["users", "add", "Geheim"])
    assert result.exit_code == 1
    assert "Geheim" not in f"{result.exception} {result.output}"


@on_sqlite
def test_an_unforeseen_error_is_one_line_with_its_place(logged, app, client, make_user):
    user = make_user()
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(text("ALTER TABLE users RENAME TO away"))
    response = client.get(f"/api/init/{user.key}")
    assert response.status_code == 500
    [line] = logged("unexpected_error")
    places = r"at=\S+\.py:\d+( < \S+\.py:\d+){7}"
    assert re.search(
        rf" ERROR .*error='OperationalError OperationalError SQLITE_ERROR' {places}$", line
    )
    assert f"request_id={response.headers['X-Request-ID']} " in line


@on_sqlite
@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("my-request-1", True),
        ("A_b.c-12", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("seven-7", False),
        ("has a space", False),
        ("event=forged", False),
        ("\x1b[31mred text", False),
        ("é" * 8, False),
        ("", False),
    ],
)
def test_a_callers_request_id_is_taken_where_it_is_a_plain_one(logged, client, given, taken):
    page = client.post("/login", data={}, headers={"X-Request-ID": given})
    own = page.headers["X-Request-ID"]
    assert (own == given) is taken
    assert taken or re.fullmatch("[0-9a-f]{32}", own)
    assert own in page.text
    # ... and every request has its own
    assert client.get("/login").headers["X-Request-ID"] != own


@pytest.fixture
def login_failed(logged, client):
    """Fail to log in from an address; gives the line that tells of it."""

    def fail(address="127.0.0.1", request_id=""):
        client.post(
            "/login", data={"csrf_token": token(client), "api_key": "wrong"},
            environ_base={"REMOTE_ADDR": address}, headers={"X-Request-ID": request_id},
        )  # fmt: skip
        [line] = logged("login_failed")
        return line

    return fail


@on_sqlite
def test_a_line_is_a_line_whatever_is_told_in_it(login_failed):
    line = login_failed("here\nevent=forged \x1b[31m\u202e\u2028é")
    assert line.endswith(r" event=login_failed address=here\nevent=forged \x1b[31m\u202e\u2028é")
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING request_id=[0-9a-f]{32} event=.*"
    assert re.fullmatch(form, line)


@on_sqlite
def test_a_key_is_masked_wherever_it_is_told(login_failed, make_user):
    """Even where a caller puts it: the system key, which is not of our making, and our own."""
    assert " request_id=*** event=" in login_failed(request_id=SYSTEM_KEY)
    user = make_user()
    assert " request_id=usr_*** event=" in login_failed(request_id=user.key)
    assert user.key[4:] not in login_failed(f"key {user.key}")


@on_sqlite
def test_what_is_not_known_is_left_out(logged, client, make_provider):
    client.post(make_provider(), json={"to": "12025550123", "text": "code 1234"})
    [line] = logged("sms_stored")
    assert line.endswith(
        " event=sms_stored message_id=1 provider=gw otp=True unmatched=unknown_number"
    )


@on_sqlite
@pytest.mark.parametrize(("level", "told"), [("INFO", True), ("WARNING", False)])
def test_log_level(capsys, make_app, make_provider, level, told):
    """What is below it is not told; what is told goes to stdout."""
    path = make_provider()
    client = make_app(LOG_LEVEL=level).test_client()
    client.post(path, json={"to": "12025550123", "text": "code 1234"})
    assert ("event=sms_stored" in capsys.readouterr().out) is told


@on_sqlite
def test_a_full_disk_is_named_in_the_log(logged, app, client, make_provider):
    """By SQLite's own name for it, and without its sentence, which may quote what was stored."""
    path = make_provider()
    with app.app_context():
        pages = db.session.scalar(text("PRAGMA page_count"))
        db.session.rollback()
        for connection in [db.engine.connect() for _ in range(db.engine.pool.size())]:
            connection.execute(text(f"PRAGMA max_page_count={pages}"))
            connection.close()
    sms = {"to": "12025550123", "text": "x" * 100_000}
    assert client.post(path, json=sms).status_code == 500
    [line] = logged("unexpected_error")
    assert "error='OperationalError OperationalError SQLITE_FULL'" in line
