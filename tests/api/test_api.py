"""What every answer of the API keeps: its form, its headers, its errors, its limits."""

import json
import re
import shutil
import stat
import subprocess
import sys

import pytest
from flask import Flask

from service.database.engine import db
from tests.conftest import MAIN, SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import NUMBER, ROOT
from tests.peers import serving

pytestmark = on_sqlite

DATA = {"operators": [], "countries": [{"phone_code": "1", "id": 1, "name": "A"}], "a": 1}
CALLS = ("init", "get-number", "numbers", "messages", "summary")


@pytest.fixture
def main_server(requests_mock):
    number = {"status": "success", "data": {"phone_number": f"+{NUMBER}"}}
    requests_mock.get(f"{MAIN}/api/get-number/{SYSTEM_KEY}", json=number)
    answer = {"status": "success", "data": DATA}
    requests_mock.get(f"{MAIN}/api/init/{SYSTEM_KEY}", json=answer)
    return requests_mock


@pytest.fixture
def broken(make_app, tmp_path):
    """A client of an app whose database has no tables."""
    return make_app(DATABASE_URL=f"sqlite:///{tmp_path}/empty.sqlite3").test_client()


# --- the form -----------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_a_success_is_status_then_data_as_documented(client, make_user, main_server, call):
    response = client.get(f"/api/{call}/{make_user().key}?country_id=1")
    assert (response.status_code, response.mimetype) == (200, "application/json")
    assert list(json.loads(response.text)) == ["status", "data"]
    assert response.json["status"] == "success"
    assert response.headers["Cache-Control"] == "no-store"


def test_init_keeps_the_order_of_the_main_server(client, make_user, main_server):
    data = json.loads(client.get(f"/api/init/{make_user().key}").text)["data"]
    assert list(data) == list(DATA)
    assert list(data["countries"][0]) == list(DATA["countries"][0])


@pytest.mark.parametrize(
    ("method", "path", "status", "message", "allow"),
    [
        ("GET", "/api", 404, None, None),
        ("GET", "/api/nothing", 404, None, None),
        ("GET", "/api/", 404, None, None),
        ("POST", "/api/numbers/x", 405, None, {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", "/api/ingest/x", 405, None, {"GET", "HEAD", "OPTIONS", "POST"}),
        ("HEAD", "/api/get-number/x", 405, "", {"GET"}),
        ("POST", "/healthz", 405, None, {"GET", "HEAD", "OPTIONS"}),
        ("POST", "/openapi.json", 405, None, {"GET", "HEAD", "OPTIONS"}),
        ("GET", "/api/init/x", 401, "Unauthorized", None),
        ("GET", "/api/numbers/x", 401, "Invalid api_key", None),
        ("POST", "/api/ingest", 401, "Invalid ingest_key", None),
    ],
)
def test_an_error_is_status_and_message_with_the_real_status(
    client, method, path, status, message, allow
):
    response = client.open(path, method=method)
    assert (response.status_code, response.mimetype) == (status, "application/json")
    assert response.headers["Cache-Control"] == "no-store"
    assert len(response.headers["X-Request-ID"]) == 32
    if method != "HEAD":
        body = json.loads(response.text)
        assert list(body) == ["status", "message"]
        assert body["status"] == "error"
        assert body["message"] == message if message else body["message"]
    if allow:
        assert set(response.headers["Allow"].split(", ")) == allow


def test_an_old_schema_is_a_503_that_says_what_to_do(broken):
    said = {}
    for call in CALLS:
        response = broken.get(f"/api/{call}/some-key?country_id=1")
        assert (response.status_code, response.json["status"]) == (503, "error")
        assert response.headers["Cache-Control"] == "no-store"
        assert list(response.json) == ["status", "message"]
        said[call] = response.json["message"]
    said["ingest"] = broken.post("/api/ingest/x").json["message"]
    assert set(said.values()) == {"The database schema is not current: run `flask db upgrade`"}


def test_the_cause_of_a_500_is_logged(broken, client, make_user, requests_mock, caplog):
    broken.get("/api/numbers/some-key")
    assert "event=request_failed" in caplog.text
    [record] = [record for record in caplog.records if record.exc_info]
    assert "no such table" in str(record.exc_info[1])
    requests_mock.get(f"{MAIN}/api/init/{SYSTEM_KEY}", text="no JSON")
    assert client.get(f"/api/init/{make_user().key}").status_code == 500
    assert [r.getMessage() for r in caplog.records if r.exc_info][1:] == ["event=request_failed"]


# --- what costs a number ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Sec-Purpose", "Purpose", "X-Purpose", "X-Moz", None])
@pytest.mark.parametrize("in_path", [True, False])
def test_neither_a_prefetch_nor_head_takes_a_number(client, make_user, main_server, name, in_path):
    """Wherever the key is; other calls may be fetched ahead."""
    key = make_user().key
    headers = {name: "Prefetch;anonymous-client-ip"} if name else {}
    headers |= {} if in_path else {"X-API-Key": key}
    path = f"/{key}" if in_path else ""
    method = "GET" if name else "HEAD"
    response = client.open(f"/api/get-number{path}?country_id=1", method=method, headers=headers)
    assert (response.status_code, response.headers["Allow"]) == (405, "GET")
    assert not main_server.request_history
    assert client.open(f"/api/numbers{path}", method=method, headers=headers).status_code == 200
    if name:
        headers[name] = "preview"
        path = f"/api/get-number{path}?country_id=1"
        assert client.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize(("key", "numbers"), [("", 2), ("k" * 255, 1), ("k" * 256, 0)])
def test_an_idempotency_key_has_1_to_255_characters(client, make_user, main_server, key, numbers):
    """An empty one is none: each call takes a number then."""
    path, headers = f"/api/get-number/{make_user().key}?country_id=1", {"Idempotency-Key": key}
    responses = [client.get(path, headers=headers) for _ in range(2)]
    assert [response.status_code for response in responses] == [200 if numbers else 400] * 2
    asked = [r for r in main_server.request_history if "/get-number/" in r.url]
    assert len(asked) == numbers


def test_init_holds_no_connection_while_the_main_server_is_asked(make_app, make_user):
    main, held = Flask("main server"), []

    @main.get("/api/init/<key>")
    def init(key):
        with app.app_context():
            held.append(db.engine.pool.checkedout())
        return {"status": "success", "data": DATA}

    with serving(main) as url:
        app = make_app(MAIN_SERVER_URL=url)
        response = app.test_client().get(f"/api/init/{make_user().key}")
    assert (response.status_code, held) == (200, [0])


# --- request ids --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a" * 7, False), ("a" * 8, True), ("a" * 64, True), ("a" * 65, False),
        ("aA0_.-zZ9", True), ("", False), ("two words", False), ("a/b/c/d/e", False),
        ("12345678;", False), ("12345678é", False), ("éééééééé", False), ("12345678=", False),
    ],
)  # fmt: skip
def test_a_request_id_is_taken_over_when_it_is_a_plain_one(client, given, kept):
    """It goes into the log, where it must not pass for anything else; of errors and pages too."""
    environ = {"HTTP_X_REQUEST_ID": given}
    for path in ("/healthz", "/api/none", "/login", "/none"):
        told = client.get(path, environ_overrides=environ).headers["X-Request-ID"]
        assert told == given if kept else re.fullmatch("[0-9a-f]{32}", told)


