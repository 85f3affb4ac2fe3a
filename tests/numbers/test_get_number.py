"""GET /api/get-number/{api_key}: every row of its table, and the records it leaves."""

import contextlib
import functools
import hashlib
import re
import socket
import threading
import time
from datetime import timedelta
from select import select as wait_for_bytes

import pytest
import requests
from flask import Flask, request
from sqlalchemy import func, insert, select, text, update

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Operator, PhoneNumber, SystemSummary, User, UserSummary
from service.database.writing import transact
from service.keys import sha256
from tests.conftest import MAIN, SYSTEM_KEY
from tests.databases import on_mariadb, on_sqlite
from tests.meanwhile import answer, in_background, in_threads, listening, statements
from tests.peers import raw_server, sandbox, serving
from tests.world import Held

KEYED = {"Idempotency-Key": "k"}
URL = f"{MAIN}/api/get-number/{SYSTEM_KEY}"
INIT_URL = f"{MAIN}/api/init/{SYSTEM_KEY}"
COUNTRIES = [{"id": 1, "name": "A", "phone_code": "+1"}, {"id": 2, "name": "B"}]


def grant(number="+12025550123", **data):
    return {"json": {"status": "success", "data": {"phone_number": number, **data}}}


@pytest.fixture
def main_server(requests_mock):
    requests_mock.get(URL, **grant())
    lists = {"countries": COUNTRIES, "operators": []}
    requests_mock.get(INIT_URL, json={"status": "success", "data": lists})
    return requests_mock


def granted(number="+12025550123", **data):
    return {"status": "success", "data": {"phone_number": number, **data}}


@contextlib.contextmanager
def answering(answer):
    """A main server on a real socket: `answer()` gives what get-number says, so that it can do
    something meanwhile; `asked` holds the Idempotency-Keys that came."""
    app = Flask("main")
    app.asked = []

    @app.get("/api/get-number/<key>")
    def get_number(key):
        app.asked.append(request.headers.get("Idempotency-Key"))
        return answer()

    with serving(app) as app.url:
        yield app


@pytest.fixture
def records(app):
    """All records of a model, oldest first."""

    def read(model=PhoneNumber):
        with app.app_context():
            return db.session.scalars(select(model).order_by(*model.__table__.primary_key)).all()

    return read


@pytest.fixture
def change(app):
    """Give all records of a model these values."""

    def write(model=PhoneNumber, **values):
        with app.app_context():
            transact(lambda tx: db.session.execute(update(model).values(values)))

    return write


@pytest.fixture
def add(app):
    """Add a record; gives its id."""

    def write(row):
        with app.app_context():
            transact(lambda tx: db.session.add(row))
            return getattr(row, "id", None)

    return write


def under_way(user, age, key=None, **columns):
    """The record of a call that reserved a number `age` ago, and then died or still asks."""
    columns = {"state": "requested", "country_id": 1} | columns
    hashed = key and sha256(key)
    return PhoneNumber(
        user_id=user.id, idempotency_hash=hashed, requested_at=utcnow() - age, **columns
    )


def asked(main_server):
    return [r for r in main_server.request_history if "/get-number/" in r.url]


def test_assigns_the_number_and_updates_every_record(app, client, make_user, main_server):
    main_server.get(URL, **grant(operator={"id": 7, "name": "Op"}))
    user = make_user()
    response = client.get(f"/api/get-number/{user.key}?country_id=1&operator_id=7")
    assert response.status_code == 200
    data = response.json["data"]
    assert (data["phone_number"], data["country_id"], data["operator_id"]) == ("+12025550123", 1, 7)
    assert asked(main_server)[0].qs == {
        "country_id": ["1"], "operator_id": ["7"], "number_format": ["full"],
    }  # fmt: skip
    with app.app_context():
        row = db.session.scalar(select(PhoneNumber))
        assert (row.id, row.user_id, row.digits, row.state) == (
            data["id"], user.id, "12025550123", "assigned",
        )  # fmt: skip
        assert db.session.scalar(select(UserSummary.numbers)) == 1
        assert db.session.scalar(select(func.sum(SystemSummary.numbers))) == 1
        operator = db.session.scalar(select(Operator))
        assert (operator.id, operator.name, operator.country_id) == (7, "Op", 1)


def test_operators_are_upserted_and_malformed_ones_do_not_lose_the_number(
    app, client, make_user, main_server
):
    path = f"/api/get-number/{make_user().key}?country_id=1"
    listed = [{"id": 7, "name": "New", "country_id": 2}, {"id": "x"}, 5, {"id": 8}]
    for operators in ([{"id": 7, "name": "Old"}], listed, {"no": "list"}):
        main_server.get(URL, **grant(operators=operators))
        assert client.get(path).status_code == 200
    with app.app_context():
        rows = db.session.execute(select(Operator.id, Operator.name, Operator.country_id))
        assert rows.all() == [(7, "New", 2), (8, "Operator 8", 1)]


def test_an_operator_that_is_told_again_unchanged_is_not_written(
    client, make_user, main_server, records, change
):
    """Every call brings the same ones: writing them each time would lock their rows."""
    path = f"/api/get-number/{make_user().key}?country_id=1"
    then = utcnow() - timedelta(days=1)
    for operator, written in [
        ({"id": 7, "name": "Op"}, True),
        ({"id": 7, "name": "Op"}, False),
        ({"id": 7, "name": "Op", "country_id": 1}, False),
        ({"id": 7}, False),  # the name that is known is kept
        ({"id": 7, "name": ""}, False),
        ({"id": 7, "name": "Op", "country_id": 2}, True),
        ({"id": 7, "name": "New", "country_id": 2}, True),
        ({"id": 7, "name": "New", "country_id": None}, True),
    ]:
        change(Operator, updated_at=then)
        main_server.get(URL, **grant(operator=operator))
        assert client.get(path).status_code == 200
        (row,) = records(Operator)
        assert (row.updated_at > then) == written, operator
    assert (row.name, row.country_id) == ("New", None)


