"""Where webhooks may not reach (SSRF): every spelling, and names that change their mind."""

import contextlib
import re
import socket
import threading

import pytest

from service import outbound
from service.webhooks import guard
from tests.peers import raw_server

# No rule here depends on the database's engine
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

FORBIDDEN_TEXT = """
http://127.0.0.1 http://127.0.0.1:80 http://127.1 http://127.0.1 http://127.255.255.254
http://0 http://0.0.0.0 http://0x7f.1 http://0x7f000001 http://2130706433 http://017700000001
http://0177.0.0.1 http://0x7f.0x0.0x0.0x1 http://127.0.0.1. http://127。0。0。1 http://①②⑦.0.0.1
http://10.0.0.1 http://10.255.255.255 http://172.16.0.1 http://172.31.255.255 http://192.168.0.1
http://192.168.1.1:8080 http://169.254.169.254 http://169.254.169.254/latest/meta-data/
http://2852039166 http://0xa9fea9fe http://100.64.0.1 http://100.100.100.200 http://192.0.0.1
http://192.0.2.1 http://198.18.0.1 http://198.51.100.1 http://203.0.113.1 http://192.88.99.1
http://224.0.0.1 http://239.255.255.255 http://240.0.0.1 http://255.255.255.255
http://168.63.129.16 http://[::] http://[::1] http://[0:0:0:0:0:0:0:1] http://[::127.0.0.1]
http://[::ffff:127.0.0.1] http://[::ffff:7f00:1] http://[::ffff:0:127.0.0.1]
http://[::ffff:10.0.0.1] http://[::ffff:169.254.169.254] http://[::5efe:7f00:1]
http://[64:ff9b::7f00:1] http://[64:ff9b::a9fe:a9fe] http://[64:ff9b::10.0.0.1] http://[64:ff9b::]
http://[64:ff9b::168.63.129.16] http://[64:ff9b:0:0:0:1::1] http://[64:ff9b:1::1] http://[100::1] http://[2001::1]
http://[2001:db8::1] http://[2002:7f00:1::] http://[3fff::1] http://[5f00::1] http://[fc00::1]
http://[fd12:3456::1] http://[fe80::1] http://[fe80::1%25lo] http://[fec0::1] http://[ff02::1]
http://user:pass@8.8.8.8 http://user@8.8.8.8 http://8.8.8.8@127.0.0.1 http://8.8.8.8:99999
http://8.8.8.8:0 ftp://8.8.8.8 file:///etc/passwd gopher://8.8.8.8 http:// http:///x //8.8.8.8
http://[8.8.8.8 http://localhost javascript:alert(1)
http://192.88.99.0 http://192.88.99.255 http://223.255.255.256 http://[::ffff:168.63.129.16]
http://[::ffff:192.88.99.1] http://[1fff::1] http://[4000::1] http://[2001:1ff:ffff::1]
http://[2001:db8:ffff:ffff::1] http://[2002:ffff:ffff::1] http://[3fff:fff:ffff::1]
"""
FORBIDDEN = [
    *FORBIDDEN_TEXT.split(),
    "http://8.8.8.8/a b",
    "http://8.8.8.8\\@127.0.0.1/",
    "http://8.8.8.8/\r\nX: y",
    "",
]

ALLOWED_TEXT = """
http://8.8.8.8 https://8.8.8.8/hook https://1.1.1.1:8443/a?b=c#d http://0x08080808
https://[2606:4700:4700::1111] https://[2001:4860:4860::8888]:443/x http://93.184.216.34
https://172.15.255.255 https://172.32.0.1 https://192.167.1.1 https://11.0.0.1
https://[::ffff:8.8.8.8]/ https://223.255.255.255
https://192.88.98.255 https://192.88.100.0 https://168.63.129.15 https://168.63.129.17
https://[64:ff9b::5db8:d70e] https://[64:ff9b::8.8.8.8]:8443/x
https://[2000::1] https://[2001:200::1] https://[2001:db7:ffff::1] https://[2001:db9::1]
https://[2003::1] https://[2001:ffff:ffff::1] https://[3ffe:ffff::1] https://[3fff:1000::1]
"""
ALLOWED = ALLOWED_TEXT.split()


@pytest.fixture
def public(make_app):
    """An app that allows plain http and no private network, and its context."""
    with make_app(WEBHOOK_ALLOWED_NETWORKS="").app_context():
        yield


