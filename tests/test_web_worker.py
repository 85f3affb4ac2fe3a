"""gunicorn's worker: what a stop, a slow client and a crowd of connections do to others' calls."""

import contextlib
import functools
import itertools
import json
import socket
import subprocess
import sys
import threading

import pytest
import requests
from flask import Flask, request
from gunicorn.http import errors

from service.database.engine import db
from service.database.models import Message
from service.sandbox import create_sandbox
from service.web_worker import WebWorker
from tests import kannel
from tests.conftest import SECRET_KEY, SYSTEM_KEY
from tests.databases import on_sqlite, skip_or_fail
from tests.fixtures import BIN, ROOT, SMS
from tests.forms import token
from tests.mariadb import free_port
from tests.meanwhile import in_background
from tests.peers import sandbox, serving, until
from tests.processes import children, told_to_stop_meanwhile
from tests.world import Held, holding

pytestmark = [pytest.mark.server, on_sqlite]
QUICK = 0.3


@pytest.fixture
def gunicorn(start, tmp_path, database_url):
    """One process of the service; gives (process, base URL).

    `seconds` are the worker's times, `options` gunicorn's own.
    """

    def run(*options, seconds=None, main_server="http://127.0.0.1:1", program=("gunicorn",), **env):
        port, config = free_port(), tmp_path / "gunicorn.conf.py"
        lines = [f"web_worker.{name} = {value}" for name, value in (seconds or {}).items()]
        ours = (ROOT / "gunicorn.conf.py").read_text()
        config.write_text("\n".join([ours, "from service import web_worker", *lines]))
        options = ["-c", config, "--bind", f"127.0.0.1:{port}", *options]
        return start(
            *program, *options, "wsgi:app", port=port, DATABASE_URL=database_url,
            SECRET_KEY=SECRET_KEY, MAIN_SERVER_URL=main_server, SYSTEM_API_KEY=SYSTEM_KEY,
            WEBHOOK_REQUIRE_HTTPS="0", WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
            **{"WEB_CONCURRENCY": "1"} | env,
        )  # fmt: skip

    return run


@pytest.fixture
def connect():
    """Connections to a server, each with the first bytes that it sends."""
    with contextlib.ExitStack() as stack:

        def make(url, first=b""):
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            sock = stack.enter_context(socket.create_connection(address, 100))
            sock.sendall(first)
            return sock

        yield make


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def answer(sock):
    """The status, the header and the body of the next answer; an empty status at the end."""
    with sock.makefile("rb") as file:
        status = file.readline().decode().partition(" ")[2].strip()
        lines = itertools.takewhile(bytes.strip, file)
        header = dict(line.decode().strip().lower().split(": ", 1) for line in lines)
        return status, header, file.read(int(header.get("content-length", 0)))


# --- stopping -----------------------------------------------------------------------------


def test_who_sends_on_a_kept_connection_during_the_stop_is_answered(gunicorn, connect):
    """And whoever does not, on theirs, does not hold up the stop."""
    process, url = gunicorn("--keep-alive", "1000", "--graceful-timeout", "1000")
    asking, silent = connect(url, get("/api/none")), connect(url, get("/api/none"))
    assert [answer(sock)[0][:3] for sock in (asking, silent)] == ["404", "404"]
    with told_to_stop_meanwhile(process):
        asking.sendall(get("/healthz"))
    status, header, _ = answer(asking)
    assert (status, header["connection"]) == ("200 OK", "close")
    assert silent.recv(1) == b""
    assert process.wait() == 0


def test_a_process_that_has_served_enough_is_followed_by_another_before_it_ends(
    gunicorn, connect, make_user
):
    """Its last call is still with the main server when the next one takes over."""
    asked, go_on = threading.Event(), threading.Event()
    main_server = Flask("main server")

    @main_server.get("/api/get-number/<key>")
    def get_number(key):
        asked.set()
        go_on.wait(100)
        return {"status": "success", "data": {"phone_number": "+12025550123"}}

    with serving(main_server) as behind:
        limits = ("--max-requests", "20", "--max-requests-jitter", "0")
        process, url = gunicorn(*limits, main_server=behind)
        [first] = children(process)
        number = connect(url, get(f"/api/get-number/{make_user().key}?country_id=1"))
        assert asked.wait(100)
        for _ in range(30):  # more than the first one serves
            assert requests.get(f"{url}/healthz", timeout=100).status_code == 200
        until(lambda: set(children(process)) - {first})
        assert first in children(process)
        go_on.set()
        assert answer(number)[0] == "200 OK"
        until(lambda: first not in children(process))
        assert len(children(process)) == 1