# --- the table, in its order --------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/get-number", "/api/get-number/"])
def test_401_without_any_key(client, path):
    assert answer(client.get(path)) == (401, "Missing or invalid credentials")


@pytest.mark.parametrize("columns", [None, {"active": False}, {"approved": False}])
def test_401_invalid_key(client, make_user, columns):
    key = "unknown" if columns is None else make_user(**columns).key
    assert answer(client.get(f"/api/get-number/{key}")) == (401, "Invalid api_key")


@pytest.mark.parametrize("query", ["", "?user_id=", "?country_id=1"])
def test_400_system_key_without_user_id(client, query):
    expected = (400, "user_id is required with api_key")
    assert answer(client.get(f"/api/get-number/{SYSTEM_KEY}{query}")) == expected


@pytest.mark.parametrize("columns", [None, {"active": False}, {"approved": False}])
def test_404_system_key_for_a_user_who_may_not_call(client, make_user, columns):
    user_id = 99 if columns is None else make_user(**columns).id
    response = client.get(f"/api/get-number/{SYSTEM_KEY}?user_id={user_id}")
    assert answer(response) == (404, "Target user not found or inactive")


def test_400_user_id_that_is_no_integer(client):
    response = client.get(f"/api/get-number/{SYSTEM_KEY}?user_id=abc&country_id=1")
    assert answer(response) == (400, "user_id must be an integer")


def test_400_user_id_twice(client, make_user):
    ids = f"user_id={make_user().id}&user_id={make_user().id}"
    response = client.get(f"/api/get-number/{SYSTEM_KEY}?{ids}&country_id=1")
    assert answer(response) == (400, "user_id was given more than once")


def test_403_inactive_manager_comes_before_the_parameters(client, make_user):
    key = make_user(manager_id=make_user(active=False).id).key
    response = client.get(f"/api/get-number/{key}")
    assert answer(response) == (403, "Manager inactive. Contact support.")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "country_id is required"),
        ("country_id=", "country_id is required"),
        ("operator_id=x", "country_id is required"),
        ("country_id=abc", "country_id must be an integer"),
        ("country_id=1.0", "country_id must be an integer"),
        ("country_id=1_000", "country_id must be an integer"),
        ("country_id=%207", "country_id must be an integer"),
        ("country_id=%EF%BC%97", "country_id must be an integer"),
        ("country_id=%D9%A1", "country_id must be an integer"),
        ("country_id=-1", "country_id must be between 0 and 2147483647"),
        ("country_id=2147483648", "country_id must be between 0 and 2147483647"),
        ("country_id=" + "9" * 5000, "country_id must be between 0 and 2147483647"),
        ("country_id=1&country_id=2", "country_id was given more than once"),
        ("country_id=1&operator_id=undefined", "operator_id must be an integer"),
        (
            "country_id=1&number_format=e164",
            "number_format must be one of full, national, remove_plus",
        ),
    ],
)
def test_400_names_the_parameter(client, make_user, main_server, query, message):
    # A used-up limit comes later in the table
    response = client.get(f"/api/get-number/{make_user(daily_limit=0).key}?{query}")
    assert answer(response) == (400, message)
    assert not main_server.request_history


def test_429_when_the_daily_limit_is_used_up(client, make_user, main_server):
    path = f"/api/get-number/{make_user(daily_limit=2).key}?country_id=1"
    assert [client.get(path).status_code for _ in range(2)] == [200, 200]
    # Before the country list is looked at
    response = client.get(f"{path}&number_format=national")
    assert answer(response) == (429, "Daily number limit reached")
    assert len(main_server.request_history) == 2


