"""GET /api/init/{api_key}."""

import json
import threading
import time
from urllib.parse import quote

import pytest
import requests
from flask import Flask, request

from service.sandbox import create_sandbox
from tests.conftest import MAIN, SYSTEM_KEY
from tests.databases import on_sqlite
from tests.meanwhile import in_background, statements
from tests.peers import serving
from tests.world import Held

URL = f"{MAIN}/api/init/{SYSTEM_KEY}"
DATA = {
    "countries": [{"id": 1, "name": "Country A", "phone_code": "1", "flag": "A"}],
    "operators": [{"id": 101, "name": "Operator X", "country_id": 1, "extra": [1]}],
}


def error(message):
    return {"status": "error", "message": message}


def test_gives_what_the_main_server_gave_unknown_fields_too(client, make_user, requests_mock):
    requests_mock.get(URL, json={"status": "success", "data": DATA})
    response = client.get(f"/api/init/{make_user().key}")
    assert (response.status_code, response.json) == (200, {"status": "success", "data": DATA})
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("how", ["path", "bearer", "x-api-key", "system"])
def test_takes_the_key_from_path_or_headers(client, make_user, requests_mock, how):
    requests_mock.get(URL, json={"status": "success", "data": DATA})
    key = make_user().key
    call = {
        "path": (f"/api/init/{key}", {}),
        "bearer": ("/api/init", {"Authorization": f"bearer {key}"}),
        "x-api-key": ("/api/init", {"X-API-Key": key}),
        "system": (f"/api/init/{SYSTEM_KEY}", {}),
    }[how]
    assert client.get(call[0], headers=call[1]).status_code == 200


@pytest.mark.parametrize("columns", [{"active": False}, {"approved": False}])
def test_401_for_a_user_who_may_not_call(client, make_user, columns):
    response = client.get(f"/api/init/{make_user(**columns).key}")
    assert (response.status_code, response.json) == (401, error("Unauthorized"))


@pytest.mark.parametrize("path", ["/api/init", "/api/init/", "/api/init/nobody", "/api/init/%00é"])
def test_401_without_a_valid_key(client, path):
    response = client.get(path)
    assert (response.status_code, response.json) == (401, error("Unauthorized"))


@pytest.mark.parametrize("key", ["aB3/xY+z9Qk==", "a//b", "a b", "é%/?#"])
def test_a_system_key_of_any_characters_works_in_the_path(make_app, make_user, key):
    """As other programs make keys; and it is passed on to the main server as it is."""
    user = make_user()
    with serving(create_sandbox(key)) as sandbox:
        first = make_app(SYSTEM_API_KEY=key, MAIN_SERVER_URL=sandbox)
        with serving(first) as url:
            second = make_app(
                SYSTEM_API_KEY=key, MAIN_SERVER_URL=url, MAIN_SERVER_USER_ID=user.id
            ).test_client()
            assert second.get(f"/api/init/{quote(key, safe='')}").status_code == 200
            number = f"/api/get-number/{quote(key, safe='')}?user_id={user.id}&country_id=2"
            assert second.get(number).status_code == 200


@pytest.mark.parametrize("name", ["SYSTEM_API_KEY", "MAIN_SERVER_URL"])
def test_500_when_the_system_is_not_configured(make_app, name):
    response = make_app(**{name: ""}).test_client().get("/api/init/any")
    assert (response.status_code, response.json) == (500, error("System configuration error"))