@pytest.fixture
def names(monkeypatch):
    """A resolver of the test's own: name -> a list of answers, one a look-up, the last for good."""
    table, real = {}, socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        if host not in table:
            return real(host, port, *args, **kwargs)
        answers = table[host].pop(0) if len(table[host]) > 1 else table[host][0]
        if isinstance(answers, Exception):
            raise answers
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in a], socket.SOCK_STREAM, 6, "", (a, port)) for a in answers]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return table


def post(url):
    with outbound.new_session() as session:
        return outbound.call(
            session, "POST", url, seconds=5, limit=10, may_dial=guard.may_dial, data=b""
        )


def test_there_are_enough_spellings(database_url):
    assert len(set(FORBIDDEN)) >= 60
    assert len(set(ALLOWED)) >= 10


@pytest.mark.parametrize("url", FORBIDDEN)
def test_a_forbidden_url_is_refused_when_saved(public, url):
    with pytest.raises(guard.ForbiddenUrl):
        guard.check_url(url)


@pytest.mark.parametrize(
    "url", [u for u in FORBIDDEN if u.startswith("http") and "8.8.8.8" not in u]
)
def test_a_forbidden_url_is_never_dialled(public, url, monkeypatch):
    """Even without the check of its form."""
    dialled = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: dialled.append(address))
    with pytest.raises(outbound.CallFailed) as failed:
        post(url)
    assert (failed.value.sent, dialled) == (False, [])


@pytest.mark.parametrize("url", ALLOWED)
def test_a_public_url_is_allowed(public, url):
    guard.check_url(url)


def test_https_is_required_by_default(make_app):
    with make_app(WEBHOOK_REQUIRE_HTTPS="").app_context():
        guard.check_url("https://8.8.8.8/")
        with pytest.raises(guard.ForbiddenUrl, match="https"):
            guard.check_url("http://8.8.8.8/")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://[8.8.8.8/", "is not a valid one"),
        ("https://8.8.8.8:99999/", "is not a valid one"),
        ("https://8.8.8.8:0/", "is not a valid one"),
        ("https://8.8.8.8/a b", "is not a valid one"),
        ("https://8.8.8.8/a\tb", "is not a valid one"),
        ("https://8.8.8.8/a\x00b", "is not a valid one"),
        ("https://8.8.8.8/a\x7fb", "is not a valid one"),
        ("https://8.8.8.8/a\u2028b", "is not a valid one"),
        ("https://8.8.8.8/a\\b", "is not a valid one"),
        ("", "must begin with https:// and name a host"),
        ("//8.8.8.8/", "must begin with https:// and name a host"),
        ("ftp://8.8.8.8/", "must begin with https:// and name a host"),
        ("https:///hook", "must begin with https:// and name a host"),
        ("http://8.8.8.8/", "must begin with https://"),
        ("https://user@8.8.8.8/", "must hold no user name or password"),
        ("https://:password@8.8.8.8/", "must hold no user name or password"),
        ("https://@8.8.8.8/", "must hold no user name or password"),
        ("https://8.8.8.8/".ljust(2049, "x"), "is longer than 2,048 characters"),
        ("https://unknown.test/", "names a host that cannot be found"),
        ("https://private.test/", "names a host that is not on the public internet"),
        ("https://8.8.8.8/".ljust(2048, "x"), None),
        ("https://8.8.8.8:65535/", None),
        ("https://public.test/", None),
    ],
)
def test_a_refusal_says_what_is_wrong_with_the_url(make_app, names, url, sentence):
    names["private.test"] = [["10.0.0.1"]]
    names["public.test"] = [["8.8.8.8"]]
    names["unknown.test"] = [socket.gaierror(socket.EAI_NONAME, "unknown")]
    app = make_app(WEBHOOK_REQUIRE_HTTPS="", WEBHOOK_ALLOWED_NETWORKS="")
    with app.app_context(), contextlib.ExitStack() as expected:
        if sentence:
            whole = f"^{re.escape(sentence)}$"
            expected.enter_context(pytest.raises(guard.ForbiddenUrl, match=whole))
        guard.check_url(url)


def test_a_url_whose_name_server_does_not_answer_cannot_be_saved(public, monkeypatch):
    asleep = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asleep.wait(300) and [])
    try:
        with pytest.raises(guard.ForbiddenUrl, match="cannot be found"):
            guard.check_url("https://slow.test/")
    finally:
        asleep.set()


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.1.255.255", True),
        ("10.2.0.0", False),
        ("::ffff:10.1.0.1", True),
        ("::ffff:10.2.0.1", False),
        ("fd00::1", True),
        ("fe00::1", False),
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
    ],
)
def test_allowed_networks_are_added_to_the_public_ones(make_app, address, allowed):
    with make_app(WEBHOOK_ALLOWED_NETWORKS="10.1.0.0/16, fc00::/7").app_context():
        assert guard.may_dial(address) == allowed