def test_each_request_has_an_id_of_its_own(client):
    ids = {client.get("/healthz").headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5


# --- what proxies say ---------------------------------------------------------------------

NONE, ONE = {}, {"TRUSTED_PROXIES": 1}  # the default is none


@pytest.mark.parametrize(
    ("hops", "proto", "secure"),
    [
        (NONE, "https", False),
        (ONE, "https", True),
        (ONE, "https, http", False),
        ({"TRUSTED_PROXIES": 2}, "https, http", True),
    ],
)
def test_https_is_believed_of_trusted_proxies_only(make_app, hops, proto, secure):
    """Of as many as there are: what the caller put before them is the caller's own."""
    client = make_app(**hops).test_client()
    response = client.get("/login", headers={"X-Forwarded-Proto": proto})
    assert ("Secure" in response.headers["Set-Cookie"]) == secure


@pytest.mark.parametrize(
    ("hops", "spoofed", "throttled"),
    [
        (NONE, "192.0.2.{}", True),
        (ONE, "192.0.2.{}", False),
        (ONE, "192.0.2.{}, 198.51.100.1", True),
    ],
)
def test_a_callers_address_is_believed_of_trusted_proxies_only(make_app, hops, spoofed, throttled):
    """Wrong keys are counted by address: who could choose it could go on guessing."""
    client = make_app(**hops).test_client()
    token = re.search(r'csrf_token" value="([^"]+)"', client.get("/login").text)[1]
    form = {"csrf_token": token, "api_key": "wrong"}

    def guess(n):
        headers = {"X-Forwarded-For": spoofed.format(n)}
        return client.post("/login", data=form, headers=headers).status_code

    assert (429 in [guess(n) for n in range(30)]) == throttled


def test_no_prefix_is_believed(make_app):
    client = make_app(TRUSTED_PROXIES=1).test_client()
    response = client.get("/profile", headers={"X-Forwarded-Prefix": "//evil.example"})
    assert response.headers["Location"] == "/login"


# --- the start ----------------------------------------------------------------------------


@pytest.mark.server
def test_a_secret_key_is_made_once_and_kept(tmp_path, database_url):
    """For one machine, readable by nobody else; one that is set leaves no file behind."""
    shutil.copytree(ROOT / "service", tmp_path / "service")
    shutil.copy(ROOT / "config.py", tmp_path)
    script = """
import os
from pathlib import Path
from service import create_app
def key(given):
    os.environ["SECRET_KEY"] = given
    return create_app().config["SECRET_KEY"]
print(key("given"), Path("instance").exists(), key(""), key(""))
"""
    env = {"DATABASE_URL": database_url, "LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    given, made_early, first, second = done.stdout.decode().split()
    assert (given, made_early) == ("given", "False")
    kept = tmp_path / "instance" / "secret_key"
    assert kept.read_text() == first == second
    assert len(first) >= 32
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