def test_the_daily_limit_says_to_come_back_at_midnight_utc(client, make_user):
    before = utcnow()
    response = client.get(f"/api/get-number/{make_user(daily_limit=0).key}?country_id=1")
    after = utcnow()
    assert response.status_code == 429
    wait = timedelta(seconds=int(response.headers["Retry-After"]))
    midnight = (before + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    # Not a moment too early, when it would be refused again, and hardly later
    assert before + wait - timedelta(seconds=1) <= midnight <= after + wait


def test_a_call_beyond_the_daily_limit_leaves_no_record(client, make_user, main_server, records):
    path = f"/api/get-number/{make_user(daily_limit=1).key}?country_id=1"
    assert [client.get(path, headers=KEYED).status_code for _ in range(2)] == [200, 200]
    assert [client.get(path).status_code for _ in range(2)] == [429, 429]
    other = client.get(path, headers={"Idempotency-Key": "other"})
    assert other.status_code == 429
    assert len(records()) == 1
    (summary,) = records(UserSummary)
    # `requests` counts what was asked of the main server
    assert (summary.requests, summary.numbers) == (1, 1)


def test_the_daily_limit_counts_no_other_day_and_no_other_user(client, make_user, main_server, add):
    ann, bob = make_user(daily_limit=1), make_user(name="Bob")
    yesterday = utcnow().date() - timedelta(days=1)
    add(UserSummary(user_id=ann.id, day=yesterday, numbers=5))
    add(UserSummary(user_id=bob.id, day=utcnow().date(), numbers=5))
    add(under_way(bob, timedelta(0)))
    path = f"/api/get-number/{ann.key}?country_id=1"
    assert [client.get(path).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("age", "status"), [(timedelta(seconds=200), 429), (timedelta(seconds=260), 200)]
)
def test_a_call_under_way_holds_its_share_of_the_daily_limit_as_long_as_it_can_take(
    make_app, make_user, main_server, add, age, status
):
    """The country list and the number, UPSTREAM_TIMEOUT each; a call that died frees its share
    soon after."""
    user = make_user(daily_limit=1)
    add(under_way(user, age))
    client = make_app(UPSTREAM_TIMEOUT=100).test_client()
    assert client.get(f"/api/get-number/{user.key}?country_id=1").status_code == status
    assert len(asked(main_server)) == (status == 200)


def test_failed_calls_do_not_use_up_the_limit(client, make_user, main_server):
    path = f"/api/get-number/{make_user(daily_limit=1).key}?country_id=1"
    for failure in ({"status_code": 404}, {"status_code": 500}, {"text": "no"}):
        main_server.get(URL, **failure)
        assert client.get(path).status_code in (404, 500)
    main_server.get(URL, **grant())
    assert [client.get(path).status_code for _ in range(2)] == [200, 429]


def test_each_question_to_the_main_server_is_counted_when_it_has_ended(
    client, make_user, main_server, records, add
):
    """With a number or without; also one whose process died, when it is asked again."""
    user = make_user()
    path = f"/api/get-number/{user.key}?country_id=1"
    for count, failure in enumerate([{"status_code": 404}, {"status_code": 500}, grant()], 1):
        main_server.get(URL, **failure)
        client.get(path, headers=KEYED)
        (summary,) = records(UserSummary)
        assert (summary.requests, summary.numbers) == (count, count // 3)
    add(under_way(user, timedelta(minutes=9), key="died"))
    assert client.get(path, headers={"Idempotency-Key": "died"}).status_code == 200
    for model in (UserSummary, SystemSummary):  # the one that died may count for yesterday
        rows = records(model)
        assert sum(row.requests for row in rows) == 5 and sum(row.numbers for row in rows) == 2
    main_server.get(INIT_URL, status_code=503)  # the phone codes cannot be had
    assert client.get(f"{path}&number_format=national").status_code == 500
    assert sum(row.requests for row in records(UserSummary)) == 5


@pytest.mark.parametrize("country_id", [2, 3])
def test_500_national_without_a_phone_code_asks_for_no_number(
    app, client, make_user, main_server, country_id
):
    path = f"/api/get-number/{make_user().key}?country_id={country_id}&number_format=national"
    assert answer(client.get(path)) == (500, "Could not fetch service data")
    assert not asked(main_server)
    with app.app_context():
        assert db.session.scalar(select(func.count(PhoneNumber.id))) == 0


@pytest.mark.parametrize("phone_code", ["", "0", "none", None, "123456789"])
def test_500_national_when_the_phone_code_cannot_be_one(
    client, make_user, main_server, records, phone_code
):
    """The number would still hold the country's code, so none is asked for."""
    lists = {"countries": [{"id": 1, "phone_code": phone_code}], "operators": []}
    main_server.get(INIT_URL, json={"status": "success", "data": lists})
    path = f"/api/get-number/{make_user().key}?country_id=1&number_format=national"
    assert answer(client.get(path)) == (500, "Could not fetch service data")
    assert not asked(main_server) and not records()


@pytest.mark.parametrize(
    "number",
    [
        447400849540,
        447400849540.0,
        "447400849540",
        "00447400849540",
        "\u202a+447400849540\u202c",
        "+44\u202f7400\u202f849540",
        "+44 7400\u2011849\u2013540\n",
        "tel:+44-7400-849540",
        "TEL:+44.7400.849540;ext=1",
        "tel:7400849540;phone-context=+44",
        "+44 (0)7400 849540",
        "+44(0) 7400/849540",
        "\u2066\uff0b\uff14\uff14\u20607400\ufeff849540\u2069",
    ],
)
def test_a_number_is_read_in_any_notation(client, make_user, main_server, records, number):
    """It was granted, and may have been paid for."""
    main_server.get(URL, **grant(number))
    response = client.get(f"/api/get-number/{make_user().key}?country_id=1")
    assert response.json["data"]["phone_number"] == "+447400849540"
    assert [row.digits for row in records()] == ["447400849540"]


def test_500_national_when_the_country_list_cannot_be_had(client, make_user, main_server, records):
    """No number is asked for, and nothing is held: neither the limit nor the key."""
    main_server.get(INIT_URL, status_code=503)
    path = f"/api/get-number/{make_user(daily_limit=1).key}?country_id=1"
    response = client.get(f"{path}&number_format=national", headers=KEYED)
    assert answer(response) == (500, "Could not fetch service data")
    assert not asked(main_server)
    assert not records()
    assert client.get(f"{path}&operator_id=5", headers=KEYED).status_code == 200


@pytest.mark.parametrize(
    "failure",
    [
        {"status_code": 404, "json": {"status": "error", "message": "whatever"}},
        {"status_code": 404, "text": "<html>"},
        {"json": {"status": "success"}},
        {"json": {"status": "success", "data": {}}},
        grant(None),
        grant(""),
    ],
)
def test_404_no_number(client, make_user, main_server, failure):
    main_server.get(URL, **failure)
    response = client.get(f"/api/get-number/{make_user().key}?country_id=1")
    assert answer(response) == (404, "No number received")


@pytest.mark.parametrize(
    "failure",
    [
        {"exc": requests.ConnectionError},
        {"exc": requests.Timeout},
        {"status_code": 401, "json": {"status": "error", "message": "Invalid api_key"}},
        {"status_code": 429},
        {"status_code": 500},
        {"status_code": 302, "headers": {"Location": "/"}},
        {"text": "<html>"},
        {"json": {"status": "error", "message": "no"}},
        {"json": {"status": "success", "data": "+12025550123"}},
        grant(True),
        grant(["+12025550123"]),
        grant("not a number"),
        grant("1" * 30),
    ],
)
def test_500_anything_else(app, client, make_user, main_server, failure):
    main_server.get(URL, **failure)
    response = client.get(f"/api/get-number/{make_user().key}?country_id=1")
    assert answer(response) == (500, "Unable to get number")
    assert len(asked(main_server)) == 1
    with app.app_context():
        assert not db.session.scalar(select(UserSummary.numbers))


def test_500_without_configuration(make_app, make_user):
    client = make_app(MAIN_SERVER_URL="").test_client()
    key = make_user().key
    path = f"/api/get-number/{key}?country_id=1"
    assert answer(client.get(path)) == (500, "Unable to get number")
    assert answer(client.get(f"{path}&number_format=national")) == (
        500, "Could not fetch service data",
    )  # fmt: skip


def test_503_when_the_database_has_no_schema(make_app, empty_database_url):
    client = make_app(DATABASE_URL=empty_database_url).test_client()
    sentence = "The database schema is not current: run `flask db upgrade`"
    assert answer(client.get("/api/get-number/k?country_id=1")) == (503, sentence)


def says(status, body=b"", length=None):
    """A main server that answers these bytes, and hangs up."""

    def talk(connection, stopped):
        connection.recv(65536)
        length_line = b"Content-Length: %d\r\n" % (len(body) if length is None else length)
        connection.sendall(b"HTTP/1.1 %s\r\n%s\r\n%s" % (status, length_line, body))

    return talk


def silent(connection, stopped):
    stopped.wait()


def hangs_up(connection, stopped):
    connection.recv(65536)


GRANT = b'{"status":"success","data":{"phone_number":"+12025550123"}}'


@on_sqlite
@pytest.mark.parametrize(
    "talk",
    [
        silent,
        hangs_up,
        says(b"200 OK", GRANT[:-9]),
        says(b"200 OK", GRANT[:-9], len(GRANT)),
        says(b"200 OK", GRANT + b" " * 2**18),
        says(b"200 OK", b"<html>"),
        says(b"200 OK", b"[]"),
        says(b"200 OK", b'{"status":"error","message":"no"}'),
        says(b"200 OK", b'{"status":"success","data":["+12025550123"]}'),
        says(b"200 OK", b'{"status":"success","data":{"phone_number":["+12025550123"]}}'),
        says(b"200 OK", b'{"status":"success","data":{"phone_number":"unreadable"}}'),
        says(b"201 Created", GRANT),
        says(b"204 No Content"),
        says(b"302 Found\r\nLocation: /elsewhere"),
        says(b"500 Internal Server Error", b'{"status":"error","message":"no"}'),
        says(b"502 Bad Gateway", b"<html>"),
        says(b"503 Service Unavailable"),
        says(b"599 Unknown"),
    ],
)
def test_a_number_that_may_have_been_granted_stays_visible(
    make_app, make_user, records, talk, capsys
):
    """The main server got the request and did not refuse it: somebody has to investigate, and finds
    the cause in the log."""
    with raw_server(talk) as url:
        client = make_app(MAIN_SERVER_URL=url, UPSTREAM_TIMEOUT="0.5").test_client()
        response = client.get(f"/api/get-number/{make_user().key}?country_id=1")
    assert answer(response) == (500, "Unable to get number")
    assert [row.state for row in records()] == ["unknown"]
    assert re.search(r"event=number_unknown request=1 .*error=.\w+: ", capsys.readouterr().out)


@on_sqlite
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 499])
def test_a_number_that_was_refused_leaves_no_record(make_app, make_user, records, status):
    with raw_server(says(b"%d No" % status)) as url:
        client = make_app(MAIN_SERVER_URL=url).test_client()
        response = client.get(f"/api/get-number/{make_user().key}?country_id=1")
    assert response.status_code == (404 if status == 404 else 500)
    assert not records()


