"""The real processes: gunicorn and `flask run`, over real sockets, and what they log."""

import contextlib
import itertools
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest
import requests
from flask import Flask

from service.sandbox import create_sandbox
from tests.conftest import SECRET_KEY, SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import BIN, NUMBER, ROOT
from tests.mariadb import free_port
from tests.peers import serving, until
from tests.processes import told_to_stop_meanwhile


def test_flask_run_starts_without_configuration(start, tmp_path):
    port = free_port()
    env = {"DATABASE_URL": f"sqlite:///{tmp_path / 'x.sqlite3'}"}
    env |= {"MAIN_SERVER_URL": "", "SYSTEM_API_KEY": ""}  # whatever .env says
    _, url = start("flask", "run", "--port", str(port), port=port, **env)
    answer = requests.get(f"{url}/api/init/any-key", timeout=30)
    assert (answer.status_code, answer.json()["message"]) == (500, "System configuration error")
    assert "any-key" not in (tmp_path / "log").read_text()


@on_sqlite
def test_what_gateways_send_in_the_query_is_not_logged(
    start, make_provider, tmp_path, database_url
):
    """`flask run` logs whole request lines; Kannel and Jasmin may send the SMS in one."""
    port, path = free_port(), make_provider("kannel", format="kannel")
    _, url = start(
        "flask", "run", "--port", str(port), port=port,
        DATABASE_URL=database_url, SECRET_KEY=SECRET_KEY,
    )  # fmt: skip
    query = "to=447400849540&text=Geheim'\"text+code+918273&id=1"
    answer = requests.get(f"{url}{path}?{query}", timeout=30)
    key = {"X-API-Key": path.rpartition("/")[2]}
    again = requests.get(f"{url}/api/ingest?{query}&x=918273", headers=key, timeout=30)
    assert (answer.status_code, again.status_code) == (200, 200)
    log = (tmp_path / "log").read_text()
    assert log.count('event=request method=GET path="/api/ingest') == 2
    assert f"Running on http://127.0.0.1:{port}" in log and "\x1b" not in log
    assert "918273" not in log and "Geheim" not in log and "447400849540" not in log


@pytest.fixture
def gunicorn(serve):
    """Start it with two processes, at DEBUG, before a main server."""

    def run(main_server, **env):
        return serve(
            MAIN_SERVER_URL=main_server, WEBHOOK_REQUIRE_HTTPS="0",
            WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
            **{"WEB_CONCURRENCY": "2", "LOG_LEVEL": "DEBUG"} | env,
        )  # fmt: skip

    return run


@on_sqlite
def test_no_key_code_or_text_is_logged_end_to_end(gunicorn, make_user, make_provider, tmp_path):
    receiver = Flask("receiver")
    receiver.add_url_rule("/hook", "hook", lambda: "", methods=["POST"])
    sandbox_app = create_sandbox(SYSTEM_KEY)
    with serving(sandbox_app) as main_server, serving(receiver) as hook:
        user = make_user(webhook_url=f"{hook}/hook")
        ingest = make_provider()
        _, url = gunicorn(main_server)
        sandbox_app.config["DELIVER_TO"] = f"{url}/api/ingest/{SYSTEM_KEY}"

        requests.get(f"{url}/api/init/{user.key}", timeout=30)
        path = f"/api/get-number/{user.key}?country_id=2"
        answer = requests.get(url + path, headers={"X-Request-ID": "my-request-1"}, timeout=30)
        assert answer.headers["X-Request-ID"] == "my-request-1"
        number = answer.json()["data"]["phone_number"]
        for operator_id in (9001, 9003, 9004):
            requests.get(f"{url}{path}&operator_id={operator_id}", timeout=30)
        text = "Geheimtext code 918273"
        sms = {"phone_number": number, "sms_text": text}
        sent = requests.post(f"{main_server}/sms", json=sms, timeout=30).json()
        assert sent["data"]["answers"][0]["data"]["webhook"] == "delivered"
        requests.post(url + ingest, json=sms | {"id": "1"}, timeout=30)
        requests.post(url + ingest, json={"sms_text": text}, timeout=30)
        odd = ("/%61pi/init/{}", "//api//init//{}", "/init/{}", "/api/init/{}/more", "/api/x?k={}")
        for shape in odd:
            requests.get(url + shape.format(user.key), timeout=30)
        requests.get(f"{url}/api/init/x%0aevent=forged", timeout=30)

    log = (tmp_path / "log").read_text()
    ingest_key = ingest.rpartition("/")[2]
    for secret in (user.key, SYSTEM_KEY, ingest_key, user.secret, "918273", "Geheimtext"):
        assert secret not in log
    lines = log.splitlines()
    form = r"\d{4}-\d\d-\d\dT[\d:.]+Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) request_id=\S+ .+"
    assert [line for line in lines if not re.fullmatch(form, line)] == []
    for event in ("number_assigned", "sms_stored", "webhook_tried", "upstream_called", "request "):
        assert any(f"event={event}" in line for line in lines), event
    mine = [line for line in lines if "my-request-1" in line]
    assert any("event=number_assigned" in line for line in mine)
    assert any('method=GET path="/api/get-number/***" status=200' in line for line in mine)


@on_sqlite
def test_sigterm_under_load_drops_no_request(gunicorn, make_user):
    """Every request that was sent before or during the stop is answered, or was never taken."""
    with serving(create_sandbox(SYSTEM_KEY, delay=0.5)) as main_server:
        user = make_user()
        process, url = gunicorn(main_server)
        path = f"{url}/api/get-number/{user.key}?country_id=2&operator_id=9002"
        statuses, dropped, stopping = [], [], threading.Event()

        def call():
            while not stopping.is_set():
                try:
                    statuses.append(requests.get(path, timeout=60).status_code)
                except requests.ConnectionError as e:
                    if "refused" not in str(e):
                        dropped.append(e)
                    return

        threads = [threading.Thread(target=call) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(statuses) >= 6)
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
    assert dropped == []
    assert len(statuses) > 6  # some were under way
    assert set(statuses) == {200}