def test_no_call_is_lost_while_processes_follow_each_other(gunicorn):
    """Callers that keep their connection and callers that do not, over many processes."""
    process, url = gunicorn(
        "--max-requests", "40", "--max-requests-jitter", "0", WEB_CONCURRENCY="2"
    )
    seen, statuses, lost = set(children(process)), [], []

    def call(session):
        while len(seen) < 8:
            try:
                statuses.append(session.get(f"{url}/healthz", timeout=100).status_code)
            except requests.RequestException as e:
                lost.append(e)
            seen.update(children(process))

    callers = [requests.Session(), requests.Session(), requests, requests]
    threads = [threading.Thread(target=call, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    assert set(statuses) == {200}


# --- slow clients -------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", b"G", get("/healthz")[:-2]])
def test_slow_clients_hold_up_nobody_and_the_eldest_of_a_crowd_are_sent_away(
    gunicorn, connect, first
):
    """There are places for 20 connections, and two of them for those that owe a request."""
    _, url = gunicorn(WORKER_CONNECTIONS="20")
    slow = [connect(url, first) for _ in range(200)]
    assert requests.get(f"{url}/healthz", timeout=100).status_code == 200
    assert slow[0].recv(1) == b""


def test_connections_that_rest_make_room_for_others(gunicorn, connect):
    _, url = gunicorn(WORKER_CONNECTIONS="20")
    resting = []
    for _ in range(40):
        resting.append(connect(url, get("/healthz")))
        assert answer(resting[-1])[0] == "200 OK"
    assert resting[0].recv(1) == b""
    resting[-1].sendall(get("/healthz"))
    assert answer(resting[-1])[0] == "200 OK"


def drip(sock, byte=b"x"):
    """Send single bytes until the other side ends it; gives what it said."""
    with contextlib.suppress(OSError):
        sock.settimeout(QUICK / 5)
        while True:
            sock.sendall(byte)
            with contextlib.suppress(TimeoutError):
                sock.settimeout(QUICK / 5)
                if sock.recv(1, socket.MSG_PEEK):
                    break
                return ""
    sock.settimeout(100)
    return answer(sock)[0]


def test_a_head_is_waited_for_in_all_and_not_from_byte_to_byte(gunicorn, connect):
    _, url = gunicorn(seconds={"HEAD_SECONDS": QUICK})
    assert drip(connect(url, b"GET /healthz HTTP/1.1\r\nX: ")) == "408 Request Timeout"
    assert connect(url).recv(1) == b""  # who says nothing is told nothing


def head(path, length):
    kind = "Content-Type: application/json\r\n"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{kind}{length}\r\n\r\n".encode()


BODY = json.dumps(SMS).encode()


def test_a_body_is_waited_for_in_all_and_not_from_byte_to_byte(
    app, gunicorn, connect, make_provider
):
    _, url = gunicorn(seconds={"BODY_SECONDS": QUICK})
    half = head(make_provider(), "Content-Length: 3000") + BODY
    assert drip(connect(url, half), b" ") == "408 Request Timeout"
    silent = connect(url, half)
    status, header, body = answer(silent)
    assert status == "408 Request Timeout"
    assert json.loads(body) == {"status": "error", "message": "Request timeout"}
    assert header["connection"] == "close"
    assert silent.recv(1) == b""
    with app.app_context():
        assert db.session.query(Message).count() == 0


def test_half_a_body_holds_no_connection_to_the_database(
    gunicorn, connect, make_provider, make_user
):
    """There are 3 of these for all calls of a process."""
    _, url = gunicorn()
    path = make_provider()
    for _ in range(20):
        connect(url, head(path, "Content-Length: 300") + BODY[:18])
    numbers = requests.get(f"{url}/api/numbers/{make_user().key}", timeout=100)
    assert numbers.status_code == 200


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        ([b"%x\r\n" % len(BODY), BODY, b"\r\n0\r\n\r\n"], "200 OK"),
        ([b"%x\r\n" % (len(BODY) - 5), BODY, b"\r\n0\r\n\r\n"], "400 Bad Request"),
        ([b"five\r\n", BODY, b"\r\n0\r\n\r\n"], "400 Bad Request"),
        # No chunks at all, of which more could come
        ([BODY], "400 Bad Request"),
    ],
)
def test_broken_chunks_are_refused(app, gunicorn, connect, make_provider, chunks, status):
    _, url = gunicorn()
    sock = connect(url, head(make_provider(), "Transfer-Encoding: chunked") + b"".join(chunks))
    assert answer(sock)[0] == status
    if status != "200 OK":
        assert sock.recv(1) == b""  # nobody knows where the next request begins
    with app.app_context():
        assert db.session.query(Message).count() == (status == "200 OK")


