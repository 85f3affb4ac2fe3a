"""More fixtures: an assignment, a webhook receiver, the commands, real server processes."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from flask import Flask, request

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import PhoneNumber
from service.database.writing import transact
from tests.conftest import SECRET_KEY, SYSTEM_KEY
from tests.mariadb import free_port
from tests.peers import serving

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
NUMBER = "12025550123"


@pytest.fixture
def assign(app):
    """Record that `user_id` got the number, `ago` before now."""

    def make(user_id, digits=NUMBER, ago=timedelta(hours=1)):
        at = utcnow() - ago
        row = PhoneNumber(
            user_id=user_id, state="assigned", digits=digits, country_id=1,
            requested_at=at, assigned_at=at,
        )  # fmt: skip
        with app.app_context():
            transact(lambda tx: db.session.add(row))
            return row.id

    return make


@pytest.fixture
def receiver():
    """A webhook receiver; `received` holds (headers, body), `answers` the statuses to give."""
    app = Flask("receiver")
    app.received, app.answers = [], []

    @app.post("/hook")
    def hook():
        app.received.append((request.headers, request.get_data()))
        return "", app.answers.pop(0) if app.answers else 204

    with serving(app) as url:
        app.url = f"{url}/hook"
        yield app


@pytest.fixture
def flask(app):
    """Run a command; gives its output, parsed with --json."""

    def run(*args, exit_code=0, runner=None):
        result = (runner or app.test_cli_runner()).invoke(args=[str(arg) for arg in args])
        assert result.exit_code == exit_code, (result.output, result.exception)
        return json.loads(result.stdout) if "--json" in args else result.output

    return run


@pytest.fixture
def start(tmp_path):
    """Start a server process; gives (process, base URL) once it answers."""
    processes = []

    def run(*command, port, **env):
        clean = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / command[0], *command[1:]], cwd=ROOT, env=clean | env,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        processes.append(process)
        url = f"http://127.0.0.1:{port}"
        while process.poll() is None:
            try:
                requests.get(f"{url}/api/none", timeout=30)
                return process, url
            except requests.ConnectionError:
                time.sleep(0.05)
        raise AssertionError((tmp_path / "log").read_text())

    yield run
    for process in processes:
        process.send_signal(signal.SIGINT)  # gunicorn does not wait for its connections then
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def serve(start, database_url):
    """Start the web processes on the test's database; gives (process, base URL).

    Keywords are environment variables.
    """

    def run(**env):
        port = free_port()
        settings = {
            "DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY, "SYSTEM_API_KEY": SYSTEM_KEY,
        }  # fmt: skip
        command = ("gunicorn", "--bind", f"127.0.0.1:{port}", "wsgi:app")
        return start(*command, port=port, **settings | env)

    return run


SMS = {"phone_number": f"+{NUMBER}", "sms_text": "Your code is 123456"}


def new_secret():
    """A signing secret as Standard Webhooks writes them, other than the one before."""
    new_secret.made += 1
    return "whsec_" + base64.b64encode(b"%032d" % new_secret.made).decode()


new_secret.made = 0


def android_envelope(**payload):
    """What the Android app SMS Gateway posts: https://docs.sms-gate.app/features/webhooks."""
    default = {
        "messageId": "abc123", "message": "Your code is 123456", "sender": "AMZ",
        "recipient": f"+{NUMBER}", "simNumber": 1, "receivedAt": "2026-11-24T10:00:00.000+07:00",
    }  # fmt: skip
    return {
        "deviceId": "ffffffffceb0b1db0000018e937c815b", "event": "sms:received", "id": "Ey6ECgOk",
        "payload": default | payload, "webhookId": "LreFUt-Z3sSq0JufY9uWB",
    }  # fmt: skip
