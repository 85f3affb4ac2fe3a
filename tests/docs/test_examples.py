"""The files of docs/examples, run as they say, against the service."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import requests
from flask import Flask, request

from service.sandbox import create_sandbox
from service.webhooks.signing import sign
from tests.conftest import SYSTEM_KEY
from tests.databases import on_sqlite, skip_or_fail
from tests.fixtures import BIN, NUMBER, ROOT, new_secret
from tests.forms import change
from tests.mariadb import free_port
from tests.peers import serving, until

pytestmark = pytest.mark.server

EXAMPLES = ROOT / "docs/examples"
RECEIVERS = {
    "receiver.py": [],
    "receiver.mjs": ["node"],
    "receiver.php": ["php"],
    "receiver.sh": ["openssl", "socat"],
}
CODE = {"event": "otp_received", "data": {
    "phone_number": f"+{NUMBER}", "otp_code": "123456", "provider": "gw", "sms_text": "…123456",
}}  # fmt: skip
BODY = json.dumps(CODE, separators=(",", ":")).encode()
ENVIRONMENT = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/")}


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            skip_or_fail(f"{program} is not installed")


def usage(name, **given):
    """The commands that the head of an example shows, with the reader's own values put in."""
    head = (EXAMPLES / name).read_text().partition("import")[0]
    command = "\n".join(re.findall(r"^(?:#|//|) {4,5}(\S.*)$", head, re.M))
    for shown, value in given.items():
        command = re.sub(rf"\b{shown}=\S+", f"{shown}={value}", command)
    return command


@pytest.fixture
def run_receiver(tmp_path):
    """Start an example with a secret; gives its URL, and what it has printed."""
    running = []

    def run(name, secret):
        need(*RECEIVERS[name])
        port = free_port()
        command = usage(name, WEBHOOK_SECRET=secret).replace("8080", str(port))
        log = tmp_path / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["sh", "-c", command], cwd=EXAMPLES, env=ENVIRONMENT | {"PORT": str(port)},
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        running.append(process)

        def answers():
            with socket.socket() as probe:
                return process.poll() is not None or probe.connect_ex(("127.0.0.1", port)) == 0

        until(answers)
        return SimpleNamespace(url=f"http://127.0.0.1:{port}/hook", log=log, process=process)

    yield run
    for process in running:
        # The shell's children too; it is the leader of their group
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def headers(secret, body=BODY, age=0, id="msg_1"):
    timestamp = str(int(time.time() - age))
    return {
        "Content-Type": "application/json", "webhook-id": id, "webhook-timestamp": timestamp,
        "webhook-signature": sign(secret, id, timestamp, body),
    }  # fmt: skip


@on_sqlite
@pytest.mark.parametrize("name", RECEIVERS)
def test_a_receiver_prints_the_code_that_the_service_sends(
    app, client, make_user, make_provider, assign, run_receiver, name
):
    user = make_user()
    receiver = run_receiver(name, user.secret)
    change(app, user, webhook_url=receiver.url)
    assign(user.id)
    sms = {"to": NUMBER, "text": 'Your "code" is 123456. أهلاً 🔑'}
    answer = client.post(make_provider(), json=sms).json["data"]
    assert answer["webhook"] == "delivered", receiver.log.read_text()
    until(lambda: f"+{NUMBER} 123456" in receiver.log.read_text())


@pytest.mark.parametrize("name", RECEIVERS)
def test_a_receiver_takes_what_is_signed_and_nothing_else(run_receiver, name):
    secret, other = new_secret(), new_secret()
    receiver = run_receiver(name, secret)
    good = headers(secret)

    def post(headers, body=BODY):
        return requests.post(receiver.url, data=body, headers=headers, timeout=30).status_code

    both = f"{headers(other)['webhook-signature']} {good['webhook-signature']}"
    for accepted in (
        good,
        headers(secret, age=240),
        headers(secret, age=-240),
        good | {"webhook-signature": both},
        good | {"webhook-signature": " ".join(reversed(both.split()))},
    ):
        assert post(accepted) == 204
    assert (
        post(headers(secret, b'{"event":"test","data":{}}'), b'{"event":"test","data":{}}') == 204
    )
    unsigned = {"Content-Type": "application/json"}
    for refused in (
        unsigned,
        good | {"webhook-signature": ""},
        headers(other),
        headers(secret, b"{}"),
        headers(secret, age=310),
        headers(secret, age=-900),
        good | {"webhook-id": "msg_2"},
        good | {"webhook-timestamp": str(int(time.time()) - 1000)},
        good | {"webhook-timestamp": "now"},
        good | {"webhook-timestamp": ""},
        good | {"webhook-signature": good["webhook-signature"].replace("v1,", "v2,")},
        good | {"webhook-signature": good["webhook-signature"][:-4]},
        good | {"webhook-signature": "v1,*"},
    ):
        assert post(refused) == 401, refused
    assert post(good, BODY + b" ") == 401
    told = receiver.log.read_text()
    # A test event, too, and what was refused: silence would look as if nothing had come
    counts = [told.count(line) for line in (f"+{NUMBER} 123456", "event: test", "refused: no good")]
    assert counts == [5, 1, 14]