@pytest.mark.parametrize(
    "answer",
    [
        {"exc": requests.ConnectionError},
        {"exc": requests.Timeout},
        {"status_code": 302, "headers": {"Location": "http://other.test/"}},
        {"text": "<html>"},
        {"text": "[" * 100000},
        {"json": []},
        {"json": {"status": "error", "message": "no"}},
        {"json": {"status": "success"}},
        {"json": {"status": "success", "data": []}},
        {"json": {"status": "success", "data": {"countries": []}}},
        {"json": {"status": "success", "data": {"countries": {}, "operators": []}}},
        {"json": {"status": "success", "data": {"countries": [1], "operators": []}}},
        {"json": {"status": "success", "data": {"countries": [{"id": "1"}], "operators": []}}},
        {"status_code": 502, "text": "<html>Bad gateway</html>"},
        {"status_code": 201, "json": {"status": "success", "data": DATA}},
        {"status_code": 204},
        {"status_code": 503, "json": {"status": "error", "message": ["a", "list"]}},
    ],
)
def test_500_when_the_answer_is_not_the_contract(client, make_user, requests_mock, answer):
    requests_mock.get(URL, **answer)
    response = client.get(f"/api/init/{make_user().key}")
    assert (response.status_code, response.json) == (500, error("Service fetch failed"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_a_main_servers_error_keeps_its_status_and_message(
    client, make_user, requests_mock, status
):
    requests_mock.get(URL, status_code=status, json=error(f"Reason for {SYSTEM_KEY}"))
    response = client.get(f"/api/init/{make_user().key}")
    assert (response.status_code, response.json) == (status, error("Reason for ***"))


@on_sqlite
def test_a_main_servers_message_is_cut_at_500_characters(client, make_user, requests_mock):
    """Once the key in it is masked, since a cut one would not be found."""
    message = "x" * 490 + SYSTEM_KEY + "y" * 1000
    requests_mock.get(URL, status_code=503, json=error(message))
    response = client.get(f"/api/init/{make_user().key}")
    assert response.json == error("x" * 490 + "***" + "y" * 7)


@on_sqlite
@pytest.mark.parametrize(("size", "status"), [(8 * 2**20, 200), (8 * 2**20 + 1, 500)])
def test_an_answer_of_up_to_8_mb_is_read(client, make_user, requests_mock, size, status):
    body = json.dumps({"status": "success", "data": DATA}).encode()
    requests_mock.get(URL, content=body.ljust(size))
    assert client.get(f"/api/init/{make_user().key}").status_code == status


@on_sqlite
def test_the_answer_is_cached_for_a_minute(client, make_user, requests_mock, monkeypatch):
    requests_mock.get(URL, json={"status": "success", "data": DATA})
    path, passed, now = f"/api/init/{make_user().key}", [0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + passed[0])
    for seconds, calls in [(0, 1), (50, 1), (9, 1), (2, 2), (50, 2), (11, 3)]:
        passed[0] += seconds
        assert client.get(path).json["data"] == DATA
        assert requests_mock.call_count == calls


def test_the_answer_is_cached_and_an_error_is_not(client, make_user, requests_mock):
    requests_mock.get(URL, [{"status_code": 503}, {"json": {"status": "success", "data": DATA}}])
    path = f"/api/init/{make_user().key}"
    assert [client.get(path).status_code for _ in range(3)] == [500, 200, 200]
    assert requests_mock.call_count == 2


def test_init_cache_seconds_0_asks_every_time(make_app, make_user, requests_mock):
    """And answers what the main server says now."""
    told = [{"countries": [{"id": n, "name": "Å"}], "operators": []} for n in range(3)]
    requests_mock.get(URL, [{"json": {"status": "success", "data": data}} for data in told])
    client, key = make_app(INIT_CACHE_SECONDS=0).test_client(), make_user().key
    assert [client.get(f"/api/init/{key}").json["data"] for _ in range(3)] == told
    assert requests_mock.call_count == 3


@on_sqlite
@pytest.mark.parametrize("status", [200, 503])
def test_concurrent_misses_make_one_upstream_call(make_app, make_user, status):
    """All of them get its answer, or its error; after an error the next call asks again."""
    asked, asked_again, go = [], threading.Event(), threading.Event()
    main = Flask("main")

    @main.get("/api/init/<key>")
    def init(key):
        if asked:
            asked_again.set()
        asked.append(key)
        assert go.wait(60)
        return ({"status": "success", "data": DATA}, 200) if status == 200 else (error("no"), 503)

    with serving(main) as url:
        app, path = make_app(MAIN_SERVER_URL=url), f"/api/init/{make_user().key}"
        with statements(app, "FROM users") as wait_for:
            results = [in_background(lambda: app.test_client().get(path)) for _ in range(8)]
            wait_for(8)  # all have shown their key, and want the lists next
        asked_again.wait(0.3)
        go.set()
        assert [result().status_code for result in results] == [status] * 8
        assert len(asked) == 1
        app.test_client().get(path)
    assert len(asked) == (1 if status == 200 else 2)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("get", "/api/none", 404), ("post", "/api/init/k", 405), ("delete", "/api", 404)],
)
def test_every_error_under_api_is_json(client, method, path, status):
    response = getattr(client, method)(path)
    assert (response.status_code, response.json["status"]) == (status, "error")
    assert response.headers["Cache-Control"] == "no-store"


@on_sqlite
def test_init_beyond_the_share_is_refused_unless_the_countries_are_known(make_app, make_user):
    """Of 20 calls at once 6 may wait for the main server, and one of a user's."""
    user, held = make_user(), Held()
    main_server = create_sandbox(SYSTEM_KEY)

    @main_server.before_request
    def hold_numbers():
        if request.path.startswith("/api/get-number"):
            held()

    with serving(main_server) as url:
        app = make_app(MAIN_SERVER_URL=url, WORKER_CONNECTIONS=20)
        client = app.test_client()
        number = in_background(
            lambda: app.test_client().get(f"/api/get-number/{user.key}?country_id=1")
        )
        held.wait()
        response = client.get(f"/api/init/{user.key}")
        assert (response.status_code, response.json) == (503, error("Service fetch failed"))
        assert 5 <= int(response.headers["Retry-After"]) <= 15
        assert client.get(f"/api/init/{make_user().key}").status_code == 200
        assert client.get(f"/api/init/{user.key}").status_code == 200
        held.let_go()
        assert number().status_code == 200
