"""Calls to slow and lying peers, over real sockets."""

import contextlib
import socket
import threading
import time

import pytest

from service import outbound
from tests.conftest import SYSTEM_KEY
from tests.peers import raw_server

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def drip(connection, stopped, data):
    """One byte every 50 ms: each well within any socket timeout."""
    for byte in data:
        if stopped.wait(0.05):
            return
        connection.sendall(bytes([byte]))
    stopped.wait()


def silence(connection, stopped):
    stopped.wait()


def header_drip(connection, stopped):
    drip(connection, stopped, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 10000)


def body_drip(connection, stopped):
    connection.sendall(HEAD + b"Content-Length: 10000\r\n\r\n")
    drip(connection, stopped, b"x" * 10000)


def body_drip_until_close(connection, stopped):
    connection.sendall(HEAD + b"\r\n")
    drip(connection, stopped, b'{"status":"success","data":{}}' * 100)


def chunk_drip(connection, stopped):
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    drip(connection, stopped, b"1\r\nx\r\n" * 1000)


def informational_drip(connection, stopped):
    while not stopped.wait(0.05):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def redirect_drip(connection, stopped):
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 10000\r\n\r\n")
    drip(connection, stopped, b"x" * 10000)


SLOW = [
    silence,
    header_drip,
    body_drip,
    body_drip_until_close,
    chunk_drip,
    informational_drip,
    redirect_drip,
]


@pytest.fixture
def session():
    with outbound.new_session() as session:
        yield session


@pytest.mark.parametrize("talk", SLOW)
def test_the_deadline_is_total(session, talk):
    """Far less than the minutes these peers would take; the margin is for a busy machine."""
    with raw_server(talk) as url:
        started = time.monotonic()
        with pytest.raises(outbound.CallFailed) as failed:
            outbound.call(session, "GET", url, seconds=0.5, limit=100000)
        assert time.monotonic() - started < 5
    assert (failed.value.kind, failed.value.sent) == ("timeout", True)


def test_an_endless_body_is_read_to_the_limit(session):
    def endless(connection, stopped):
        connection.sendall(HEAD + b"\r\n")
        while not stopped.is_set():
            connection.sendall(b"x" * 65536)

    with raw_server(endless) as url:
        answer = outbound.call(session, "GET", url, seconds=30, limit=1000)
    assert (answer.status, answer.body, answer.truncated) == (200, b"x" * 1000, True)


def test_a_slow_name_server_ends_at_the_deadline(session, monkeypatch):
    asleep = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asleep.wait(30))
    with pytest.raises(outbound.CallFailed) as failed:
        outbound.call(session, "GET", "http://slow.test/", seconds=0.3, limit=1)
    asleep.set()
    assert (failed.value.kind, failed.value.sent) == ("dns", False)


def test_a_refused_connection_was_not_sent(session):
    with pytest.raises(outbound.CallFailed) as failed:
        outbound.call(session, "GET", "http://127.0.0.1:1/", seconds=5, limit=1)
    assert (failed.value.kind, failed.value.sent) == ("connect", False)


def test_a_connection_is_kept_and_one_cut_by_the_peer_is_not_asked_again(session):
    requests_seen = []

    def talk(connection, stopped):
        while data := connection.recv(65536):
            requests_seen.append((connection.getpeername(), data))
            if len(requests_seen) == 3:
                return
            connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")

    with raw_server(talk) as url:
        for _ in range(2):
            assert outbound.call(session, "GET", url, seconds=5, limit=10).body == b"{}"
        with pytest.raises(outbound.CallFailed) as failed:
            outbound.call(session, "GET", url, seconds=5, limit=10)
        session.close()
    assert (failed.value.kind, failed.value.sent) == ("connection", True)
    assert len(requests_seen) == 3
    assert len({peer for peer, _ in requests_seen}) == 1


def test_no_proxy_of_the_environment_is_used(session, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    def talk(connection, stopped):
        connection.recv(65536)
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")

    with raw_server(talk) as url:
        assert outbound.call(session, "GET", url, seconds=5, limit=10).status == 200


@pytest.mark.parametrize(
    "url", ["http://", "http://a:b:c/", "http://[::1/", f"http://{'a' * 70}.x/"]
)
def test_an_unusable_url_is_reported_not_raised(session, url):
    with pytest.raises(outbound.CallFailed) as failed:
        outbound.call(session, "GET", url, seconds=5, limit=1)
    assert not failed.value.sent


@pytest.mark.parametrize("talk", [silence, header_drip, body_drip])
def test_a_slow_main_server_is_an_error_of_the_contract(make_app, make_user, talk):
    with raw_server(talk) as url:
        client = make_app(MAIN_SERVER_URL=url, UPSTREAM_TIMEOUT="0.5").test_client()
        key = make_user().key
        response = client.get(f"/api/init/{key}")
        assert (response.status_code, response.json["message"]) == (500, "Service fetch failed")
        response = client.get(f"/api/get-number/{key}?country_id=1")
        assert (response.status_code, response.json["message"]) == (500, "Unable to get number")


def test_no_database_connection_is_held_while_the_main_server_is_asked(make_app, make_user):
    from service.models import db

    asked, go = threading.Event(), threading.Event()

    def talk(connection, stopped):
        connection.recv(65536)
        asked.set()
        go.wait(30)
        body = b'{"status":"success","data":{"phone_number":"+12025550123"}}'
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    with raw_server(talk) as url:
        app = make_app(MAIN_SERVER_URL=url)
        key, answers = make_user().key, []
        path = f"/api/get-number/{key}?country_id=1"
        thread = threading.Thread(target=lambda: answers.append(app.test_client().get(path)))
        thread.start()
        assert asked.wait(30)
        with app.app_context():
            held = db.engine.pool.checkedout()
        go.set()
        thread.join()
        with contextlib.suppress(AttributeError):
            app.extensions["upstream"]["session"].close()
    assert held == 0
    assert answers[0].status_code == 200
    assert SYSTEM_KEY not in answers[0].text
