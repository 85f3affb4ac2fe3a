"""Calls to slow and lying peers, over real sockets."""

import contextlib
import datetime
import gzip
import ipaddress
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from service import outbound
from service.database.engine import db
from service.version import VERSION
from tests.conftest import SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import ROOT
from tests.peers import HEAD, NO_STATUS, SLOW, body_drip, header_drip, raw_server, silence


@pytest.fixture
def session():
    with outbound.new_session() as session:
        yield session


def answering(body=b"{}", head=HEAD):
    """A peer that answers each request of a connection; `seen` holds what came."""

    def talk(connection, stopped):
        connection.settimeout(0.1)
        while not stopped.is_set():
            try:
                data = connection.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return
            talk.seen.append(data)
            connection.sendall(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    talk.seen = []
    return talk


def failure(session, url, **options):
    """(kind, sent) of a call that must fail."""
    with pytest.raises(outbound.CallFailed) as failed:
        outbound.call(session, "GET", url, **({"seconds": 30, "limit": 100000} | options))
    return failed.value.kind, failed.value.sent


@pytest.fixture
def addresses(monkeypatch):
    """A resolver of the test's own: host -> addresses, or an error; `asked` are its look-ups."""
    real = socket.getaddrinfo

    class Table(dict):
        asked = []

    def getaddrinfo(host, port, *args, **options):
        if host not in table:
            return real(host, port, *args, **options)
        table.asked.append(host)
        if isinstance(table[host], Exception):
            raise table[host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in table[host]]

    table = Table()
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return table


@contextlib.contextmanager
def black_hole(port=0):
    """A listener on 127.0.0.2 that takes no connection, since its queue is full; gives its
    port."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.2", port))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]


def is_cut_off(session, talk, url):
    """Whether the deadline ends a call to a slow peer: without a status it is an error, with one it
    is an answer that is not complete."""
    if talk in NO_STATUS:
        return failure(session, url, seconds=0.5) == ("timeout", True)
    answer = outbound.call(session, "GET", url, seconds=0.5, limit=100000)
    return answer.status in (200, 302) and not answer.complete


@pytest.mark.parametrize("talk", SLOW)
def test_the_deadline_is_total(session, talk):
    """These peers go on for minutes: a call that waits for them does not end within the test."""
    with raw_server(talk) as url:
        assert is_cut_off(session, talk, url)


def test_the_deadline_holds_on_a_connection_that_is_used_again(session):
    def talk(connection, stopped):
        connection.recv(65536)
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
        connection.recv(65536)
        header_drip(connection, stopped)

    with raw_server(talk) as url:
        assert outbound.call(session, "GET", url, seconds=30, limit=10).body == b"{}"
        assert failure(session, url, seconds=0.5) == ("timeout", True)


def test_a_deadline_is_kept_while_a_later_one_is_waited_for(session):
    begun = threading.Event()

    def silent(connection, stopped):
        begun.set()
        stopped.wait()

    with raw_server(silent) as slow, raw_server(header_drip) as url:
        waiting = threading.Thread(target=failure, args=(session, slow), kwargs={"seconds": 900})
        waiting.start()
        assert begun.wait(60)
        with outbound.new_session() as other:
            # One that ends in between, as most do
            assert failure(other, "http://127.0.0.1:1/", seconds=600)[0] == "connect"
            assert failure(other, url, seconds=0.5) == ("timeout", True)
        assert waiting.is_alive()
        session.close()
    waiting.join()


def run_program(program, url):
    """Run Python code in a process of its own, where `kind()` is how a call of `url` fails;
    gives its exit code."""
    head = """
import os, socket, sys, time
from service import outbound

def kind():
    with outbound.new_session() as session:
        try:
            outbound.call(session, "GET", sys.argv[1], seconds=0.5, limit=100000)
        except outbound.CallFailed as e:
            return e.kind
"""
    command = [sys.executable, "-W", "ignore", "-c", head + program, url]
    return subprocess.run(command, cwd=ROOT, timeout=100).returncode


@pytest.mark.server
def test_the_deadline_holds_in_a_forked_process():
    """A server may fork after it made a call; a fork has none of its parent's threads."""
    program = """
assert kind() == "timeout"
child = os.fork()
if child == 0:
    os._exit(7 if kind() == "timeout" else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    with raw_server(header_drip) as url:
        assert run_program(program, url) == 7


@pytest.mark.server
def test_a_look_up_that_never_ends_does_not_keep_the_process_from_ending():
    program = """
socket.getaddrinfo = lambda *_args, **_options: time.sleep(1000)
sys.exit(7 if kind() == "dns" else 1)
"""
    assert run_program(program, "http://slow.test/") == 7


def test_the_deadline_of_a_call_does_not_cut_the_next_one_on_its_connection(session, monkeypatch):
    """The pool lends a connection on as soon as the answer is read, which may be before the
    call is quite over."""
    second_asked, first_expired = threading.Event(), threading.Event()
    connections = []

    def talk(connection, stopped):
        connections.append(connection)
        connection.recv(65536)
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
        connection.recv(65536)
        second_asked.set()
        assert first_expired.wait(60)
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n[]")

    close = requests.Response.close

    def close_late(response):
        monkeypatch.setattr(requests.Response, "close", close)
        second.start()
        assert second_asked.wait(60)
        with raw_server(silence) as silent, outbound.new_session() as other:
            failure(other, silent, seconds=1)  # by then the first one's time is up too
        first_expired.set()
        close(response)

    def call_again():
        answers.append(outbound.call(session, "GET", url, seconds=60, limit=10))

    answers, second = [], threading.Thread(target=call_again)
    monkeypatch.setattr(requests.Response, "close", close_late)
    with raw_server(talk) as url:
        outbound.call(session, "GET", url, seconds=0.5, limit=10)
        second.join()
        session.close()
    assert [answer.body for answer in answers] == [b"[]"]
    assert len(connections) == 1


def test_waiting_takes_no_processor_time(session):
    """Neither the call's nor that of the thread which keeps its deadline."""
    with raw_server(silence) as url:

        def used():
            before = time.process_time()
            assert failure(session, url, seconds=0.5) == ("timeout", True)
            return time.process_time() - before

        assert any(used() < 0.1 for _ in range(3))  # something else may use some once


def test_a_host_that_takes_no_connection_has_3_seconds_and_the_next_address_its_turn(
    session, addresses
):
    with raw_server(answering()) as url:
        port = int(url.rpartition(":")[2])
        addresses["half-dead.test"] = ["127.0.0.2", "127.0.0.1"]
        with black_hole(port):
            url = f"http://half-dead.test:{port}/"
            assert outbound.call(session, "GET", url, seconds=30, limit=10).status == 200
        session.close()


def test_an_address_that_does_not_answer_leaves_time_for_the_next_one(session, addresses):
    """A dead one would have 3 seconds to itself: here the whole call has less."""
    with raw_server(answering(b"{}")) as url:
        port = int(url.rpartition(":")[2])
        addresses["half-dead.test"] = ["127.0.0.2", "127.0.0.2", "127.0.0.1"]
        with black_hole(port):
            answer = outbound.call(
                session, "GET", f"http://half-dead.test:{port}/", seconds=2.9, limit=10
            )
        session.close()
    assert answer.body == b"{}"


def test_connecting_ends_at_the_deadline_however_many_addresses_there_are(session, addresses):
    """3 s for each of them would be five minutes."""
    with black_hole() as port:
        addresses["dead.test"] = ["127.0.0.2"] * 100
        assert failure(session, f"http://dead.test:{port}/", seconds=0.3) == ("timeout", False)


def test_a_connection_that_comes_after_the_deadline_is_cut(session, addresses):
    """The first address takes all the time; the second one would talk for minutes."""
    with raw_server(header_drip) as url:
        port = int(url.rpartition(":")[2])
        addresses["late.test"] = ["127.0.0.2"] + ["127.0.0.1"] * 5
        with black_hole(port):
            kind, _ = failure(session, f"http://late.test:{port}/", seconds=0.5)
    assert kind == "timeout"


def test_an_endless_body_is_read_to_the_limit(session):
    def endless(connection, stopped):
        connection.sendall(HEAD + b"\r\n")
        while not stopped.is_set():
            connection.sendall(b"x" * 65536)

    with raw_server(endless) as url:
        answer = outbound.call(session, "GET", url, seconds=30, limit=1000)
    assert (answer.status, answer.body, answer.complete) == (200, b"x" * 1000, False)


@pytest.mark.parametrize(("size", "complete"), [(0, True), (1000, True), (1001, False)])
def test_a_body_beyond_the_limit_is_cut_and_says_so(session, size, complete):
    with raw_server(answering(b"x" * size)) as url:
        answer = outbound.call(session, "GET", url, seconds=30, limit=1000)
        session.close()
    assert (answer.body, answer.complete) == (b"x" * min(size, 1000), complete)


def test_a_redirect_is_not_followed_and_its_body_not_read_beyond_the_limit(session):
    asked = []

    def talk(connection, stopped):
        asked.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n")
        while not stopped.wait(0.01):
            connection.sendall(b"x" * 10000)

    with raw_server(talk) as url:
        answer = outbound.call(session, "GET", url, seconds=3, limit=1000)
    assert (answer.status, answer.body, answer.complete) == (302, b"x" * 1000, False)
    assert answer.headers["Location"] == "/elsewhere"
    assert len(asked) == 1


def test_no_compressed_answer_is_asked_for_or_unpacked(session):
    """A kilobyte of it can become gigabytes."""
    packed = gzip.compress(b"x" * 100000)
    talk = answering(packed, HEAD + b"Content-Encoding: gzip\r\n")
    with raw_server(talk) as url:
        answer = outbound.call(session, "GET", url, seconds=30, limit=1000)
        session.close()
    assert (answer.body, answer.complete) == (packed, True)
    assert b"\r\naccept-encoding: identity\r\n" in talk.seen[0].lower()


def test_cookies_are_neither_kept_nor_sent(session):
    talk = answering(head=HEAD + b"Set-Cookie: a=b; Path=/\r\n")
    with raw_server(talk) as url:
        for _ in range(2):
            assert outbound.call(session, "GET", url, seconds=30, limit=10).status == 200
        session.close()
    assert len(talk.seen) == 2
    assert b"cookie" not in talk.seen[1].lower()
    assert not session.cookies, "they would pile up in a process that runs for months"


def test_headers_parameters_and_data_go_out_as_given(session):
    sent = bytearray()

    def talk(connection, stopped):
        while not sent.endswith(b"\r\n\r\nbody"):
            sent.extend(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    with raw_server(talk) as url:
        outbound.call(
            session, "POST", f"{url}/hook", seconds=30, limit=10,
            headers={"X-Mine": "1"}, params={"a": "b c"}, data=b"body",
        )  # fmt: skip
    assert sent.startswith(b"POST /hook?a=b+c HTTP/1.1\r\n")
    assert b"\r\nX-Mine: 1\r\n" in sent
    assert b"\r\nUser-Agent: otp-service/%s\r\n" % VERSION.encode() in sent


# --- names and addresses ------------------------------------------------------------------


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "unknown"), UnicodeError()])
def test_a_name_that_is_not_found_was_not_sent(session, addresses, error):
    addresses["unknown.test"] = error
    assert failure(session, "http://unknown.test/") == ("dns", False)