@pytest.mark.parametrize(
    "framing", ["Content-Length: 300", "Transfer-Encoding: chunked"], ids=lambda text: text[:7]
)
def test_a_body_that_is_cut_off_is_refused(app, gunicorn, connect, make_provider, framing):
    """What came of it may look like a whole SMS."""
    _, url = gunicorn()
    form = b"to=12025550123&text=Your code is 12"
    size = b"96\r\n" if "chunked" in framing else b""
    path, kind = make_provider(), "application/x-www-form-urlencoded"
    sock = connect(url, head(path, framing).replace(b"application/json", kind.encode()))
    sock.sendall(size + form)
    sock.shutdown(socket.SHUT_WR)
    assert answer(sock)[0] == "400 Bad Request"
    with app.app_context():
        assert db.session.query(Message).count() == 0


def test_a_body_that_is_too_long_is_refused_unread(gunicorn, connect, make_provider):
    _, url = gunicorn()
    sock = connect(url, head(make_provider(), "Content-Length: 100000000"))
    status, _, body = answer(sock)
    assert (status[:3], json.loads(body)["status"]) == ("413", "error")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequestLine("Geheim"), b"400"),
        (errors.LimitRequestLine(8000, 4000), b"414"),
        (errors.InvalidResponseHeader("Geheim"), b"500"),
        (ZeroDivisionError("Geheim"), b"500"),
    ],
)
def test_what_no_application_has_seen_is_answered_by_whose_fault_it_is(
    error, status, caplog, database_url
):
    """And told by its kind alone."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            raise error
        except Exception as e:
            WebWorker.handle_error(None, None, ours, ("127.0.0.1", 1), e)
        assert theirs.recv(4096).split()[1] == status
    assert "Geheim" not in "".join(caplog.messages)


FORGED = b"SCRIPT_NAME: /public\r\nPATH_INFO: /healthz\r\nREMOTE_USER: ann\r\n"
BY_HTTPS = b"X-Forwarded-Proto: https\r\nX-Forwarded-SSL: on\r\nX-Forwarded-Protocol: ssl\r\n"


@pytest.mark.parametrize("proxies", [0, 1])
def test_no_header_of_a_caller_changes_what_is_asked_for_or_how(gunicorn, connect, proxies):
    """Not even from the same machine; and the scheme is a declared proxy's to tell."""
    _, url = gunicorn(TRUSTED_PROXIES=str(proxies))
    head = b"GET / HTTP/1.1\r\nHost: x\r\n"
    status, header, _ = answer(connect(url, head + FORGED + BY_HTTPS + b"\r\n"))
    assert (status[:3], header["location"]) == ("302", "/profile")
    assert ("strict-transport-security" in header) == bool(proxies)


# --- slow peers ---------------------------------------------------------------------------


def get_of(url, path):
    return requests.get(f"{url}{path}", timeout=100)


def test_a_main_server_that_hangs_holds_up_only_those_who_ask_it(
    gunicorn, make_user, make_provider, assign
):
    """40 callers: as many as may wait for it, the others are told to come back."""
    users = [make_user(name=str(n)) for n in range(10)]
    assign(users[0].id)
    held, main_server, statuses = Held(), create_sandbox(SYSTEM_KEY), []

    @main_server.before_request
    def hold():
        if "/get-number/" in request.path:
            held()

    with serving(main_server) as behind:
        _, url = gunicorn(main_server=behind, WORKER_CONNECTIONS="70", UPSTREAM_TIMEOUT="100")
        paths = [f"/api/get-number/{user.key}?country_id=2" for user in users] * 4
        calls = [in_background(functools.partial(get_of, url, path)) for path in paths]
        held.wait(21)
        assert get_of(url, "/healthz").status_code == 200
        assert get_of(url, f"/api/init/{users[0].key}").status_code in (200, 503)
        assert get_of(url, f"/api/numbers/{users[0].key}").status_code == 200
        assert get_of(url, "/login").status_code == 200
        sms = requests.post(f"{url}{make_provider()}", json=SMS, timeout=100)
        assert sms.json()["data"]["matched"]
        held.let_go()
        statuses = [call().status_code for call in calls]
    assert sorted(set(statuses)) == [200, 503]
    assert statuses.count(200) == held.calls == 21


