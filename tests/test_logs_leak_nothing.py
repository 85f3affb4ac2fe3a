"""Keys, codes and texts in every place of a request: none is in what the processes write.

By default a few hundred requests; with LEAK_MINUTES=10, as many as there is time for.
"""

import contextlib
import json
import os
import random
import socket
import string
import time
from urllib.parse import quote

import pytest

from tests.databases import on_sqlite
from tests.fixtures import NUMBER

MINUTES = float(os.environ.get("LEAK_MINUTES", "0"))
pytestmark = [pytest.mark.server, on_sqlite, pytest.mark.timeout(120 + 60 * MINUTES)]

REQUESTS = 400
TEXTS = (
    "Geheim text", "code, nur", 'quo"te\' mark', "línea ñ 日本", "a=b event=x", "100%41 %zz",
)  # fmt: skip
ROUTES = (
    "init", "get-number", "numbers", "messages", "summary", "ingest", "login", "profile",
    "profile/messages", "profile/key", "docs", "static", "healthz", "openapi.json",
)  # fmt: skip


class Secrets:
    """Generated secrets; `found(log)` gives those of which the log has six characters or more."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.all = set()

    def new(self):
        letters = string.ascii_letters + string.digits
        body = "".join(self.random.choices(letters, k=24))
        kind = self.random.randrange(6)
        secret = (
            f"usr_{body}", f"ing_{body}", f"whsec_{body}+/=", body[:16],
            str(self.random.randrange(10**8, 10**9)), f"{self.random.choice(TEXTS)} {body[:10]}",
        )[kind]  # fmt: skip
        self.all.add(secret)
        return secret

    def found(self, log):
        for secret in self.all:
            parts = [part for part in secret.split() if len(part) > 8] or [secret]
            for part in parts:
                part = part.partition("_")[2] or part
                pieces = {part[n : n + 8] for n in range(len(part) - 7)}
                yield from (piece for piece in pieces if piece in log)


def target(choose, secret, known):
    """A path, right or glued or of no kind, with a query or none."""
    path = choose(["/api/", "/", "//api//", "/%61pi/"]) + choose(ROUTES)
    spelled = choose([secret, quote(secret), quote(secret, safe=""), secret.replace(" ", "+")])
    return choose([
        f"{path}/{known}", f"{path}{spelled}", f"{path}/{spelled}/{spelled}", f"/{spelled}",
        f"{path}/{known}?text={spelled}&to={NUMBER}", f"{path}?{spelled}", spelled,
        f"{path}/{known}?x={spelled}", f"http://127.0.0.1/{spelled}", f"{path};{spelled}",
        f"{path}/{known}#{spelled}",
    ])  # fmt: skip


def field(choose, secret, known):
    """A field of the head, with the secret in its value or its name."""
    name = choose([
        "X-API-Key", "Authorization", "Cookie", "Idempotency-Key", "User-Agent", "Referer",
        "X-Forwarded-For", "Content-Type", "X-Twilio-Signature", secret, "webhook-id", "Upgrade",
        "X Y", "Forwarded", "SCRIPT_NAME", "Accept", "Expect",
    ])  # fmt: skip
    values = [f"Bearer {known}", f"session={secret}", f"{secret}\x00{secret}", f"{secret}\xff"]
    return f"{name}: {choose([secret, *values])}"


def body(choose, secret):
    spelled = choose([secret, quote(secret)])
    sms = {"to": NUMBER, "text": f"code {secret}", "id": secret, "from": secret}
    data = {"phone_number": NUMBER, "sms_text": secret, "otp_code": secret}
    text = choose([
        json.dumps(sms), json.dumps(sms | {"received_at": secret}), json.dumps(sms)[:-9], secret,
        json.dumps({"event": secret, "data": data}), f"to={NUMBER}&text={spelled}", "",
        json.dumps([secret]), f"api_key={spelled}&csrf_token={spelled}", "{" * 3000 + secret,
        f'{{"{secret}": 1, "to": "{secret}"}}', json.dumps({"to": secret, "text": [secret]}),
    ])  # fmt: skip
    return text.encode("utf-8", "replace")


def framed(choose, secret, data):
    """(the field that frames the body, the body): with a length, or in chunks, right or broken."""
    field = choose([
        f"Content-Length: {len(data)}", f"Content-Length: {len(data)}", "",
        f"Content-Length: {len(data) + 9}", f"Content-Length: {secret}",
        "Transfer-Encoding: chunked", f"Transfer-Encoding: {secret}",
        f"Content-Length: 1\r\nContent-Length: {secret}",
    ])  # fmt: skip
    if not field.endswith("chunked"):
        return field, data
    size = choose([f"{len(data):x}", f"{len(data):x};{secret}", secret, f"{len(data) - 1:x}"])
    trailer = choose(["", f"X-Trailer: {secret}\r\n", f"{secret}\r\n"])
    end = choose([f"0\r\n{trailer}\r\n", secret])
    return field, f"{size}\r\n".encode() + data + f"\r\n{end}".encode()


def ways(secrets, keys):
    """One request, as bytes, with secrets somewhere."""
    choose, secret = secrets.random.choice, secrets.new()
    known = choose([*keys, secrets.new()])
    methods = ["GET", "HEAD", "PUT", "TRACE", "OPTIONS", secret[:19], "get"]
    method = choose(["POST"] * 3 + methods)
    protocol = choose(["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/9.9", "", f"HTTP/{secret}"])
    kind = choose(["application/json", "application/x-www-form-urlencoded"])
    kind += choose(["", f"; charset={secret}"])
    framing, data = framed(choose, secret, body(choose, secret))
    lines = [
        f"{method} {target(choose, secret, known)} {protocol}", f"Host: {choose(['x', secret])}",
        field(choose, secret, known), f"Content-Type: {kind}", framing,
    ]  # fmt: skip
    head = "".join(f"{line}\r\n" for line in lines if line) + "\r\n"
    garbage = [f"{secret}\r\n\r\n", f"\x16\x03\x01{secret}", f"GET /{secret}"]
    request = head.encode("utf-8", "replace") + data
    return choose([request] * 12 + [text.encode() for text in garbage])


def send(port, request):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 60) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def test_what_is_written_holds_nothing_of_what_was_sent(serve, tmp_path, make_user, make_provider):
    secrets = Secrets(time.time() if MINUTES else 7)
    system_key = f'sys "key" {"".join(secrets.random.choices(string.ascii_letters, k=24))}'
    user = make_user()
    ingest = [
        make_provider(f, format=f).rpartition("/")[2] for f in ("generic", "kannel", "jasmin")
    ]
    secrets.all |= {system_key, user.key, user.secret, *ingest}
    _, url = serve(
        SYSTEM_API_KEY=system_key, MAIN_SERVER_URL="http://127.0.0.1:1", LOG_LEVEL="DEBUG",
        WEB_CONCURRENCY="1",
    )  # fmt: skip
    port = int(url.rpartition(":")[2])
    keys = [user.key, quote(system_key, safe=""), *ingest]
    sent, until = 0, time.monotonic() + 60 * MINUTES
    while sent < REQUESTS or time.monotonic() < until:
        send(port, ways(secrets, keys))
        sent += 1
        if sent % REQUESTS == 0:
            log = (tmp_path / "log").read_text()
            assert list(secrets.found(log)) == [], sent
    print(f"{sent} requests, {len(secrets.all)} secrets, {len(log.splitlines())} lines")
    assert log.count("event=request ") > sent / 40
    assert log.count("event=request_refused") > sent / 50
