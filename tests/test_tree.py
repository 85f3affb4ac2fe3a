"""Deployments in a tree, each the main server of the next: what passes through two of them."""

import json
import os
import subprocess

import pytest
import requests
from flask import request
from sqlalchemy import create_engine, text

from service.sandbox import create_sandbox
from service.webhooks.signing import verify
from tests.conftest import SECRET_KEY, SYSTEM_KEY
from tests.databases import migrate
from tests.fixtures import BIN, ROOT
from tests.mariadb import free_port
from tests.peers import serving


class Deployment:
    """A deployment of its own; `settings` are its environment."""

    def __init__(self, folder, name, **settings):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {
            "DATABASE_URL": f"sqlite:///{folder / name}.sqlite3", "SECRET_KEY": SECRET_KEY,
            "WEBHOOK_REQUIRE_HTTPS": "0", "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
            "WEB_CONCURRENCY": "1",
        } | settings  # fmt: skip
        migrate(self.settings["DATABASE_URL"])

    def flask(self, *args):
        done = subprocess.run(
            [BIN / "flask", *args, "--json"], cwd=ROOT, capture_output=True, check=True,
            env={"PATH": os.environ["PATH"]} | self.settings,
        )  # fmt: skip
        return json.loads(done.stdout)

    def start(self, start):
        bind = f"127.0.0.1:{self.port}"
        start("gunicorn", "--bind", bind, "wsgi:app", port=self.port, **self.settings)

    def sql(self, statement):
        engine = create_engine(self.settings["DATABASE_URL"])
        with engine.begin() as connection:
            connection.execute(text(statement))
        engine.dispose()


@pytest.fixture
def tree(start, receiver, tmp_path):
    """sandbox - upper - lower - receiver: (sandbox app, its URL, upper, lower, lower's user).

    The lower deployment is a user of the upper one: their key is its SYSTEM_API_KEY, and its URL
    for SMS their webhook.
    """
    sandbox = create_sandbox(SYSTEM_KEY)
    with serving(sandbox) as root:
        upper = Deployment(tmp_path, "upper", MAIN_SERVER_URL=root, SYSTEM_API_KEY=SYSTEM_KEY)
        us = upper.flask("users", "add", "Lower")
        lower = Deployment(
            tmp_path, "lower", MAIN_SERVER_URL=upper.url, SYSTEM_API_KEY=us["api_key"],
            MAIN_SERVER_WEBHOOK_SECRET=us["webhook_secret"],
        )  # fmt: skip
        ingest = f"{lower.url}/api/ingest/{us['api_key']}"
        upper.flask("users", "set", str(us["id"]), "--webhook-url", ingest)
        sandbox.config["DELIVER_TO"] = f"{upper.url}/api/ingest/{SYSTEM_KEY}"
        user = lower.flask("users", "add", "Ann", "--webhook-url", receiver.url)
        for deployment in (upper, lower):
            deployment.start(start)
        yield sandbox, root, upper, lower, user


def test_numbers_otps_and_keys_pass_through_two_levels(tree, receiver):
    sandbox, root, upper, lower, user = tree
    asked = []
    sandbox.before_request(lambda: asked.append(request.headers.get("Idempotency-Key")))

    def get_number(key):
        headers = {"X-API-Key": user["api_key"], "Idempotency-Key": key}
        url = f"{lower.url}/api/get-number?country_id=2"
        return requests.get(url, headers=headers, timeout=30).json()["data"]["phone_number"]

    number = get_number("order-1")
    assert get_number("order-2") != number
    # As if the upper deployment's answer had been lost on its way: it is asked again, its own not
    lower.sql(f"UPDATE phone_numbers SET state='unknown', digits=NULL WHERE digits='{number[1:]}'")
    assert get_number("order-1") == number
    assert asked == ["1:1:order-1", "1:1:order-2"]
    assert len(upper.flask("numbers", "list")) == 2

    sms = {"phone_number": number, "sms_text": "Your code is 493817"}
    sent = requests.post(f"{root}/sms", json=sms, timeout=30).json()["data"]["answers"]
    assert sent[0]["data"]["webhook"] == "delivered"
    [(headers, body)] = receiver.received
    assert json.loads(body)["data"] == sms | {"otp_code": "493817", "provider": "sandbox"}
    assert verify(user["webhook_secret"], headers, body)
    # What the upper deployment delivers twice, the lower one has already
    upper.flask("webhooks", "redeliver", "1")
    assert len(receiver.received) == len(lower.flask("messages", "list")) == 1