def test_receivers_that_hang_hold_up_only_their_users(
    gunicorn, make_user, make_provider, assign, receiver
):
    """24 of them and 40 SMS: what may not wait is stored, and left to the worker."""
    path, other = make_provider(), make_user(name="other", webhook_url=receiver.url)
    assign(other.id)
    with sandbox() as behind, holding() as (held, hook):
        for n in range(24):
            assign(make_user(name=str(n), webhook_url=hook).id, f"120255507{n:02}")
        _, url = gunicorn(main_server=behind, WORKER_CONNECTIONS="80", WEBHOOK_TIMEOUT="100")

        def send(n):
            body = {"to": f"+120255507{n % 24:02}", "text": "code 123456", "id": str(n)}
            return requests.post(f"{url}{path}", json=body, timeout=100).json()["data"]["webhook"]

        calls = [in_background(functools.partial(send, n)) for n in range(40)]
        held.wait(12)
        assert get_of(url, "/healthz").status_code == 200
        number = get_of(url, f"/api/get-number/{other.key}?country_id=2")
        assert number.status_code == 200
        held.let_go()
        states = [call() for call in calls]
        sent = requests.post(f"{url}{path}", json=SMS, timeout=100).json()["data"]
    assert sent["webhook"] == "delivered" and len(receiver.received) == 1
    assert states.count("delivered") == held.calls == 12
    assert states.count("pending") == 28


def test_one_users_test_events_hold_up_only_that_user(gunicorn, make_user):
    """The second one is refused at once, as long as the first one waits."""
    with sandbox() as behind, holding() as (held, hook):
        user, other = make_user(webhook_url=hook), make_user(name="Ben")
        _, url = gunicorn(main_server=behind, WORKER_CONNECTIONS="20", WEBHOOK_TIMEOUT="100")

        def send():
            browser = requests.Session()
            form = {"csrf_token": token(browser, f"{url}/login"), "api_key": user.key}
            browser.post(f"{url}/login", data=form, timeout=100)
            form = {"csrf_token": token(browser, f"{url}/profile/edit")}
            return browser.post(f"{url}/profile/test", data=form, timeout=100).text

        calls = [in_background(send) for _ in range(10)]
        held.wait()
        assert get_of(url, f"/api/init/{other.key}").status_code == 200
        assert get_of(url, "/healthz").status_code == 200
        until(lambda: sum(call.is_done() for call in calls) == 9)
        held.let_go()
        pages = [call() for call in calls]
    assert sum("A webhook of yours is still being sent." in page for page in pages) == 9
    assert held.calls == 1


# --- connections --------------------------------------------------------------------------


def test_there_are_no_more_connections_than_files(gunicorn, connect):
    """A process that has no files left for a connection cannot open its database either."""
    limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256));"
    limited += "os.execv(sys.argv[1], sys.argv[1:])"
    process, url = gunicorn(program=("python", "-c", limited, BIN / "gunicorn"))
    served = children(process)
    crowd = [connect(url, get("/healthz")) for _ in range(400)]
    assert answer(crowd[-1])[0] == "200 OK"
    assert requests.get(f"{url}/healthz", timeout=100).status_code == 200
    assert children(process) == served


def test_both_families_of_addresses_are_served(tmp_path, database_url):
    """In a network of its own, since it listens on all addresses there."""
    if subprocess.run([*kannel.UNSHARE, "true"], capture_output=True, check=False).returncode:
        skip_or_fail("this machine allows no network namespace (unshare --net)")
    command = [*kannel.UNSHARE, sys.executable, "-m", "tests.dual_stack", database_url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    answered = [line for line in done.stdout.splitlines() if line.startswith("answered")]
    expected = ["answered 200 at 127.0.0.1", "answered 200 at ::1"]
    assert answered == expected[: 1 + socket.has_dualstack_ipv6()], done.stdout + done.stderr
    assert "event=login_failed address=127.0.0.1" in done.stdout
