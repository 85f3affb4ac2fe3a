"""The real processes: gunicorn and `flask run`, over real sockets, and what they log."""

import re
import signal
import socket
import threading
import time

import requests
from flask import Flask

from service import logs
from service.models import new_key
from service.sandbox import create_sandbox
from tests.conftest import SECRET_KEY, SYSTEM_KEY
from tests.fixtures import NUMBER
from tests.mariadb import free_port
from tests.peers import serving


def test_flask_run_starts_without_configuration(start, tmp_path):
    port = free_port()
    env = {"DATABASE_URL": f"sqlite:///{tmp_path / 'x.sqlite3'}"}
    env |= {"MAIN_SERVER_URL": "", "SYSTEM_API_KEY": ""}  # whatever .env says
    _, url = start("flask", "run", "--port", str(port), port=port, **env)
    answer = requests.get(f"{url}/api/init/any-key", timeout=30)
    assert (answer.status_code, answer.json()["message"]) == (500, "System configuration error")
    assert "any-key" not in (tmp_path / "log").read_text()


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
    assert log.count("GET /api/ingest") == 2
    assert "918273" not in log and "Geheim" not in log and "447400849540" not in log


def gunicorn(start, main_server, database_url):
    port = free_port()
    return start(
        "gunicorn", "--bind", f"127.0.0.1:{port}", "wsgi:app", port=port,
        DATABASE_URL=database_url, MAIN_SERVER_URL=main_server, SYSTEM_API_KEY=SYSTEM_KEY,
        SECRET_KEY=SECRET_KEY, WEBHOOK_REQUIRE_HTTPS="0", WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
        WEB_CONCURRENCY="2", THREADS="4", LOG_LEVEL="DEBUG",
    )  # fmt: skip


def test_no_key_code_or_text_is_logged_end_to_end(
    start, make_user, make_provider, tmp_path, database_url
):
    receiver = Flask("receiver")
    receiver.add_url_rule("/hook", "hook", lambda: "", methods=["POST"])
    sandbox_app = create_sandbox(SYSTEM_KEY)
    with serving(sandbox_app) as main_server, serving(receiver) as hook:
        user = make_user(webhook_url=f"{hook}/hook")
        ingest = make_provider()
        _, url = gunicorn(start, main_server, database_url)
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


def test_sigterm_under_load_drops_no_request(start, make_user, database_url):
    """Every request that was sent before or during the stop is answered, or was never taken."""
    with serving(create_sandbox(SYSTEM_KEY, delay=0.5)) as main_server:
        user = make_user()
        process, url = gunicorn(start, main_server, database_url)
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
        while len(statuses) < 6:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        stopping.set()
        for thread in threads:
            thread.join()
    assert dropped == []
    assert len(statuses) > 6  # some were under way
    assert set(statuses) == {200}


def test_masking():
    key = new_key("usr")
    assert logs.mask(f"GET /api/init/{key}/x?a=1") == "GET /api/init/***?a=1"
    assert logs.mask(f"key {key}, whsec_{'Ab+/' * 8}=") == "key usr_***, whsec_***"
    assert logs.mask("http://h/api/get-number/short HTTP/1.1") == (
        "http://h/api/get-number/*** HTTP/1.1"
    )
    assert logs.mask('"GET /api/ingest/k?text=a code HTTP/ 1 HTTP/1.1" 400 -') == (
        '"GET /api/ingest/***?*** HTTP/1.1" 400 -'
    )
    assert logs.mask(f"X-Api-Keyÿ{key}") == "X-Api-Keyÿusr_***"


def test_a_long_sms_in_the_query_is_taken(start, make_provider, database_url):
    """1,000 characters of UCS-2 are 6 kB there; gunicorn's own limit is 4 kB."""
    _, url = gunicorn(start, "http://127.0.0.1:1", database_url)
    query = {"to": NUMBER, "text": "رمز " * 250, "id": "1"}
    path = make_provider("kannel", format="kannel")
    assert requests.get(f"{url}{path}", params=query, timeout=30).status_code == 200


def test_what_gunicorn_does_not_understand_is_not_logged(
    start, make_provider, tmp_path, database_url
):
    """It quotes a request line with spaces in it, a strange header, a request that breaks off."""
    _, url = gunicorn(start, "http://127.0.0.1:1", database_url)
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
    assert log.count("Invalid request from ip=127.0.0.1: ") == 3
    key = path.rpartition("/")[2]
    assert not [word for word in (key, "918273", "Geheim", NUMBER) if word in log], log
