"""The demo: its history is what the service would have recorded, and commands can open it."""

import json
import re
import shlex
import signal
import subprocess
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from sqlalchemy import select

from service import demo_history
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import (
    COUNTERS,
    Attempt,
    Delivery,
    Message,
    PhoneNumber,
    SystemSummary,
    User,
    UserSummary,
)
from service.sms import otp
from tests.databases import on_sqlite
from tests.fixtures import BIN, ROOT
from tests.mariadb import free_port
from tests.peers import until

# So many that there is some of everything
DAYS = 31


@pytest.fixture
def history(app, make_user):
    """The app, with the history in its database."""
    user = make_user(webhook_url="http://127.0.0.1:1/hook")
    with app.app_context():
        demo_history.add(DAYS, user.id)
        yield app


def rows(model):
    return db.session.scalars(select(model)).all()


@on_sqlite
def test_the_summaries_are_equal_to_the_rows(history):
    counted, unmatched = Counter(), 0
    for number in rows(PhoneNumber):
        counted[number.user_id, number.requested_at.date(), "requests"] += 1
        if number.state == "assigned":
            counted[number.user_id, number.assigned_at.date(), "numbers"] += 1
    for message in rows(Message):
        key = message.user_id, message.created_at.date()
        counted[*key, "sms"] += 1
        counted[*key, "otps"] += message.otp_code is not None
        unmatched += message.unmatched is not None
    for delivery in rows(Delivery):
        if delivery.delivered_at:
            counted[delivery.user_id, delivery.delivered_at.date(), "webhooks_delivered"] += 1
    of_users = Counter()
    for row in rows(UserSummary):
        of_users |= {(row.user_id, row.day, name): getattr(row, name) for name in COUNTERS}
    assert of_users == +Counter({key: n for key, n in counted.items() if key[0]})
    of_system, of_days = Counter(), Counter()
    for row in rows(SystemSummary):
        of_system.update({(row.day, name): getattr(row, name) for name in COUNTERS})
    for (_, day, name), n in counted.items():
        of_days[day, name] += n
    assert +of_system == +of_days
    assert sum(row.unmatched for row in rows(SystemSummary)) == unmatched == DAYS


@on_sqlite
def test_the_rows_tell_one_story(history):
    now = utcnow()
    numbers = {number.id: number for number in rows(PhoneNumber)}
    first = min(number.requested_at for number in numbers.values())
    assert timedelta(days=DAYS - 1) < now - first < timedelta(days=DAYS, hours=1)
    silent = {number.id for number in numbers.values() if not number.first_sms_at}
    told = {message.phone_number_id for message in rows(Message)}
    assert silent and not silent & told and numbers.keys() - silent == told - {None}
    for message in rows(Message):
        found = otp.extract(message.sms_text)
        assert message.otp_code == (found and found.code) and message.created_at < now
    tries = Counter(attempt.delivery_id for attempt in rows(Attempt))
    deliveries = rows(Delivery)
    assert tries == {delivery.id: delivery.attempts for delivery in deliveries}
    assert {"delivered", "dead"} <= {delivery.state for delivery in deliveries}
    for delivery in deliveries:
        is_pending = delivery.state == "pending"
        assert (delivery.next_attempt_at is not None) == is_pending
        assert not is_pending or delivery.next_attempt_at > now - timedelta(minutes=1)
        assert json.loads(delivery.body)["event"] == "otp_received"
    assert {user.may_call for user in rows(User)} == {True, False}


@pytest.mark.server
@on_sqlite
def test_commands_of_another_terminal_open_its_database(start, tmp_path, database_url):
    port = free_port()
    process, _ = start(
        "flask", "demo", "--days", str(DAYS), "--port", str(port), port=port,
        PYTHONUNBUFFERED="1", DATABASE_URL=database_url,
    )  # fmt: skip
    log = until(lambda: "Ctrl-C" in (text := (tmp_path / "log").read_text()) and text)
    told = re.search(r"env (.+) \.venv/bin/flask users list", log)[1]
    settings = dict(word.split("=", 1) for word in shlex.split(told))

    def flask(*args):
        done = subprocess.run(
            [BIN / "flask", *args], cwd=ROOT, env={"PATH": str(BIN)} | settings,
            capture_output=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    users = flask("users", "list", "--json")
    assert users[0]["name"] == "demo" and len(users) > 5
    dead = flask("webhooks", "list", "--state", "dead", "--json")[0]
    flask("webhooks", "redeliver", str(dead["id"]), "--json")
    assert "webhook received, signature good" in (tmp_path / "log").read_text()
    assert set(flask("purge", "--json").values()) == {0}
    values = dict(word.split("=", 1) for word in re.search("SERVICE=.*", log)[0].split())
    key = {"Authorization": f"Bearer {values['INGEST_KEY']}"}
    sms = {"to": "+447400849540", "text": "Your code is 493817"}
    assert requests.post(f"{values['SERVICE']}/api/ingest", sms, headers=key).status_code == 200
    folder = Path(re.search(r"sqlite:///(\S+)/demo", log)[1])
    assert folder.exists()
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert not folder.exists()