@on_sqlite
@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://unknown.test", "https"])
def test_a_request_that_was_never_sent_leaves_no_record(
    make_app, make_user, records, monkeypatch, url
):
    """Refused, not to be found, or without TLS where the URL says so."""

    look_up = socket.getaddrinfo

    def getaddrinfo(host, *args, **options):
        if host == "unknown.test":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with raw_server(says(b"200 OK", GRANT)) as plain:
        url = plain.replace("http", "https") if url == "https" else url
        client = make_app(MAIN_SERVER_URL=url).test_client()
        response = client.get(f"/api/get-number/{make_user().key}?country_id=1")
    assert answer(response) == (500, "Unable to get number")
    assert not records()


@on_sqlite
@pytest.mark.parametrize("name", ["MAIN_SERVER_URL", "SYSTEM_API_KEY"])
def test_a_main_server_that_is_not_configured_leaves_no_record(make_app, make_user, records, name):
    client = make_app(**{name: ""}).test_client()
    client.get(f"/api/get-number/{make_user().key}?country_id=1")
    assert not records()


@on_sqlite
def test_an_answer_of_256_kb_is_read(make_app, make_user):
    with raw_server(says(b"200 OK", GRANT.ljust(2**18))) as url:
        client = make_app(MAIN_SERVER_URL=url).test_client()
        response = client.get(f"/api/get-number/{make_user().key}?country_id=1")
    assert response.json["data"]["phone_number"] == "+12025550123"


@on_sqlite
def test_a_number_that_cannot_be_recorded_is_logged_and_unknown(
    make_app, make_user, records, capsys
):
    """It was granted: the line is what an operator finds it by."""

    def answer_meanwhile():
        with app.app_context():
            transact(lambda tx: db.session.execute(text("DROP TABLE operators")))
        return granted(operator={"id": 7, "name": "Op"})

    with answering(answer_meanwhile) as main:
        app, user = make_app(MAIN_SERVER_URL=main.url), make_user()
        response = app.test_client().get(f"/api/get-number/{user.key}?country_id=3&operator_id=7")
    assert answer(response) == (500, "Unable to get number")
    (row,) = records()
    assert (row.state, row.digits) == ("unknown", None)
    log = capsys.readouterr().out
    (line,) = [line for line in log.splitlines() if "number_not_recorded" in line]
    assert " CRITICAL " in line
    told = f"request={row.id} user_id={user.id} country_id=3"
    for part in ("phone_number=+12025550123", "operator_id=7", told):
        assert part in line