@pytest.mark.parametrize("name", RECEIVERS)
@pytest.mark.parametrize("secret", ["''", "whsec_", "whsec_c2hvcnQ="])
def test_a_receiver_without_a_secret_takes_nothing(run_receiver, name, secret):
    """With an empty key, anybody could sign."""
    receiver = run_receiver(name, secret)
    if receiver.process.poll() is None:
        signed = headers("whsec_" + "A" * 32)
        assert requests.post(receiver.url, data=BODY, headers=signed, timeout=30).status_code == 500
    else:
        assert "WEBHOOK_SECRET" in receiver.log.read_text()


# --- recipes ------------------------------------------------------------------------------

PAGE = """<!doctype html><title>Shop</title><form method="post" action="{action}">
<label>Phone number <input name="phone" value="{phone}"></label>{more}</form>"""
CONFIRM = '<label>Code <input name="code"></label><button>Confirm</button>'


def application(main_server):
    """Somebody's application, where one signs up with a phone number."""
    app, sent = Flask("application"), {}

    @app.get("/")
    def home():
        return PAGE.format(action="/sign-up", phone="", more="<button>Send me a code</button>")

    @app.post("/sign-up")
    def sign_up():
        phone = request.form["phone"]
        sent[phone] = f"{secrets.randbelow(10**6):06}"
        sms = {"phone_number": phone, "sms_text": f"Your code is {sent[phone]}"}
        requests.post(f"{main_server}/sms", json=sms, timeout=30).raise_for_status()
        return PAGE.format(action="/confirm", phone=phone, more=CONFIRM)

    @app.post("/confirm")
    def confirm():
        is_right = sent[request.form["phone"]] == request.form["code"]
        return "Welcome!" if is_right else "This is not the code."

    return app


@pytest.fixture
def recipe(make_app, make_user, make_provider, assign, dice, tmp_path):
    """Run an example as it says, in a folder of its own; its output when it has passed.

    The user has had the number before, and an old code with it.
    """
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder)
    sandbox = create_sandbox(SYSTEM_KEY)
    user, ingest = make_user(), make_provider()
    assign(user.id, "447400849540")
    with serving(sandbox) as main_server:
        app = make_app(MAIN_SERVER_URL=main_server)
        old = {"to": "447400849540", "text": "Your code is 000000"}
        assert app.test_client().post(ingest, json=old).json["data"]["matched"]
        with serving(app) as url, serving(application(main_server)) as shop:
            sandbox.config["DELIVER_TO"] = f"{url}/api/ingest/{SYSTEM_KEY}"

            def run(name):
                command = usage(name, SERVICE=url, KEY=user.key, APP=shop)
                done = subprocess.run(
                    ["sh", "-c", command], cwd=folder, env=ENVIRONMENT, timeout=100, check=False,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                )  # fmt: skip
                assert done.returncode == 0, done.stdout
                return done.stdout

            run.folder, run.service, run.key = folder, url, user.key
            yield run


@on_sqlite
def test_pytest_waits_for_a_code(recipe):
    assert "1 passed" in recipe("test_sign_up.py")


@on_sqlite
def test_node_waits_for_a_code(recipe):
    need("node")
    assert re.search("# pass 1|pass 1", recipe("sign-up.test.mjs"))


@on_sqlite
def test_a_browser_waits_for_a_code(recipe):
    """The fixture `page` is the one of pytest-playwright, as far as it is needed."""
    need("chromium")
    (recipe.folder / "conftest.py").write_text(f"""
import pytest
from playwright.sync_api import sync_playwright

@pytest.fixture
def page():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path={shutil.which("chromium")!r},
            args=["--disable-gpu", "--disable-background-networking", "--no-sandbox"],
        )
        yield browser.new_page()
        browser.close()
""")
    assert "1 passed" in recipe("test_sign_up_in_a_browser.py")


@on_sqlite
def test_a_code_that_does_not_come_is_told(recipe):
    script = "from wait_for_code import Number; Number(2).next_code(seconds=1)"
    env = ENVIRONMENT | {"SERVICE": recipe.service, "KEY": recipe.key}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=recipe.folder, env=env, capture_output=True, text=True
    )
    assert "TimeoutError: no code came for +447400849540 within 1 seconds" in done.stderr
