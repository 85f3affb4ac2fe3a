"""Rotating keys, removing a user, the daily purge, backups: what an operator does now and then."""

import json
import shutil
import sqlite3
import sys
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import delete, func, select

from service import retention
from service.commands import checks
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import (
    Attempt,
    AuditEntry,
    Chore,
    Delivery,
    Message,
    PhoneNumber,
    Provider,
    User,
)
from service.database.writing import transact
from service.keys import unseal
from tests.conftest import SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import NUMBER
from tests.forms import logged_in, post
from tests.peers import until
from tests.records import change, messages

OLD, NEW = "the secret key until today or so", "the secret key of 32 and more chars"


# --- rotating -----------------------------------------------------------------------------


def test_secret_key_is_changed_without_an_outage(make_app, receiver, flask):
    """Under the new key with the old one as a fallback, then resealed, then without the old one."""
    old = make_app(SECRET_KEY=OLD)

    def run(*args, app=old):
        return flask(*args, "--json", runner=app.test_cli_runner())

    user = run("users", "add", "Ann", "--webhook-url", receiver.url)
    for n in range(4):
        run("users", "add", f"user {n}")
    run("providers", "add", "gw", "--format", "twilio", "--secret", "s3cret")
    run("users", "rotate-secret", user["id"])
    cookie = logged_in(old, user["api_key"]).get_cookie("session").value

    def browser(app):
        client = app.test_client()
        client.set_cookie("session", cookie)
        return client

    both = make_app(SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=f"older, {OLD}")
    assert browser(both).get("/profile").status_code == 200
    post(browser(both), "/profile/test")
    assert len(receiver.received) == 1
    resealed = {"resealed": 7, "unreadable": 0, "current": 0}
    with old.app_context():
        assert [*checks.former_secrets()] == []
    with both.app_context():
        assert [*checks.former_secrets()] == [
            "7 secrets are still under a former SECRET_KEY: run `flask secrets reseal`"
        ]
    assert run("secrets", "reseal", app=both) == resealed
    with both.app_context():
        assert [*checks.former_secrets()] == []
    assert run("secrets", "reseal", app=both)["current"] == 7
    alone = make_app(SECRET_KEY=NEW)
    with alone.app_context():
        assert [*checks.sealed_secrets()] == []
        assert unseal(db.session.get(Provider, 1).secret) == "s3cret"
    with old.app_context():
        assert len([*checks.sealed_secrets()]) == 2
    assert browser(alone).get("/profile").status_code == 302


def test_a_secret_that_is_rotated_meanwhile_stays_the_new_one(make_app, flask, monkeypatch):
    """Resealing has read the old one by then."""
    old, app = make_app(SECRET_KEY=OLD), make_app(SECRET_KEY=NEW, SECRET_KEY_FALLBACKS=OLD)
    id = flask("users", "add", "Ann", "--json", runner=old.test_cli_runner())["id"]

    def rotate_and(work, *args, **kwargs):
        monkeypatch.undo()
        change(app, User, id, webhook_secret="the new one")
        return transact(work, *args, **kwargs)

    monkeypatch.setattr(sys.modules["service.commands.secrets"], "transact", rotate_and)
    flask("secrets", "reseal", runner=app.test_cli_runner())
    with app.app_context():
        assert db.session.get(User, id).webhook_secret == "the new one"


@on_sqlite
def test_a_secret_of_neither_key_is_counted_and_left(app, flask, make_user):
    change(app, User, make_user().id, webhook_secret="no seal")
    counts = {"resealed": 0, "unreadable": 1, "current": 0}
    assert flask("secrets", "reseal", "--json") == counts
    with app.app_context():
        assert db.session.get(User, 1).webhook_secret == "no seal"


def test_a_former_system_key_is_accepted_and_never_sent(make_app, make_user, requests_mock):
    user = make_user()
    url = "http://main.test"
    good = {"status": "success", "data": {"countries": [], "operators": []}}
    requests_mock.get(f"{url}/api/init/the%20new%20key", json=good)
    former = {"SYSTEM_API_KEY_FALLBACKS": f"older,{SYSTEM_KEY}"}
    client = make_app(SYSTEM_API_KEY="the new key", **former).test_client()
    for key in ("the new key", SYSTEM_KEY, "older"):
        assert client.get(f"/api/init/{key}").status_code == 200
        assert client.get(f"/api/numbers/{key}?user_id={user.id}").status_code == 200
        assert client.post(f"/api/ingest/{key}", json={}).status_code == 400
    assert client.get("/api/init/oldest").status_code == 401
    assert {request.url for request in requests_mock.request_history} == {
        f"{url}/api/init/the%20new%20key"
    }


# --- removing a user ----------------------------------------------------------------------