@pytest.mark.parametrize("method", ["head", "post", "put", "delete", "patch"])
def test_405_wrong_methods_never_allocate(client, make_user, main_server, method):
    response = getattr(client, method)(f"/api/get-number/{make_user().key}?country_id=1")
    assert response.status_code == 405
    assert "GET" in response.headers["Allow"]
    assert not main_server.request_history


@pytest.mark.parametrize("header", ["Sec-Purpose", "Purpose", "X-Moz"])
def test_405_a_prefetch_never_allocates(client, make_user, main_server, header):
    path = f"/api/get-number/{make_user().key}?country_id=1"
    assert client.get(path, headers={header: "prefetch"}).status_code == 405
    assert not main_server.request_history


# --- formats, callers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked_format", "preference", "number", "expected"),
    [
        (None, None, "+12025550123", "+12025550123"),
        (None, None, "0012025550123", "+12025550123"),
        (None, "remove_plus", "+1 (202) 555-0123", "12025550123"),
        ("full", "remove_plus", "12025550123", "+12025550123"),
        ("remove_plus", None, "+12025550123", "12025550123"),
        ("national", None, "+12025550123", "2025550123"),
        (None, "national", "+12025550123", "2025550123"),
        ("national", None, "+442025550123", "442025550123"),
    ],
)
def test_number_format(client, make_user, main_server, asked_format, preference, number, expected):
    main_server.get(URL, **grant(number))
    query = f"country_id=1&number_format={asked_format or ''}"
    response = client.get(f"/api/get-number/{make_user(number_format=preference).key}?{query}")
    assert response.json["data"]["phone_number"] == expected


@pytest.mark.parametrize(
    ("phone_code", "number", "expected"),
    [
        ("1234", "+1234", "1234"),  # nothing would be left
        ("+1 (202)", "+12025550123", "5550123"),
        (44, "+447400849540", "7400849540"),
        ("0044", "+447400849540", "7400849540"),
        (" +44\u202c", "+447400849540", "7400849540"),
        ("1-809, 1-829 and 1-849", "+18295550123", "5550123"),
        ("1/1809", "+18095550123", "5550123"),
        ("1/1809", "+12025550123", "2025550123"),
    ],
)
def test_a_country_with_an_odd_phone_code(
    client, make_user, main_server, phone_code, number, expected
):
    lists = {"countries": [{"id": 1, "phone_code": phone_code}], "operators": []}
    main_server.get(INIT_URL, json={"status": "success", "data": lists})
    main_server.get(URL, **grant(number))
    path = f"/api/get-number/{make_user().key}?country_id=1&number_format=national"
    assert answer(client.get(path))[1]["phone_number"] == expected


def test_the_system_key_acts_for_user_id_and_a_user_key_ignores_it(
    app, client, make_user, main_server
):
    ann, bob = make_user(), make_user(name="Bob")
    client.get(f"/api/get-number/{SYSTEM_KEY}?country_id=1&user_id={bob.id}")
    client.get(f"/api/get-number/{ann.key}?country_id=1&user_id={bob.id}")
    client.get("/api/get-number?country_id=1", headers={"Authorization": f"Bearer {ann.key}"})
    with app.app_context():
        users = db.session.scalars(select(PhoneNumber.user_id).order_by(PhoneNumber.id))
        assert users.all() == [bob.id, ann.id, ann.id]


@on_sqlite
def test_what_was_not_asked_for_is_not_sent(client, make_user, main_server):
    client.get(f"/api/get-number/{make_user().key}?country_id=1")
    client.get(f"/api/get-number/{make_user().key}?country_id=0&operator_id=0")
    first, second = asked(main_server)
    assert first.qs == {"country_id": ["1"], "number_format": ["full"]}
    keys = {call.headers["Idempotency-Key"] for call in (first, second)}
    assert len(keys) == 2 and all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)
    assert second.qs == {"country_id": ["0"], "operator_id": ["0"], "number_format": ["full"]}


def test_main_server_user_id_is_sent(make_app, make_user, main_server):
    client = make_app(MAIN_SERVER_USER_ID=5).test_client()
    client.get(f"/api/get-number/{make_user().key}?country_id=1&user_id=9")
    assert asked(main_server)[0].qs["user_id"] == ["5"]


# --- Idempotency-Key ----------------------------------------------------------------------


