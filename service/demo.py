"""`flask demo`: a sandbox main server, the service and a webhook receiver on one machine."""

import json
import queue
import shlex
import signal
import tempfile
import threading
from pathlib import Path

import click
import requests
from flask import Flask, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from config import Config
from service import create_app, demo_history, users
from service.database import migrating
from service.database.engine import db
from service.database.writing import Transaction, transact
from service.keys import new_key, new_secret
from service.sandbox import create_sandbox
from service.sms import providers
from service.sms.gateways.gateway import Options
from service.webhooks import endpoint
from service.webhooks.signing import verify


def run(once: bool, port: int, days: int) -> int:
    """Start all three, with `days` days of history, and return the exit status; with `once`, make
    one round trip and stop."""
    with tempfile.TemporaryDirectory(prefix="otp-demo-") as folder:
        demo = _Demo(Path(folder), 0 if once else port, days)
        # As Ctrl-C does: the folder is removed
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            if once:
                return demo.round_trip()
            demo.explain()
            # Waking now and then: a signal that another thread has taken would not end a wait
            while not threading.Event().wait(1):
                pass
        except KeyboardInterrupt:
            click.echo("stopped")
        finally:
            demo.stop()
            signal.signal(signal.SIGTERM, before)
    return 0


class _Demo:
    def __init__(self, folder: Path, port: int, days: int) -> None:
        self.servers: list[BaseWSGIServer] = []
        # (whether the signature is valid, the body) of each webhook
        self.received: queue.Queue[tuple[bool, bytes]] = queue.Queue()
        self.system_key = new_key("system")
        main_secret = new_secret()
        sandbox = create_sandbox(self.system_key, webhook_secret=main_secret)
        self.main_server = self.serve(sandbox)
        self.receiver = self.serve(self.create_receiver())
        self.settings = {
            "DATABASE_URL": f"sqlite:///{folder / 'demo.sqlite3'}",
            "MAIN_SERVER_URL": self.main_server,
            "SYSTEM_API_KEY": self.system_key,
            "MAIN_SERVER_WEBHOOK_SECRET": main_secret,
            "SECRET_KEY": new_key("secret"),
            "WEBHOOK_REQUIRE_HTTPS": "0",
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
            "RETENTION_DAYS": str(days + 30),
            "LOG_LEVEL": "WARNING",
        }
        self.app = app = create_app(Config(self.settings))
        with app.app_context():
            migrating.upgrade(app)
            user_id, self.api_key, self.webhook_secret = transact(self.add_user)
            _, self.ingest_key = transact(providers.create, "gw", "generic", Options())
            if days:
                demo_history.add(days, user_id)
        self.url = self.serve(app, port)
        sandbox.config["DELIVER_TO"] = f"{self.url}/api/ingest/{self.system_key}"

    def serve(self, app: Flask, port: int = 0) -> str:
        """Serve `app` from threads of this process; returns its base URL."""
        server = make_server("127.0.0.1", port, app, threaded=True, request_handler=_Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    def stop(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()
        with self.app.app_context():
            db.engine.dispose()

    def create_receiver(self) -> Flask:
        """A user's own server: it verifies the signature and accepts the code."""
        receiver = Flask("receiver")

        @receiver.post("/webhook")
        def webhook() -> tuple[str, int]:
            body = request.get_data()
            good = verify(self.webhook_secret, request.headers, body)
            self.received.put((good, body))
            verdict = "good" if good else "BAD"
            click.echo(f"  webhook received, signature {verdict}: {body.decode()}")
            return "", 204 if good else 400

        return receiver

    def add_user(self, tx: Transaction) -> tuple[int, str, str]:
        user, key, secret = users.create(tx, "demo")
        endpoint.set_url(tx, user, f"{self.receiver}/webhook")
        return user.id, key, secret

    def explain(self) -> None:
        settings = shlex.join(f"{name}={value}" for name, value in self.settings.items())
        click.echo(
            f"""
The service:      {self.url}
The main server:  {self.main_server} (sandbox)
The webhook URL:  {self.receiver}/webhook (each webhook is printed here)
Your API key:     {self.api_key}
Webhook secret:   {self.webhook_secret}
Your profile:     {self.url}/profile (log in with the key)

Paste these into another terminal:

  curl '{self.url}/api/init/{self.api_key}'
  curl '{self.url}/api/get-number/{self.api_key}?country_id=2'
  curl '{self.main_server}/sms' -d 'phone_number=THE_NUMBER' -d 'sms_text=Your code is 123456'

(The second returns THE_NUMBER; leave out its "+" in the third.) The calls of README.md and
docs/api.md work after this; an SMS is somebody's if its number is one that they got:

  SERVICE={self.url} KEY={self.api_key} INGEST_KEY={self.ingest_key}

Commands work there too, each after these settings:

  env {settings} .venv/bin/flask users list

Ctrl-C stops everything, and removes its database.
"""
        )

    def round_trip(self) -> int:
        """Number, SMS and webhook, each checked; returns 0 if all are right."""
        code = "493817"
        call = requests.Session()
        call.trust_env = False

        data = call.get(f"{self.url}/api/init/{self.api_key}", timeout=30).json()["data"]
        countries, operators = len(data["countries"]), len(data["operators"])
        click.echo(f"1. init: {countries} countries, {operators} operators")

        url = f"{self.url}/api/get-number/{self.api_key}"
        number = call.get(url, params={"country_id": 2}, timeout=30).json()["data"]["phone_number"]
        click.echo(f"2. get-number: {number}")

        sms = {"phone_number": number, "sms_text": f"Your code is {code}"}
        sent = call.post(f"{self.main_server}/sms", json=sms, timeout=30).json()
        answer = sent["data"]["answers"][0]["data"]
        click.echo(f"3. SMS sent; the service answered {json.dumps(answer)}")

        try:
            good, body = self.received.get(timeout=30)
        except queue.Empty:
            click.echo("4. no webhook arrived")
            return 1
        expected = {
            "event": "otp_received",
            "data": sms | {"otp_code": code, "provider": "sandbox"},
        }
        if not good or json.loads(body) != expected or answer["webhook"] != "delivered":
            click.echo("4. the webhook is not what was expected")
            return 1
        click.echo("4. webhook: delivered, signed, and exactly as documented")
        return 0


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        pass
