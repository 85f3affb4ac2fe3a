"""GET /api/get-number/{api_key}: every row of its table, and the records it leaves."""

import threading

import pytest
import requests
from sqlalchemy import func, select

from service import assignment
from service.models import (
    Operator,
    PhoneNumber,
    SystemSummary,
    UserSummary,
    db,
    transact,
    utcnow,
)
from tests.conftest import MAIN, SYSTEM_KEY
from tests.peers import sandbox

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


def asked(main_server):
    return [r for r in main_server.request_history if "/get-number/" in r.url]


def answer(response):
    return response.status_code, response.json.get("message", response.json.get("data"))


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
    response = client.get(
        f"{path}&number_format=national&country_id=1".replace("&country_id=1", "")
    )
    assert answer(response) == (429, "Daily number limit reached")
    assert 0 < int(response.headers["Retry-After"]) <= 86400
    assert len(main_server.request_history) == 2


def test_failed_calls_do_not_use_up_the_limit(client, make_user, main_server):
    path = f"/api/get-number/{make_user(daily_limit=1).key}?country_id=1"
    for failure in ({"status_code": 404}, {"status_code": 500}, {"text": "no"}):
        main_server.get(URL, **failure)
        assert client.get(path).status_code in (404, 500)
    main_server.get(URL, **grant())
    assert [client.get(path).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("country_id", [2, 3])
def test_500_national_without_a_phone_code_asks_for_no_number(
    app, client, make_user, main_server, country_id
):
    path = f"/api/get-number/{make_user().key}?country_id={country_id}&number_format=national"
    assert answer(client.get(path)) == (500, "Could not fetch service data")
    assert not asked(main_server)
    with app.app_context():
        assert db.session.scalar(select(func.count(PhoneNumber.id))) == 0


def test_500_national_when_the_country_list_cannot_be_had(client, make_user, main_server):
    main_server.get(INIT_URL, status_code=503)
    path = f"/api/get-number/{make_user().key}?country_id=1&number_format=national"
    assert answer(client.get(path)) == (500, "Could not fetch service data")
    assert not asked(main_server)


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
        grant(12025550123),
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


def test_500_when_the_database_has_no_schema(make_app, empty_database_url):
    client = make_app(DATABASE_URL=empty_database_url).test_client()
    assert answer(client.get("/api/get-number/k?country_id=1")) == (500, "Unable to get number")


@pytest.mark.parametrize("status", [404, 401])
def test_a_number_that_was_refused_leaves_no_row(app, client, make_user, main_server, status):
    main_server.get(URL, status_code=status)
    client.get(f"/api/get-number/{make_user().key}?country_id=1")
    with app.app_context():
        assert db.session.scalar(select(func.count(PhoneNumber.id))) == 0


def test_a_number_that_may_have_been_granted_stays_visible(app, client, make_user, main_server):
    main_server.get(URL, text="cut o")
    client.get(f"/api/get-number/{make_user().key}?country_id=1")
    with app.app_context():
        assert db.session.scalars(select(PhoneNumber.state)).all() == ["unknown"]


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


def test_idempotency_key_is_passed_on_apart_for_each_user(client, make_user, main_server):
    for user in (make_user(), make_user()):
        path = f"/api/get-number/{user.key}?country_id=1"
        assert client.get(path, headers={"Idempotency-Key": "same"}).status_code == 200
    sent = [r.headers["Idempotency-Key"] for r in asked(main_server)]
    assert sent == ["1:same", "2:same"]


def test_idempotency_key_may_be_used_again_after_a_failure_and_after_24_hours(
    app, client, make_user, main_server
):
    call = {"headers": {"Idempotency-Key": "k"}}
    path = f"/api/get-number/{make_user().key}?country_id=1"
    main_server.get(URL, text="cut o")
    assert client.get(path, **call).status_code == 500
    main_server.get(URL, **grant())
    first = client.get(path, **call).json["data"]
    with app.app_context():
        row = db.session.get(PhoneNumber, first["id"])
        later = utcnow() - assignment.KEY_LIFETIME
        transact(lambda: setattr(row, "requested_at", later))
    assert client.get(path, **call).json["data"]["id"] != first["id"]


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


def in_threads(n, call):
    threads = [threading.Thread(target=call, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


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