def test_idempotency_key_answers_the_same_number_and_asks_nothing(client, make_user, main_server):
    user = make_user(daily_limit=1)
    path = f"/api/get-number/{user.key}?country_id=1&number_format=national"
    headers = {"Idempotency-Key": "once é"}
    answers = [client.get(path, headers=headers).json["data"] for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert len(asked(main_server)) == 1
    assert client.get(path).status_code == 429


def test_a_repeat_asks_nothing_even_in_another_format(make_app, make_user, main_server):
    """Nothing of what the first call learned is asked again; the country's code only when the
    first had no use for it."""
    client = make_app(INIT_CACHE_SECONDS=0).test_client()
    path = f"/api/get-number/{make_user().key}?country_id=1"

    def repeat(query, key):
        response = client.get(f"{path}&{query}", headers={"Idempotency-Key": key})
        return response.json["data"]["phone_number"], len(main_server.request_history)

    assert repeat("number_format=national", "a") == ("2025550123", 2)
    assert repeat("number_format=national", "a") == ("2025550123", 2)
    assert repeat("number_format=full", "a") == ("+12025550123", 2)
    assert repeat("number_format=full", "b") == ("+12025550123", 3)
    assert repeat("number_format=national", "b") == ("2025550123", 4)
    assert len(asked(main_server)) == 2


def test_idempotency_key_is_passed_on_apart_for_each_user(client, make_user, main_server):
    for user in (make_user(), make_user()):
        path = f"/api/get-number/{user.key}?country_id=1"
        assert client.get(path, headers={"Idempotency-Key": "same"}).status_code == 200
    sent = [r.headers["Idempotency-Key"] for r in asked(main_server)]
    assert sent == ["1:same", "2:same"]


@on_sqlite
@pytest.mark.parametrize(
    ("key", "as_it_is"),
    [
        ("~" * 253, True),  # 255 with the user's id in front
        ("~" * 254, False),
        ("é", False),
        ("a\tb", False),
        ("a b", True),
    ],
)
def test_an_odd_idempotency_key_is_passed_on_as_its_hash(
    client, make_user, main_server, key, as_it_is
):
    """Always the same one, and one that every server takes."""
    call = {"headers": {"Idempotency-Key": key}}
    assert client.get(f"/api/get-number/{make_user().key}?country_id=1", **call).status_code == 200
    plain = f"1:{key}"
    expected = plain if as_it_is else hashlib.sha256(plain.encode()).hexdigest()
    assert asked(main_server)[0].headers["Idempotency-Key"] == expected


def test_idempotency_key_may_be_used_again_after_a_failure(client, make_user, main_server):
    path = f"/api/get-number/{make_user().key}?country_id=1"
    for failure, status in (({"status_code": 404}, 404), ({"text": "cut o"}, 500), (grant(), 200)):
        main_server.get(URL, **failure)
        assert client.get(path, headers=KEYED).status_code == status
    assert [r.headers["Idempotency-Key"] for r in asked(main_server)] == ["1:k"] * 3


def test_idempotency_key_is_good_for_24_hours(client, make_user, main_server, records, change):
    path = f"/api/get-number/{make_user().key}?country_id=1"

    def number(query=""):
        return client.get(path + query, headers=KEYED).json["data"]["id"]

    first = number()
    change(requested_at=utcnow() - timedelta(hours=23, minutes=59))
    assert number() == first
    change(requested_at=utcnow() - timedelta(hours=24, minutes=1))
    second = number("&operator_id=5")  # another request by then
    assert second != first
    assert number("&operator_id=5") == second
    assert [row.state for row in records()] == ["assigned", "assigned"]


@pytest.mark.parametrize(
    "left",
    [
        {"age": timedelta(seconds=260)},  # its process died
        {"age": timedelta(0), "state": "unknown"},  # it never heard the answer
    ],
)
def test_a_key_whose_call_came_to_nothing_is_asked_for_again_with_the_same_key(
    make_app, make_user, records, add, left
):
    """In the same record, which is under way again: other repeats wait, and its share of the
    limit is held."""
    seen = []

    def answer_meanwhile():
        seen.extend(records())
        return granted()

    with answering(answer_meanwhile) as main:
        user = make_user(daily_limit=1)
        id = add(under_way(user, key="k", **left))
        client = make_app(MAIN_SERVER_URL=main.url, UPSTREAM_TIMEOUT=100).test_client()
        began = utcnow()
        path = f"/api/get-number/{user.key}?country_id=1"
        response = client.get(path, headers=KEYED)
    assert (response.status_code, response.json["data"]["id"]) == (200, id)
    assert main.asked == ["1:k"]
    assert [row.state for row in seen] == ["requested"]
    assert seen[0].requested_at >= began
    assert [(row.id, row.state) for row in records()] == [(id, "assigned")]


@pytest.mark.parametrize("query", ["country_id=2", "country_id=1&operator_id=3"])
def test_idempotency_key_with_other_parameters_is_400(client, make_user, main_server, query):
    key, call = make_user().key, {"headers": {"Idempotency-Key": "k"}}
    assert client.get(f"/api/get-number/{key}?country_id=1", **call).status_code == 200
    response = client.get(f"/api/get-number/{key}?{query}", **call)
    assert response.status_code == 400
    assert "Idempotency-Key" in response.json["message"]


def test_idempotency_key_of_256_characters_is_400(client, make_user, main_server):
    path = f"/api/get-number/{make_user().key}?country_id=1"
    assert client.get(path, headers={"Idempotency-Key": "k" * 255}).status_code == 200
    response = client.get(path, headers={"Idempotency-Key": "k" * 256})
    assert answer(response) == (400, "Idempotency-Key must be at most 255 characters")


# --- concurrency --------------------------------------------------------------------------


def test_repeats_wait_for_the_call_under_way_and_hold_no_connection(
    make_app, make_user, add, change
):
    """For as long as that call can take, the country list included: then all answer its number.
    More of them wait than there are connections, and another call goes on meanwhile."""
    with answering(granted) as main:
        user = make_user()
        id = add(under_way(user, timedelta(seconds=200), key="k"))
        app = make_app(MAIN_SERVER_URL=main.url, UPSTREAM_TIMEOUT=100)

        def repeat():
            path = f"/api/get-number/{user.key}?country_id=1"
            return answer(app.test_client().get(path, headers=KEYED))

        with statements(app, "FROM phone_numbers") as wait_for:
            results = [in_background(repeat) for _ in range(8)]
            wait_for(24)
            assert app.test_client().get(f"/api/numbers/{user.key}").status_code == 200
            other = f"/api/get-number/{make_user(name='Ben').key}?country_id=1"
            assert app.test_client().get(other).status_code == 200
            change(state="assigned", digits="12025550199", assigned_at=utcnow())
            answers = [result() for result in results]
    number = {"phone_number": "+12025550199", "id": id, "country_id": 1, "operator_id": None}
    assert answers == [(200, number)] * 8
    assert len(main.asked) == 1


@on_sqlite
def test_a_share_of_the_calls_may_wait_for_the_main_server_and_a_quarter_of_it_for_one_user(
    make_app, make_user, records, change
):
    """Of 34 calls at once 10, and 2 of one user: whoever comes then is told to come back, and
    nothing is asked or stored for them."""
    users = [make_user(name=name) for name in "abcdef"]
    held = Held()

    def number():
        held()
        return granted(f"+1202555010{held.calls}")

    with answering(number) as main:
        app = make_app(MAIN_SERVER_URL=main.url, WORKER_CONNECTIONS=34)

        def call(user):
            return app.test_client().get(f"/api/get-number/{user.key}?country_id=1")

        def refused(user):
            response, before = call(user), len(records())
            assert answer(response) == (503, "Unable to get number")
            assert 5 <= int(response.headers["Retry-After"]) <= 15
            assert (held.calls, len(records())) == (len(waiting), before)

        waiting = [in_background(functools.partial(call, users[0])) for _ in range(2)]
        held.wait(2)
        refused(users[0])
        waiting += [in_background(functools.partial(call, u)) for u in users[1:5] for _ in range(2)]
        held.wait(8)
        refused(users[5])
        change(User, daily_limit=2)
        assert answer(call(users[0])) == (429, "Daily number limit reached")
        assert answer(call(users[5])) == (503, "Unable to get number")
        held.let_go()
        assert {result().status_code for result in waiting} == {200}
        assert call(users[5]).status_code == 200


def test_a_repeat_does_not_wait_for_ever(client, make_user, main_server, add, monkeypatch):
    """Where somebody else's clock is far ahead, say. Time passes here without any waiting."""
    user, passed, now = make_user(), [0.0], time.monotonic
    add(under_way(user, -timedelta(days=1), key="k"))

    def sleep(seconds):
        passed[0] += max(seconds, 1)
        if passed[0] > 3600:
            raise TimeoutError

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now() + passed[0])
    response = client.get(f"/api/get-number/{user.key}?country_id=1", headers=KEYED)
    assert answer(response) == (500, "Unable to get number")
    assert not main_server.request_history
    # Long enough for the call under way, and no hour
    assert 20 <= passed[0] < 3600


