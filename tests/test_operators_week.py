"""An operator's week, in order, while a load runs: nothing is lost, and every count is equal."""

import threading
from datetime import timedelta

import pytest
import requests
from flask import Flask, request
from sqlalchemy import func, select

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import (
    Delivery,
    Message,
    PhoneNumber,
    SystemSummary,
    User,
    UserSummary,
)
from service.database.writing import transact
from service.sandbox import create_sandbox
from tests.conftest import SYSTEM_KEY
from tests.peers import serving, until
from tests.records import totals

pytestmark = pytest.mark.server
OLD, NEW = "the secret key of this week so far", "the secret key from Thursday onwards"


class Load:
    """Users get numbers and SMS until it is stopped; what was acknowledged is kept."""

    def __init__(self, url, keys, ingest):
        self.url, self.keys, self.ingest = url, keys, ingest
        self.numbers, self.sms, self.failures = [], [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(key,)) for key in keys]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, key):
        while not self._stop.is_set():
            path = f"{self.url}/api/get-number/{key}?country_id=1"
            answer = requests.get(path, timeout=60)
            if answer.status_code != 200:
                self.failures.append((answer.status_code, answer.text))
                continue
            number = answer.json()["data"]["phone_number"]
            self.numbers.append(number)
            sms = {"to": number, "text": f"code {len(self.sms):06}", "id": number}
            answer = requests.post(self.url + self.ingest, json=sms, timeout=60)
            if answer.status_code == 200:
                self.sms.append(answer.json()["data"]["id"])
            else:
                self.failures.append((answer.status_code, answer.text))
            self._stop.wait(0.1)


@pytest.fixture
def week(serve, make_app, flask):
    """(the service's base URL, `run(…)` of a command, what a receiver got, its URL, an app); of the
    two keys, the new one with the old one as its fallback."""
    receiver, got = Flask("receiver"), []

    @receiver.post("/hook")
    def hook():
        got.append(request.get_json()["data"]["phone_number"])
        return "", 204

    with serving(create_sandbox(SYSTEM_KEY)) as main_server, serving(receiver) as hooks:
        keys = {"SECRET_KEY": NEW, "SECRET_KEY_FALLBACKS": OLD}
        _, url = serve(
            MAIN_SERVER_URL=main_server, WEBHOOK_REQUIRE_HTTPS="0",
            WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8", WEB_CONCURRENCY="2", **keys,
        )  # fmt: skip

        def run(*args, **changed):
            commands = make_app(**keys | changed).test_cli_runner()
            return flask(*args, "--json", runner=commands)

        yield url, run, got, f"{hooks}/hook", make_app(SECRET_KEY=NEW)


def test_the_week(week, tmp_path, database_url):
    url, run, got, hook, app = week
    # Monday: two users and a gateway come; the third, of whom an abuse report will tell, too
    old = {"SECRET_KEY": OLD, "SECRET_KEY_FALLBACKS": ""}
    names = ("Ann", "Ben", "Carl")
    users = [run("users", "add", name, "--webhook-url", hook, **old) for name in names]
    ingest = run("providers", "add", "gw", "--format", "generic")["ingest_path"]
    carl = users[2]
    path = f"{url}/api/get-number/{carl['api_key']}?country_id=1"
    number = requests.get(path, timeout=60).json()["data"]["phone_number"]
    requests.post(url + ingest, json={"to": number, "text": "code 777777"}, timeout=60)

    with Load(url, [user["api_key"] for user in users[:2]], ingest) as load:
        until(lambda: len(load.sms) > 5)
        # Tuesday: whose was this number, and which SMS is nobody's?
        [holder] = run("numbers", "holder", number, "--at", utcnow().isoformat())
        assert (holder["user"], len(holder["messages"])) == (carl["id"], 1)
        lost = {"to": "15559990001", "text": "code 888888", "id": "lost"}
        requests.post(url + ingest, json=lost, timeout=60)
        [unmatched] = run("messages", "list", "--unmatched")
        assert unmatched["unmatched"] == "unknown_number"
        # ... it was for a number whose answer never reached us
        at = utcnow() - timedelta(minutes=5)
        row = {"user_id": carl["id"], "state": "unknown", "country_id": 1, "requested_at": at}
        with app.app_context():
            unknown = transact(lambda tx: tx.store(PhoneNumber(**row))).id
        resolved = run("numbers", "resolve", unknown, "+15559990001")
        assert [sms["webhook"] for sms in resolved["messages"]] == ["delivered"]
        assert run("messages", "list", "--unmatched") == []

        # Wednesday and Thursday: keys are changed while the service runs
        assert run("secrets", "reseal") == {"resealed": 3, "unreadable": 0, "current": 0}
        run("users", "set", carl["id"], "--daily-limit", "none")

        # Friday: one asks to be forgotten
        removed = run("users", "remove", carl["id"], "--yes")
        assert removed["messages"] == 2
        [holder] = run("numbers", "holder", number)
        assert (holder["name"], holder["messages"]) == ("removed", [])

        # Saturday: the bill, the purge, the copy, the trail
        month = run("summary", "--month", f"{utcnow():%Y-%m}")
        assert {user["name"] for user in month["users"]} == {"Ann", "Ben", "removed"}
        assert run("purge")["messages"] == 0
        if database_url.startswith("sqlite"):
            assert run("backup", tmp_path / "copy.sqlite3")["bytes"] > 0
        actions = {entry["action"] for entry in run("audit", "--limit", 1000)}
        assert actions >= {
            "user_added", "provider_added", "number_resolved", "secrets_resealed", "user_changed",
            "user_removed",
        }  # fmt: skip
        done = len(load.sms)
        until(lambda: len(load.sms) > done + 5)

    # Sunday: nothing was lost, and every count is equal
    assert load.failures == []
    run("webhooks", "deliver", SECRET_KEY_FALLBACKS="")
    assert set(load.numbers) <= set(got)
    with app.app_context():
        kept = set(db.session.scalars(select(Message.id)))
        states = dict(
            db.session.execute(select(Delivery.state, func.count()).group_by(Delivery.state)).all()
        )
        mine = db.session.scalar(select(func.count()).select_from(PhoneNumber))
        alive = db.session.scalars(select(User.id).where(User.removed_at.is_(None))).all()
    assert kept == set(load.sms) and set(states) == {"delivered"}
    assert alive == [users[0]["id"], users[1]["id"]]
    names = ("numbers", "sms", "otps", "webhooks_delivered")
    counts = (mine, len(load.sms) + 2, len(load.sms) + 2, len(load.sms) + 2)
    assert totals(app, UserSummary, *names) == totals(app, SystemSummary, *names) == counts
    assert totals(app, SystemSummary, "unmatched") == (0,)