@pytest.mark.parametrize(
    ("url", "family", "address"),
    [
        ("http://127.0.0.9:7/", socket.AF_INET, ("127.0.0.9", 7)),
        ("http://[::1]:7/", socket.AF_INET6, ("::1", 7)),
    ],
)
def test_a_literal_address_is_dialled_without_a_look_up(session, monkeypatch, url, family, address):
    def no_name_server(*_args, **_options):
        raise AssertionError("a literal address was looked up")

    def connect(sock, address):
        dialled.append((sock.family, address))
        raise ConnectionRefusedError

    dialled = []
    monkeypatch.setattr(socket, "getaddrinfo", no_name_server)
    monkeypatch.setattr(socket.socket, "connect", connect)
    assert failure(session, url) == ("connect", False)
    assert dialled == [(family, address)]


def test_every_address_is_judged_before_any_is_dialled(session, addresses, monkeypatch):
    dialled, judged = [], []
    addresses["mixed.test"] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: dialled.append(address))

    def may_dial(address):
        judged.append(address)
        return address != "127.0.0.3"

    assert failure(session, "http://mixed.test/", may_dial=may_dial) == ("forbidden", False)
    assert (judged, dialled) == (addresses["mixed.test"], [])


def test_the_addresses_that_were_judged_are_the_ones_dialled(session, addresses, monkeypatch):
    """A second look-up might answer another one."""
    dialled, judged = [], []
    addresses["name.test"] = ["127.0.0.8", "127.0.0.9"]

    def connect(_, address):
        dialled.append(address[0])
        raise ConnectionRefusedError

    def may_dial(address):
        judged.append(address)
        return True

    monkeypatch.setattr(socket.socket, "connect", connect)
    failure(session, "http://name.test/", may_dial=may_dial)
    assert judged == dialled == addresses["name.test"]
    assert addresses.asked == ["name.test"]