@on_mariadb
def test_of_two_calls_with_a_new_key_the_slower_answers_the_number_of_the_faster(
    app, client, make_user, main_server
):
    """Both have seen that the key is new; the faster one's record is not committed yet."""
    user = make_user()
    path = f"/api/get-number/{user.key}?country_id=1"
    with app.app_context(), db.engine.connect() as faster:
        values = {"state": "assigned", "digits": "12025550199", "assigned_at": utcnow()}
        values |= {"user_id": user.id, "country_id": 1, "requested_at": utcnow()}
        faster.execute(insert(PhoneNumber).values(idempotency_hash=sha256("k"), **values))
        with statements(app, "INSERT INTO phone_numbers") as wait_for:
            result = in_background(lambda: client.get(path, headers=KEYED))
            wait_for(1)
            faster.commit()
            assert answer(result())[1]["phone_number"] == "+12025550199"
    assert not main_server.request_history


@pytest.mark.parametrize(
    ("late", "status"),
    [
        (({"status": "error", "message": "none left"}, 404), 404),
        (({"status": "error", "message": "not now"}, 400), 500),
        (({"status": "error", "message": "oops"}, 500), 500),
        (granted("+12025550111"), 500),
        # The main server heeds the key: it is the number that we have
        (granted("+12025550199"), 200),
    ],
)
def test_what_a_call_hears_too_late_changes_nothing(
    make_app, make_user, records, add, change, capsys, late, status
):
    """It was given up, and a repeat of it got a number: that one stays, and is counted once."""
    user = make_user()
    # It asks again itself, for a call that died
    add(under_way(user, timedelta(hours=1), key="k"))

    def answer_meanwhile():
        if len(main.asked) > 1:
            return granted("+12025550199")
        change(requested_at=utcnow() - timedelta(hours=1))
        repeat = in_background(lambda: app.test_client().get(path, headers=KEYED))
        assert repeat().status_code == 200
        return late

    with answering(answer_meanwhile) as main:
        app = make_app(MAIN_SERVER_URL=main.url)
        path = f"/api/get-number/{user.key}?country_id=1"
        response = app.test_client().get(path, headers=KEYED)
    assert response.status_code == status
    assert [(row.state, row.digits) for row in records()] == [("assigned", "12025550199")]
    for model in (UserSummary, SystemSummary):  # an hour ago may have been yesterday
        assert sum(summary.numbers for summary in records(model)) == 1
    # A number that was granted and has no record is to be found in the log
    log = capsys.readouterr().out
    assert ("number_not_recorded phone_number=+12025550111" in log) == ("0111" in str(late))


def test_a_number_for_a_record_that_is_gone_is_logged(make_app, make_user, app, capsys):
    def answer_meanwhile():
        with app.app_context():
            transact(lambda tx: db.session.execute(text("DELETE FROM phone_numbers")))
        return granted()

    with answering(answer_meanwhile) as main:
        client = make_app(MAIN_SERVER_URL=main.url).test_client()
        response = client.get(f"/api/get-number/{make_user().key}?country_id=1")
    assert answer(response) == (500, "Unable to get number")
    cause = r"number_not_recorded phone_number=\+12025550123 .*error='FilledMeanwhile'"
    assert re.search(cause, capsys.readouterr().out)