@pytest.fixture
def busy(app, make_user, make_provider, assign, receiver, client):
    """Two users with a number, an SMS and a delivery each."""
    users = [make_user(name=name, webhook_url=receiver.url) for name in ("Ann", "Ben")]
    path = make_provider()
    for n, user in enumerate(users):
        assign(user.id, f"1202555012{n}")
        client.post(path, json={"to": f"1202555012{n}", "text": "code 123456"})
    return SimpleNamespace(ann=users[0], ben=users[1], path=path)


def count(app, model, condition=True):
    with app.app_context():
        return db.session.scalar(select(func.count()).select_from(model).where(condition))


def test_a_removed_user_is_forgotten_but_for_history_and_counts(app, client, flask, busy):
    browser = logged_in(app, busy.ann.key)
    change(app, PhoneNumber, 1, idempotency_hash="h")
    result = app.test_cli_runner().invoke(args=["users", "remove", "1"], input="n\n")
    assert result.exit_code == 1
    assert "1 attempts, 1 deliveries, 1 messages" in result.output
    assert client.get(f"/api/numbers/{busy.ann.key}").status_code == 200
    gone = {"id": 1, "attempts": 1, "deliveries": 1, "messages": 1}
    assert flask("users", "remove", 1, "--yes", "--json") == gone
    assert client.get(f"/api/numbers/{busy.ann.key}").status_code == 401
    assert browser.get("/profile").headers["Location"] == "/login"
    assert [count(app, model) for model in (Message, Delivery, Attempt)] == [1, 1, 1]
    with app.app_context():
        row = db.session.get(User, 1)
        assert (row.name, row.webhook_url, row.webhook_secret) == ("removed", None, "")
        assert db.session.get(PhoneNumber, 1).idempotency_hash is None
    [holder] = flask("numbers", "holder", "12025550120", "--json")
    assert (holder["user"], holder["name"], holder["messages"]) == (1, "removed", [])
    users = flask("summary", "--json")["users"]
    assert [(u["name"], u["sms"], u["otps"]) for u in users] == [("removed", 1, 1), ("Ben", 1, 1)]
    assert [user["name"] for user in flask("users", "list", "--json")] == ["Ben"]
    for args in (("set", 1, "--active"), ("rotate-key", 1), ("rotate-secret", 1)):
        assert "no user 1" in flask("users", *args, exit_code=2)
    # What comes for the number now is nobody's
    sms = {"to": "12025550120", "text": "code 222222"}
    assert client.post(busy.path, json=sms).json["data"]["matched"] is False
    assert messages(app)[-1].unmatched == "user_removed"
    assert "Ann" not in json.dumps(flask("audit", "--json"))
    with app.app_context():
        assert [*checks.sealed_secrets()] == []


@on_sqlite
@pytest.mark.parametrize("command", ["users remove 1 --yes", "purge"])
def test_what_is_deleted_stands_in_no_file_any_more(app, flask, busy, command):
    """Nor in the write-ahead log, while another process has the database open."""
    change(app, Message, 1, created_at=utcnow() - timedelta(days=31), sms_text="Geheim 493817")
    change(app, Delivery, 1, created_at=utcnow() - timedelta(days=31), body=b"Geheim")
    with app.app_context():
        file = Path(db.engine.url.database)
    other = sqlite3.connect(file)
    other.execute("SELECT count(*) FROM users").fetchone()
    assert b"Geheim" in file.read_bytes() + Path(f"{file}-wal").read_bytes()
    flask(*command.split(), "--json")
    assert b"Geheim" not in file.read_bytes() + Path(f"{file}-wal").read_bytes()
    other.close()


def test_a_removal_that_was_stopped_goes_on(app, flask, busy, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retention, "delete_in_batches", stop)
        app.test_cli_runner().invoke(args=["users", "remove", "1", "--yes"])
    assert count(app, Message) == 2
    assert flask("users", "remove", 1, "--yes", "--json")["messages"] == 1
    assert count(app, Message) == 1


def test_who_manages_others_is_not_removed(flask, busy):
    flask("users", "set", 2, "--manager", 1)
    assert "they manage 2" in flask("users", "remove", 1, "--yes", exit_code=2)
    flask("users", "set", 2, "--manager", "none")
    flask("users", "remove", 1, "--yes")
    assert "no user 99" in flask("users", "remove", 99, "--yes", exit_code=2)


# --- the daily purge ----------------------------------------------------------------------


def purging(app):
    """Start the worker's thread that purges; gives what stops it."""
    stop = threading.Event()
    thread = threading.Thread(target=retention.purge_daily, args=(app, stop))
    thread.start()

    def end():
        stop.set()
        thread.join()

    return end


def old_message(app, client, path):
    client.post(path, json={"to": NUMBER, "text": "hi"})
    with app.app_context():
        [id] = db.session.scalars(select(func.max(Message.id)))
    change(app, Message, id, created_at=utcnow() - timedelta(days=31))