# --- TLS ----------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path):
    """A TLS server's context, for 127.0.0.1, and the file of its own certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "peer")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    file = tmp_path / "peer.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, str(file)


def over_tls(context, talk):
    def talk_tls(connection, stopped):
        with contextlib.suppress(ssl.SSLError), context.wrap_socket(connection, True) as wrapped:
            talk(wrapped, stopped)

    return talk_tls


@pytest.mark.parametrize("trust", ["env", None])
def test_a_certificate_that_nobody_vouches_for_is_refused_before_anything_is_sent(
    session, tls, monkeypatch, trust
):
    """Also where the environment tells other programs to trust it."""
    context, file = tls
    if trust:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", file)
        monkeypatch.setenv("CURL_CA_BUNDLE", file)
    talk = answering()
    with raw_server(over_tls(context, talk)) as url:
        assert failure(session, url.replace("http", "https")) == ("tls", False)
    assert not talk.seen


def test_a_trusted_certificate_counts_for_its_name_only(tls, addresses):
    context, file = tls
    session = outbound.new_session(ca_bundle=file)
    addresses["other.test"] = ["127.0.0.1"]
    with raw_server(over_tls(context, answering())) as url:
        url = url.replace("http", "https")
        assert outbound.call(session, "GET", url, seconds=30, limit=10).status == 200
        other = url.replace("127.0.0.1", "other.test")
        assert failure(session, other) == ("tls", False)
        session.close()


@on_sqlite
def test_webhooks_and_calls_of_the_main_server_trust_the_ca_bundle_and_the_public_ones(
    make_app, tls
):
    context, file = tls
    app = make_app(CA_BUNDLE=file)
    for session in (app.extensions["webhook_session"], app.extensions["upstream"]["session"]):
        with raw_server(over_tls(context, answering())) as url:
            url = url.replace("http", "https")
            assert outbound.call(session, "GET", url, seconds=30, limit=10).status == 200
            session.close()
        trusted = session.get_adapter(url).poolmanager.connection_pool_kw["ssl_context"]
        assert trusted.cert_store_stats()["x509"] > 100


@pytest.mark.parametrize("talk", SLOW)
def test_the_deadline_is_total_over_tls(session, tls, talk):
    context, session.verify = tls
    with raw_server(over_tls(context, talk)) as url:
        assert is_cut_off(session, talk, url.replace("http", "https"))


@pytest.mark.parametrize("talk", [silence, header_drip])
def test_the_deadline_holds_while_tls_is_agreed_on(session, talk):
    with raw_server(talk) as url:
        kind, sent = failure(session, url.replace("http", "https"), seconds=0.5)
    assert not sent
    assert talk is header_drip or kind == "timeout"


# --- what else goes wrong -----------------------------------------------------------------


def test_a_slow_name_server_ends_at_the_deadline(session, monkeypatch):
    asleep = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asleep.wait(300) and [])
    try:
        assert failure(session, "http://slow.test/", seconds=0.3) == ("dns", False)
    finally:
        asleep.set()


def test_a_refused_connection_was_not_sent(session):
    assert failure(session, "http://127.0.0.1:1/") == ("connect", False)


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
            assert outbound.call(session, "GET", url, seconds=30, limit=10).body == b"{}"
        assert failure(session, url) == ("connection", True)
        session.close()
    assert len(requests_seen) == 3
    assert len({peer for peer, _ in requests_seen}) == 1


def test_no_proxy_of_the_environment_is_used(session, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    with raw_server(answering()) as url:
        assert outbound.call(session, "GET", url, seconds=30, limit=10).status == 200
        session.close()


@pytest.mark.parametrize(
    "url", ["http://", "http://a:b:c/", "http://[::1/", f"http://{'a' * 70}.x/"]
)
def test_an_unusable_url_is_reported_not_raised(session, url):
    assert not failure(session, url)[1]


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
    asked, go = threading.Event(), threading.Event()

    def talk(connection, stopped):
        connection.recv(65536)
        asked.set()
        go.wait(60)
        body = b'{"status":"success","data":{"phone_number":"+12025550123"}}'
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    with raw_server(talk) as url:
        app = make_app(MAIN_SERVER_URL=url)
        key, answers = make_user().key, []
        path = f"/api/get-number/{key}?country_id=1"
        thread = threading.Thread(target=lambda: answers.append(app.test_client().get(path)))
        thread.start()
        assert asked.wait(60)
        with app.app_context():
            held = db.engine.pool.checkedout()
        go.set()
        thread.join()
    assert held == 0
    assert answers[0].status_code == 200
    assert SYSTEM_KEY not in answers[0].text