def test_rows_and_summaries_agree_after_544_concurrent_numbers(make_app, make_user):
    """17 threads against a real main server: every count is exact."""
    users, statuses = [make_user(), make_user(), make_user()], []
    with sandbox() as url:
        app = make_app(MAIN_SERVER_URL=url)

        def call(i):
            client = app.test_client()
            for _ in range(32):
                path = f"/api/get-number/{users[i % 3].key}?country_id={i + 1}"
                statuses.append(client.get(path).status_code)

        in_threads(17, call)
    assert statuses == [200] * 544
    with app.app_context():
        rows = db.session.execute(
            select(PhoneNumber.user_id, func.count())
            .where(PhoneNumber.state == "assigned")
            .group_by(PhoneNumber.user_id)
        ).all()
        summed = db.session.execute(select(UserSummary.user_id, UserSummary.numbers)).all()
        system = db.session.execute(
            select(func.sum(SystemSummary.numbers), func.count()).select_from(SystemSummary)
        ).one()
        assert sorted(rows) == sorted(summed)
        assert system[0] == sum(n for _, n in rows) == 544
        assert system[1] > 1, "the system summary is one hot row"


@on_mariadb  # SQLite has one writer
def test_the_daily_limit_counts_a_call_that_is_about_to_commit(app, make_user, main_server):
    path = f"/api/get-number/{make_user(daily_limit=1).key}?country_id=1"
    first, goes_on, second = threading.get_ident(), threading.Event(), []

    def call():
        return app.test_client().get(path).status_code

    def commit(_connection):
        if threading.get_ident() == first and not second:
            second.append(in_background(call))
            assert goes_on.wait(60)

    def waits(_connection, _cursor, statement, *_):
        if threading.get_ident() != first and "FOR UPDATE" in statement:
            goes_on.set()

    def has_counted(_connection, _cursor, statement, *_):
        if threading.get_ident() != first and "count(" in statement:
            goes_on.set()

    listeners = {"before_cursor_execute": waits, "after_cursor_execute": has_counted}
    with listening(app, commit=commit, **listeners):
        assert call() == 200
        assert second[0]() == 429


def test_the_daily_limit_holds_under_concurrent_calls(make_app, make_user):
    user, statuses = make_user(daily_limit=10), []
    with sandbox() as url:
        app = make_app(MAIN_SERVER_URL=url)

        def call(i):
            path = f"/api/get-number/{user.key}?country_id=1"
            for _ in range(4):
                statuses.append(app.test_client().get(path).status_code)

        in_threads(8, call)
    assert sorted(statuses) == [200] * 10 + [429] * 22


def test_concurrent_calls_with_one_idempotency_key_get_one_number(make_app, make_user):
    user, answers = make_user(), []
    with sandbox() as url:
        app = make_app(MAIN_SERVER_URL=url)

        def call(i):
            path = f"/api/get-number/{user.key}?country_id=1"
            response = app.test_client().get(path, headers={"Idempotency-Key": "k"})
            answers.append((response.status_code, response.json["data"]["id"]))

        in_threads(8, call)
    assert len(answers) == 8
    assert set(answers) == {(200, answers[0][1])}


def forgetful_main_server(heeds_keys):
    """(the Idempotency-Keys that came, how it talks): it breaks each connection off at its second
    request; `heeds_keys` says whether it returns the key, as this service does."""
    keys = []

    def talk(connection, stopped):
        for n in range(2):
            while not stopped.is_set() and not wait_for_bytes([connection], [], [], 0.05)[0]:
                pass
            if stopped.is_set() or not (received := connection.recv(65536)):
                return
            keys.append(re.search(rb"Idempotency-Key: (\S+)", received)[1])
            if n == 0:
                digits = hashlib.sha256(keys[-1]).digest()[0] + 12025550000
                body = b'{"status":"success","data":{"phone_number":"+%d"}}' % digits
                echo = b"Idempotency-Key: %b\r\n" % keys[-1] if heeds_keys else b""
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n" % (len(body), echo)
                connection.sendall(head + body)

    return keys, talk


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_number_is_asked_for_twice_only_of_a_main_server_that_heeds_the_key(make_app, make_user):
    """A kept connection broke, and nobody can tell whether the request had arrived."""
    for heeds_keys in (True, False):
        keys, talk = forgetful_main_server(heeds_keys)
        user = make_user()
        with raw_server(talk) as url:
            client = make_app(MAIN_SERVER_URL=url).test_client()
            path = f"/api/get-number/{user.key}?country_id=1"
            statuses = [client.get(path).status_code for _ in range(2)]
        assert statuses == [200, 200 if heeds_keys else 500]
        assert len(keys) == (3 if heeds_keys else 2)
        assert len(set(keys)) == 2  # what was repeated had the same key


def test_the_idempotency_key_is_returned_with_the_number(client, make_user, main_server):
    """So that a deployment whose main server this is knows that it may repeat a request."""
    path = f"/api/get-number/{make_user().key}?country_id=1"
    assert client.get(path, headers={"Idempotency-Key": "k-1"}).headers["Idempotency-Key"] == "k-1"
    assert "Idempotency-Key" not in client.get(path, headers={"Idempotency-Key": "ключ"}).headers
    assert "Idempotency-Key" not in client.get(path).headers


@on_sqlite
def test_a_system_key_is_one_part_of_the_path_whatever_is_in_it(make_app, make_user, requests_mock):
    requests_mock.get(re.compile(MAIN), **grant())
    client = make_app(SYSTEM_API_KEY="a/b?c#d").test_client()
    assert client.get(f"/api/get-number/{make_user().key}?country_id=1").status_code == 200
    [call] = requests_mock.request_history
    assert call.url.startswith(f"{MAIN}/api/get-number/a%2Fb%3Fc%23d?country_id=1")
