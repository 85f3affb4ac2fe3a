"""What the log tells: one line an event, its request's id, and nothing that is a secret."""

import io
import logging
import re

import pytest
from sqlalchemy import text

from service import logs
from service.database.engine import db
from service.keys import seal
from tests.conftest import MAIN, SYSTEM_KEY
from tests.databases import on_sqlite
from tests.forms import Clock, post, token


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
def test_an_error_is_one_line_with_its_place(logged, app, client, make_user):
    user = make_user()
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(text("ALTER TABLE users RENAME TO away"))
    response = client.get(f"/api/init/{user.key}")
    assert response.status_code == 503
    [line] = logged("request_failed")
    places = r"at=\S+\.py:\d+( < \S+\.py:\d+){7}"
    assert re.search(
        rf" WARNING .*error='OperationalError OperationalError SQLITE_ERROR' {places}$", line
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
    line = login_failed('here\nevent=forged "\\\x1b[31m\x9b\u202e\u2028é')
    address = r'"here\nevent=forged \"\\\x1b[31m\x9b\u202e\u2028é"'
    assert line.endswith(f" event=login_failed address={address} count=1")
    form = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING request_id=[0-9a-f]{32} event=.*"
    assert re.fullmatch(form, line)


@on_sqlite
def test_a_provider_that_the_main_server_names_forges_no_field(logged, client):
    name = 'GW event=login user_id=1 "x"'
    sms = {"phone_number": "+12025550123", "sms_text": "hi", "provider": name}
    body = {"event": "otp_received", "data": sms}
    assert client.post(f"/api/ingest/{SYSTEM_KEY}", json=body).status_code == 200
    [line] = logged("sms_stored")
    assert r' provider="GW event=login user_id=1 \"x\"" otp=False ' in line


@on_sqlite
def test_no_key_and_no_code_is_taken_as_the_id_of_a_request(client, make_user, make_provider):
    keys = (
        SYSTEM_KEY,
        f"{SYSTEM_KEY}.",
        f"x{SYSTEM_KEY[:8]}",
        make_user().key,
        make_provider().rpartition("/")[2],
        "12345678",
    )
    for key in keys:
        answer = client.get("/login", headers={"X-Request-ID": key})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


@on_sqlite
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/api/init/{key}", "/api/init/***"),
        ("/api/init/{key}/more", "/api/init/***"),
        ("/api/get-number{key}", "/api/***"),
        ("/api/{key}", "/api/***"),
        ("/{key}", "/***"),
        ("/profile/{key}", "/profile/***"),
        ("/apiinit/{key}", "/***"),
        ("//api//init//{key}", "/***"),
        ("/static/{key}", "/static/***"),
        ("/login", "/login"),
        ("/", "/"),
    ],
)
def test_a_path_is_logged_as_far_as_it_is_known(logged, client, path, told):
    client.get(path.format(key="usr_" + "x" * 40))
    [line] = [line for line in logged() if "event=request " in line or "event=wrong_key " in line]
    assert f" path={told} " in line.replace('"', "") + " "


@on_sqlite
def test_a_request_tells_who_made_it(logged, client, make_user, make_provider):
    user, ingest = make_user(), make_provider("gw")
    client.get(f"/api/messages/{user.key}")
    client.get(f"/api/messages/{SYSTEM_KEY}?user_id={user.id}")
    client.post(ingest, json={"to": "12025550123", "text": "code 1234"})
    client.open("/login", method="usr_SECRETKEY")
    lines = [re.sub(" us=[0-9]+", "", line.partition(" event=request ")[2]) for line in logged()]
    assert [line for line in lines if line] == [
        f'method=GET path="/api/messages/***" status=200 user_id={user.id}',
        f'method=GET path="/api/messages/***" status=200 user_id={user.id} by="system key"',
        'method=POST path="/api/ingest/***" status=200 source=gw',
        'method=other path="/login" status=405',
    ]


@on_sqlite
def test_a_flood_of_wrong_keys_is_a_line_in_ten_seconds(logged, client, make_user, monkeypatch):
    user, clock = make_user(), Clock(monkeypatch)

    def wrong(address, n=1, path="/api/init/wrong"):
        for _ in range(n):
            client.get(path, environ_base={"REMOTE_ADDR": address})

    def told():
        found = [line.partition(" event=wrong_key ")[2] for line in logged()]
        return [line for line in found if line]

    wrong("192.0.2.1", 1000)
    wrong("2001:db8::1", 3, "/api/numbers/wrong")
    wrong("2001:db8::2", 4)
    assert told() == [
        'address=192.0.2.1 count=1 path="/api/init/***"',
        'address=2001:db8::/64 count=1 path="/api/numbers/***"',
    ]
    # A right key is never held up by others' wrong ones
    right = client.get(f"/api/numbers/{user.key}", environ_base={"REMOTE_ADDR": "192.0.2.1"})
    assert right.status_code == 200
    clock.now += 10
    client.get("/healthz")
    assert told() == [
        'address=192.0.2.1 count=999 path="/api/init/***"',
        'address=2001:db8::/64 count=6 path="/api/numbers/***"',
    ]
    wrong("192.0.2.1")
    assert told() == ['address=192.0.2.1 count=1 path="/api/init/***"']
    for n in range(1500):
        wrong(f"198.51.{n // 250}.{n % 250}")
    assert len(client.application.extensions["refusals"]) <= 1001


@on_sqlite
def test_a_refusal_by_the_main_server_is_not_counted_as_the_callers(
    logged, client, make_user, requests_mock
):
    no = {"status": "error", "message": "Unauthorized"}
    requests_mock.get(f"{MAIN}/api/init/{SYSTEM_KEY}", status_code=401, json=no)
    user = make_user()
    assert client.get(f"/api/init/{user.key}").status_code == 401
    lines = logged()
    assert not [line for line in lines if "event=wrong" in line]
    [line] = [line for line in lines if "event=request " in line]
    assert 'path="/api/init/***" status=401' in line and f"user_id={user.id}" in line


@on_sqlite
def test_a_wrong_signature_is_told_with_its_gateway(logged, client, make_provider):
    with client.application.app_context():
        path = make_provider("gw", format="twilio", secret=seal("secret"))
    assert client.post(path, data={"To": "+12025550123", "Body": "hi"}).status_code == 401
    [line] = logged("wrong_signature")
    assert line.endswith('count=1 path="/api/ingest/***" source=gw')


def test_of_a_foreign_error_only_what_cannot_quote_is_logged():
    class Ours(Exception):
        log_words = "in our words"

    try:
        try:
            try:
                raise FileNotFoundError(2, "secret", "secret")
            except OSError as e:
                raise ValueError("secret") from e
        except ValueError:
            raise Ours("secret")  # noqa: B904
    except Ours as e:
        assert logs.describe(e) == "Ours: in our words < ValueError < FileNotFoundError ENOENT"
    assert logs.describe(None) == ""


@on_sqlite
def test_of_a_librarys_line_only_the_constant_part_is_logged(logged, app):
    library = logging.getLogger("urllib3.connectionpool")
    library.warning("Failed to parse headers (url=%s)", "http://x/usr_secret")
    library.warning("preformatted usr_secret")
    library.info("not told %s", "usr_secret")
    logging.getLogger("gunicorn.error").info("Booting worker with pid: %s", 7)
    logging.getLogger("werkzeug").info('127.0.0.1 - - "GET /usr_secret HTTP/1.1" 200 -')
    logging.getLogger("werkzeug").info("WARNING: This is\n * Running on http://127.0.0.1:5000")
    told = [line.partition(" request_id=- event=library logger=")[2] for line in logged()]
    place = r"at=test_logs:\d+"
    for line, form in zip(
        [line for line in told if line],
        [
            rf'urllib3.connectionpool {place} message="Failed to parse headers \(url=%s\)"',
            rf"urllib3.connectionpool {place}",
            rf'gunicorn.error {place} message="Booting worker with pid: 7"',
            rf'werkzeug {place} message="Running on http://127.0.0.1:5000"',
        ],
        strict=True,
    ):
        assert re.fullmatch(form, line), line


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
