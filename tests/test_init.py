"""GET /api/init/{api_key}."""

import threading
from urllib.parse import quote

import pytest
import requests

from service.sandbox import create_sandbox
from tests.conftest import MAIN, SYSTEM_KEY
from tests.peers import serving

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
        {"status_code": 204},
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


def test_the_answer_is_cached_and_an_error_is_not(client, make_user, requests_mock):
    requests_mock.get(URL, [{"status_code": 503}, {"json": {"status": "success", "data": DATA}}])
    path = f"/api/init/{make_user().key}"
    assert [client.get(path).status_code for _ in range(3)] == [500, 200, 200]
    assert requests_mock.call_count == 2


def test_init_cache_seconds_0_asks_every_time(make_app, make_user, requests_mock):
    requests_mock.get(URL, json={"status": "success", "data": DATA})
    client, key = make_app(INIT_CACHE_SECONDS=0).test_client(), make_user().key
    assert [client.get(f"/api/init/{key}").status_code for _ in range(3)] == [200] * 3
    assert requests_mock.call_count == 3


def test_concurrent_misses_make_one_upstream_call(app, make_user, requests_mock):
    go, asked = threading.Event(), []

    def answer(request, context):
        asked.append(request)
        go.wait(30)
        return {"status": "success", "data": DATA}

    requests_mock.get(URL, json=answer)
    key, statuses = make_user().key, []

    def call():
        statuses.append(app.test_client().get(f"/api/init/{key}").status_code)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    while not asked:
        threads[0].join(0.01)
    go.set()
    for thread in threads:
        thread.join()
    assert (statuses, len(asked)) == ([200] * 8, 1)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("get", "/api/none", 404), ("post", "/api/init/k", 405), ("delete", "/api", 404)],
)
def test_every_error_under_api_is_json(client, method, path, status):
    response = getattr(client, method)(path)
    assert (response.status_code, response.json["status"]) == (status, "error")
    assert response.headers["Cache-Control"] == "no-store"