def test_the_worker_purges_once_a_day_and_one_of_several_does(
    app, client, make_provider, monkeypatch
):
    monkeypatch.setattr(retention, "LOOK_SECONDS", 0.02)
    path, done = make_provider(), []
    purge = retention.purge
    monkeypatch.setattr(retention, "purge", lambda on: done.append(1) or purge(on))
    old_message(app, client, path)
    ends = [purging(app) for _ in range(3)]
    try:
        until(lambda: count(app, Message) == 0 and count(app, Chore, Chore.done_at.is_not(None)))
        assert done == [1]
        old_message(app, client, path)
        almost = utcnow() - retention.EVERY + timedelta(hours=1)
        with app.app_context():
            transact(lambda tx: tx.upsert(Chore, {"name": "purge"}, {"done_at": almost}))
        late = utcnow() - retention.EVERY
        assert (count(app, Message), done) == (1, [1])
        with app.app_context():
            transact(lambda tx: tx.upsert(Chore, {"name": "purge"}, {"done_at": late}))
        until(lambda: count(app, Message) == 0)
        assert done == [1, 1]
    finally:
        for end in ends:
            end()


def test_what_a_dead_worker_began_is_done_by_another_when_its_lease_ends(app, monkeypatch):
    monkeypatch.setattr(retention, "LOOK_SECONDS", 0.02)
    with app.app_context():
        lease = {"leased_until": utcnow() + timedelta(hours=1), "done_at": None}
        transact(lambda tx: tx.upsert(Chore, {"name": "purge"}, lease))
    end = purging(app)
    try:
        until(lambda: count(app, Chore) == 1)
        assert count(app, Chore, Chore.done_at.is_not(None)) == 0
        with app.app_context():
            over = {"leased_until": utcnow()}
            transact(lambda tx: tx.upsert(Chore, {"name": "purge"}, over))
        until(lambda: count(app, Chore, Chore.done_at.is_not(None)) == 1)
    finally:
        end()


def test_doctor_tells_when_the_last_purge_was(app, flask, client, make_provider):
    runner = app.test_cli_runner()
    assert "last purge" not in runner.invoke(args=["doctor"]).stderr
    flask("purge")
    assert f"last purge: {utcnow():%Y-%m-%d}" in runner.invoke(args=["doctor"]).stderr
    old_message(app, client, make_provider())
    change(app, Message, 1, created_at=utcnow() - timedelta(days=40))
    with app.app_context():
        [found] = checks.old_messages()
    assert f"the last purge was {utcnow():%Y-%m-%d}" in found


# --- backup -------------------------------------------------------------------------------


@on_sqlite
def test_a_backup_brings_what_was_pending_back_to_work(
    app, client, make_app, flask, tmp_path, make_user, assign, make_provider, receiver
):
    user = make_user(webhook_url=receiver.url)
    assign(user.id)
    receiver.answers += [500]
    client.post(make_provider(), json={"to": NUMBER, "text": "code 123456"})
    assert count(app, Delivery, Delivery.state == "pending") == 1
    file = tmp_path / "copy.sqlite3"
    told = flask("backup", file, "--json")
    assert told == {"file": str(file), "bytes": file.stat().st_size}
    assert oct(file.stat().st_mode) == "0o100600"
    copy = sqlite3.connect(file)
    assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)  # a file of its own
    copy.close()
    with app.app_context():
        for model in (Attempt, Delivery, Message):
            transact(lambda tx, model=model: tx.execute(delete(model)))
    restored = tmp_path / "restored.sqlite3"
    shutil.copy(file, restored)
    other = make_app(DATABASE_URL=f"sqlite:///{restored}")
    change(other, Delivery, 1, next_attempt_at=utcnow())  # as when some minutes have passed
    assert flask("webhooks", "deliver", "--json", runner=other.test_cli_runner())["delivered"] == 1
    assert b"123456" in receiver.received[-1][1]


@on_sqlite
def test_a_backup_is_whole_while_others_write(app, flask, tmp_path, make_user):
    stop = threading.Event()

    def write():
        with app.app_context():
            while not stop.is_set():
                transact(lambda tx: [tx.store(AuditEntry(actor="x", action="y")) for _ in range(9)])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        until(lambda: count(app, AuditEntry) > 20)
        flask("backup", tmp_path / "copy")
    finally:
        stop.set()
        thread.join()
    copy = sqlite3.connect(tmp_path / "copy")
    assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert copy.execute("SELECT count(*) % 9 FROM audit_entries").fetchone() == (0,)
    copy.close()


@on_sqlite
def test_a_backup_that_cannot_be_made_says_why_and_leaves_nothing(flask, tmp_path):
    (tmp_path / "there").touch()
    assert "exists already" in flask("backup", tmp_path / "there", exit_code=2)
    told = flask("backup", tmp_path / "no folder" / "x", exit_code=1)
    assert "cannot be written: No such file" in told
    assert {path.name for path in tmp_path.iterdir()} >= {"there"}
    assert not [path for path in Path(tmp_path).iterdir() if path.name.endswith(".part")]