def test_a_name_that_turns_private_after_the_check_is_refused(public, names):
    """DNS rebinding: what counts is the address that is dialled."""
    names["rebind.test"] = [["93.184.216.34"], ["127.0.0.1"]]
    guard.check_url("http://rebind.test/")
    with pytest.raises(outbound.CallFailed) as failed:
        post("http://rebind.test/")
    assert failed.value.kind == "forbidden"


@pytest.mark.parametrize("hidden", ["127.0.0.1", "::1", "fe80::1", "::ffff:10.0.0.1"])
def test_one_private_answer_among_public_ones_is_refused(public, names, hidden):
    names["mixed.test"] = [["93.184.216.34", hidden]]
    with pytest.raises(guard.ForbiddenUrl):
        guard.check_url("http://mixed.test/")
    with pytest.raises(outbound.CallFailed) as failed:
        post("http://mixed.test/")
    assert failed.value.kind == "forbidden"


def answer_once(connection, stopped):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")


def test_several_answers_are_tried_in_order(app, names):
    names["two.test"] = [["127.0.0.2", "127.0.0.1"]]
    with app.app_context(), raw_server(answer_once) as url:
        assert post(url.replace("127.0.0.1", "two.test")).status == 204


def test_allowed_networks_are_reached(make_app, names):
    with raw_server(answer_once) as url:
        port = url.rpartition(":")[2]
        with make_app(WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/30, fc00::/7").app_context():
            guard.check_url(url)
            assert post(url).status == 204
            with pytest.raises(outbound.CallFailed):
                post(f"http://127.0.0.9:{port}/")


def test_a_redirect_to_a_private_address_is_not_followed(app):
    seen = []

    def redirect(connection, stopped):
        seen.append(connection.recv(65536))
        connection.sendall(
            b"HTTP/1.1 307 Temporary\r\nLocation: http://169.254.169.254/\r\n"
            b"Set-Cookie: a=b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )

    with app.app_context(), raw_server(redirect) as url, outbound.new_session() as session:
        for _ in range(2):
            answer = outbound.call(session, "POST", url, seconds=5, limit=1, data=b"x")
            assert answer.status == 307
    assert len(seen) == 2
    assert b"cookie" not in seen[1].lower()


def test_netrc_credentials_are_not_sent(app, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []

    def talk(connection, stopped):
        seen.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    with app.app_context(), raw_server(talk) as url:
        post(url)
    assert b"authorization" not in seen[0].lower()


@pytest.mark.parametrize(
    "character",
    [
        "\u200b",
        "\u200d",
        "\u00ad",
        "\u202e",
        "\u2066",
        "\ufeff",
        "\u2060",
        "\u3164",
        "\u0085",
        "\ufe0f",
    ],
)
@pytest.mark.parametrize(
    "url", ["https://8.8.8.8/hook{}", "https://8.8.{}8.8/hook", "{}https://8.8.8.8"]
)
def test_a_url_with_something_invisible_in_it_cannot_be_saved(public, url, character):
    """What a person reads is what is dialled."""
    with pytest.raises(guard.ForbiddenUrl, match=f"invisible.*U\\+{ord(character):04X}"):
        guard.check_url(url.format(character))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://straße.example/", "xn--strae-oqa.example"),
        ("http://BÜCHER.example/", "xn--bcher-kva.example"),
        ("http://пример.example:81/", "xn--e1afmkfd.example"),
        ("http://Example.COM./", "example.com."),
    ],
)
def test_the_name_that_was_checked_is_the_name_that_is_dialled(public, monkeypatch, url, host):
    asked = []

    def getaddrinfo(name, *args, **options):
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    guard.check_url(url)
    with outbound.new_session() as session, pytest.raises(outbound.CallFailed):
        outbound.call(session, "POST", url, seconds=5, limit=10, may_dial=lambda address: False)
    assert asked == [host, host]


@pytest.mark.parametrize(
    "host", ["bücher。example", "ex_ample。", "xn--。example", "a..b", "ä" * 64]
)
def test_a_name_that_cannot_be_dialled_cannot_be_saved(public, host):
    with pytest.raises(guard.ForbiddenUrl):
        guard.check_url(f"http://{host}/")
