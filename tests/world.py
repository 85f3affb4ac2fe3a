"""A user with a number and a webhook, receivers that do as they are told, and the worker."""

import contextlib
import itertools
import json
import secrets
import signal
import threading
import time

from flask import Flask
from sqlalchemy import func, insert, select, update

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Delivery, Message, SystemSummary
from service.database.writing import transact
from tests.fixtures import SMS
from tests.forms import post
from tests.peers import serving

# How long a test waits for what must come: it fails then, and is slow on no machine before
PATIENCE = 100


def wait_for(condition):
    """Wait until `condition()` holds."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it never came about"
        time.sleep(0.02)


@contextlib.contextmanager
def receiving(answer):
    """A receiver that gives each POST what `answer()` gives then; gives its URL."""
    receiver = Flask("receiver")
    receiver.add_url_rule("/hook", "hook", answer, methods=["POST"])
    with serving(receiver) as url:
        yield f"{url}/hook"


def stop_worker():
    """What SIGTERM does to the worker that runs in this process; done when this returns."""
    signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)


class Held:
    """An answer that keeps each call waiting until let_go()."""

    def __init__(self, status=204):
        self.status, self.calls = status, 0
        self._arrived, self._free = threading.Semaphore(0), threading.Event()

    def __call__(self):
        self.calls += 1
        self._arrived.release()
        self._free.wait(PATIENCE)
        return "", self.status

    def wait(self, calls=1):
        """Wait until so many more calls are being held."""
        for _ in range(calls):
            assert self._arrived.acquire(timeout=PATIENCE), "nobody called"

    def let_go(self):
        self._free.set()


@contextlib.contextmanager
def holding(status=204):
    """A receiver that holds its calls, at the latest until the block ends; gives (Held, URL)."""
    held = Held(status)
    with receiving(held) as url:
        try:
            yield held, url
        finally:
            held.let_go()


@contextlib.contextmanager
def refusing(app, what, condition="1 = 1"):
    """While the block runs the database refuses `what` (say, "INSERT ON attempts")."""
    with app.app_context():
        if db.engine.dialect.name == "sqlite":
            refuse = f"WHEN {condition} BEGIN SELECT RAISE(ABORT, 'refused'); END"
        else:
            refuse = f"FOR EACH ROW IF {condition} THEN SIGNAL SQLSTATE '45000'; END IF"
        with db.engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE TRIGGER fails BEFORE {what} {refuse}")
    try:
        yield
    finally:
        with app.app_context(), db.engine.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER fails")


class World:
    def __init__(self, app, user, ingest, receiver):
        self.app, self.user, self.ingest, self.receiver = app, user, ingest, receiver
        self._ids = itertools.count(1)

    def sms(self, app=None, **fields):
        """Send an SMS with a code to the user's number; the answer's data."""
        client = (app or self.app).test_client()
        response = client.post(self.ingest, json=SMS | {"id": next(self._ids)} | fields)
        assert response.status_code == 200, response.text
        return response.json["data"]

    def add(self, n=1, user=None, **columns):
        """Store `n` deliveries of an SMS with a code, untried and due; their ids."""
        with self.app.app_context():
            now, user_id = utcnow(), (user or self.user).id
            message = Message(
                user_id=user_id, provider="gw", digits="1", sms_text="code 1", otp_code="1",
                received_at=now,
            )  # fmt: skip
            transact(lambda tx: db.session.add(message))
            defaults = {
                "user_id": user_id, "message_id": message.id, "body": b"{}", "state": "pending",
                "attempts": 0, "next_attempt_at": now, "created_at": now,
            }  # fmt: skip
            rows = [defaults | {"webhook_id": secrets.token_hex()} | columns for _ in range(n)]
            transact(lambda tx: db.session.execute(insert(Delivery), rows))
            newest = select(Delivery.id).order_by(Delivery.id.desc()).limit(n)
            return sorted(db.session.scalars(newest))

    def change(self, model=Delivery, id=None, **values):
        """Change the row `id`, or all rows, as time or another process would have."""
        change = update(model).values(values).execution_options(synchronize_session=False)
        change = change if id is None else change.where(model.id == id)
        with self.app.app_context():
            transact(lambda tx: db.session.execute(change))

    def make_due(self):
        self.change(next_attempt_at=utcnow(), leased_until=None)

    def work(self, *options, app=None):
        """Run `flask webhooks deliver` in one thread; the states that its tries came to."""
        command = ["webhooks", "deliver", "--json", *(options or ("--threads", "1"))]
        before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
        try:
            result = (app or self.app).test_cli_runner().invoke(args=command)
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
        assert result.exit_code == 0, (result.output, result.exception)
        counts = json.loads(result.stdout.splitlines()[-1]) if result.stdout else {}
        return [state for state, n in counts.items() for _ in range(n)]

    def form(self, path, app=None, **fields):
        """Send a form of the user's pages."""
        browser = (app or self.app).test_client()
        post(browser, "/login", api_key=self.user.key)
        response = post(browser, path, **fields)
        assert response.status_code == 302, response.text

    def rows(self, model=Delivery):
        with self.app.app_context():
            return db.session.scalars(select(model).order_by(model.id)).all()

    def row(self, id=1, model=Delivery):
        with self.app.app_context():
            return db.session.get(model, id)

    def counted(self):
        """Delivered webhooks as the system summary has them."""
        with self.app.app_context():
            total = select(func.coalesce(func.sum(SystemSummary.webhooks_delivered), 0))
            return db.session.scalar(total)


def new_world(app, make_user, make_provider, assign, receiver):
    """A user with a number whose webhooks go to `receiver`; the fixture `world` of the tests."""
    user = make_user(webhook_url=receiver.url)
    assign(user.id)
    return World(app, user, make_provider(), receiver)