@on_sqlite
def test_sigterm_answers_who_waits_to_be_accepted_and_refuses_who_comes_later(gunicorn, make_user):
    """One call is with the main server when the stop comes, and five have not been accepted:
    the process is suspended, so that they wait in the queue of its listening socket.
    """
    asked, go_on, serial = threading.Event(), threading.Event(), itertools.count(1000)
    main_server = Flask("main server")

    @main_server.get("/api/get-number/<key>")
    def get_number(key):
        asked.set()
        go_on.wait(100)
        number = f"+1202555{next(serial)}"
        return {"status": "success", "data": {"phone_number": number}}

    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(serving(main_server))
        stack.callback(go_on.set)
        process, url = gunicorn(behind, WEB_CONCURRENCY="1")
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        path = f"/api/get-number/{make_user().key}?country_id=2"
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()

        def send():
            sock = stack.enter_context(socket.create_connection(address))
            sock.sendall(request)
            return sock

        calls = [send()]
        assert asked.wait(100)
        with told_to_stop_meanwhile(process):
            calls += [send() for _ in range(5)]

        def refused():
            try:
                socket.create_connection(address).close()
            except ConnectionRefusedError:
                return True

        until(refused)
        assert process.poll() is None  # its answers are not out yet
        go_on.set()
        for sock in calls:
            with sock.makefile("rb") as answer:
                assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
            sock.close()  # gunicorn waits for that, for two seconds
        assert process.wait() == 0


@pytest.mark.server
@pytest.mark.parametrize(("given", "processes"), [({}, "2"), ({"WEB_CONCURRENCY": "3"}, "3")])
def test_gunicorn_is_set_up_from_the_settings(given, processes):
    """A call that waits for the main server twice and for a receiver is never cut."""
    env = {"PATH": str(BIN), "DATABASE_URL": "sqlite://", "SECRET_KEY": SECRET_KEY}
    env |= {"PORT": "8123", "WORKER_CONNECTIONS": "50", "LOG_LEVEL": "ERROR"} | given
    env |= {"UPSTREAM_TIMEOUT": "50", "WEBHOOK_TIMEOUT": "70"}
    command = [BIN / "gunicorn", "--print-config", "wsgi:app"]
    printed = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True).stdout
    found = dict(re.findall(r"(\w+) += (.*)", printed.decode()))
    bind = "[::]:8123" if socket.has_dualstack_ipv6() else "0.0.0.0:8123"
    assert (found["bind"], found["worker_connections"]) == (f"['{bind}']", "50")
    assert found["workers"] == processes
    assert int(found["timeout"]) >= 2 * 50 + 70 + 10
    assert int(found["graceful_timeout"]) >= 2 * 50 + 70 + 10
    # A router keeps a connection for 90 seconds; if it were us who closed, it would call into it
    assert int(found["keepalive"]) > 90
    # Processes end now and then, not all at once, against memory that is never given back
    assert int(found["max_requests"]) > int(found["max_requests_jitter"]) > 0
    assert found["control_socket_disable"] == "True"
    assert "ERROR" in found["logconfig_dict"]


@pytest.mark.server
@pytest.mark.parametrize(
    ("soft", "hard", "connections", "raised_to"),
    [
        (256, 256, 52, 256),
        (256, 1024, 308, 1024),
        (256, 8192, 1000, 3100),
        (4096, 8192, 1000, 4096),
    ],
)
def test_the_limit_on_files_is_raised_where_it_may_be(soft, hard, connections, raised_to):
    code = (
        "import resource, sys; limit = resource.RLIMIT_NOFILE;"
        f"resource.setrlimit(limit, ({soft}, {hard}));"
        "from service.web_worker import affordable;"
        "print(affordable(1000), resource.getrlimit(limit)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout.split() == [b"%d" % connections, b"%d" % raised_to]


@on_sqlite
def test_a_long_sms_in_the_query_is_taken(gunicorn, make_provider):
    """1,000 characters of UCS-2 are 6 kB there; gunicorn's own limit is 4 kB."""
    _, url = gunicorn("http://127.0.0.1:1")
    query = {"to": NUMBER, "text": "رمز " * 250, "id": "1"}
    path = make_provider("kannel", format="kannel")
    assert requests.get(f"{url}{path}", params=query, timeout=30).status_code == 200


@on_sqlite
def test_what_gunicorn_does_not_understand_is_not_logged(gunicorn, make_provider, tmp_path):
    """It quotes a request line with spaces in it, a strange header, a request that breaks off."""
    _, url = gunicorn("http://127.0.0.1:1")
    path, port = make_provider("kannel", format="kannel"), int(url.rpartition(":")[2])
    for request in (
        f"GET {path}?to={NUMBER}&text=Geheim code 918273 HTTP/1.1\r\n\r\n",
        f"GET / HTTP/1.1\r\nX-Api-Key\xff{path}: 918273\r\n\r\n",
        f"GET {path}?text=918273",
        f"Geheim {path}?text=918273\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), 30) as sock:
            sock.sendall(request.encode("latin-1"))
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
    requests.get(f"{url}/api/none", timeout=30)
    log = (tmp_path / "log").read_text()
    assert log.count("event=request_refused address=127.0.0.1 status=400 why=Invalid") == 3
    key = path.rpartition("/")[2]
    assert not [word for word in (key, "918273", "Geheim", NUMBER) if word in log], log
