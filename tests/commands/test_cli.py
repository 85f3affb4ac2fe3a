"""The operator's commands."""

import json
import re
import signal
import subprocess
import threading
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import requests
from flask_migrate import check, downgrade, upgrade
from sqlalchemy import delete, inspect, select, update
from standardwebhooks import Webhook

from config import ConfigError
from service.commands import checks
from service.database import migrating
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import (
    Attempt,
    Delivery,
    Message,
    PhoneNumber,
    SystemSummary,
    User,
    UserSummary,
)
from service.database.writing import transact
from tests.conftest import SYSTEM_KEY
from tests.databases import on_mariadb, on_sqlite
from tests.fixtures import BIN, NUMBER, ROOT
from tests.mariadb import free_port
from tests.peers import raw_server, sandbox
from tests.records import change


@on_sqlite
@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("users add", ["--number-format [full|national|remove_plus]", "[0<=x<=2147483647]"]),
        ("webhooks deliver", ["[default: 64; 1<=x<=256]"]),
        ("webhooks list", ["[default: 50; 1<=x<=1000]", "[pending|delivered|dead]"]),
        ("summary", ["[default: 30; 1<=x<=3650]", "[default: user_id]"]),
        ("demo", ["[0<=x<=65535]"]),
    ],
)
def test_help_tells_defaults_and_bounds(flask, command, told):
    shown = " ".join(flask(*command.split(), "--help").split())
    assert [text for text in told if text not in shown] == []


def test_users_add_shows_the_key_once_and_stores_its_hash(app, client, flask):
    user = flask("users", "add", "Ann", "--daily-limit", 5, "--json")
    assert (user["id"], user["name"], user["daily_limit"]) == (1, "Ann", 5)
    assert user["webhook_secret"].startswith("whsec_")
    assert client.get(f"/api/get-number/{user['api_key']}").json["message"] == (
        "country_id is required"
    )
    with app.app_context():
        assert user["api_key"] not in str(vars(db.session.get(User, 1)))
    assert user["api_key"] not in flask("users", "list")


def test_users_set_changes_what_is_given(flask):
    flask("users", "add", "Boss", "--json")
    flask("users", "add", "Ann", "--pending", "--inactive", "--json")
    changed = flask(
        "users", "set", 2, "--active", "--approved", "--manager", 1, "--webhook-url",
        "http://127.0.0.1/x", "--number-format", "national", "--daily-limit", 3, "--json",
    )  # fmt: skip
    assert changed == {
        "id": 2, "name": "Ann", "active": True, "approved": True, "manager": 1,
        "number_format": "national", "daily_limit": 3, "webhook_url": "http://127.0.0.1/x",
    }  # fmt: skip
    again = flask("users", "set", 2, "--manager", "none", "--webhook-url", "none", "--json")
    assert again == changed | {"manager": None, "webhook_url": None}
    assert flask("users", "set", 2, "--pending", "--json")["approved"] is False
    assert [user["id"] for user in flask("users", "list", "--json")] == [1, 2]


@pytest.mark.parametrize(
    ("options", "active", "approved"),
    [((), True, True), (("--inactive",), False, True), (("--pending",), True, False)],
)
def test_who_is_added_inactive_or_pending_may_not_call(client, flask, options, active, approved):
    user = flask("users", "add", "x" * 255, *options, "--json")
    assert (user["name"], user["active"], user["approved"]) == ("x" * 255, active, approved)
    status = client.get(f"/api/numbers/{user['api_key']}").status_code
    assert status == (200 if active and approved else 401)
    # What is not given stays as it is; each can be changed alone
    row = {key: value for key, value in user.items() if key not in ("api_key", "webhook_secret")}
    changed = flask("users", "set", 1, "--daily-limit", 0, "--json")
    assert changed == row | {"daily_limit": 0}
    flask("users", "set", 1, "--active", "--approved")
    assert client.get(f"/api/numbers/{user['api_key']}").status_code == 200
    assert flask("users", "set", 1, "--inactive", "--json") == changed | {
        "active": False, "approved": True,
    }  # fmt: skip


def test_setting_the_url_lets_webhooks_go_again(app, flask, make_user):
    later = utcnow() + timedelta(hours=1)
    broken = {"webhook_failures": 7, "webhook_open_until": later, "webhook_disabled_at": later}
    user = make_user(webhook_url="http://127.0.0.1/x", **broken)
    flask("users", "set", user.id, "--daily-limit", 3)
    with app.app_context():
        assert db.session.get(User, user.id).webhook_failures == 7
    flask("users", "set", user.id, "--webhook-url", "http://127.0.0.1/x")
    with app.app_context():
        row = db.session.get(User, user.id)
        assert [getattr(row, name) for name in broken] == [0, None, None]


def test_users_rotate_secret_signs_with_both(
    app, flask, make_user, receiver, make_provider, assign
):
    user = make_user(webhook_url=receiver.url)
    assign(user.id)
    new = flask("users", "rotate-secret", user.id, "--json")
    assert new["id"] == user.id and new["webhook_secret"] != user.secret
    app.test_client().post(make_provider(), json={"to": NUMBER, "text": "code 1234"})
    [(headers, body)] = receiver.received
    for secret in (new["webhook_secret"], user.secret):
        Webhook(secret).verify(body, dict(headers.items()))


def test_users_rotate_key_stops_the_old_one(client, flask):
    old = flask("users", "add", "Ann", "--json")["api_key"]
    new = flask("users", "rotate-key", 1, "--json")["api_key"]
    assert client.get(f"/api/get-number/{old}").status_code == 401
    assert client.get(f"/api/get-number/{new}").status_code == 400


@pytest.mark.parametrize(
    "args",
    [
        ("users", "add", "Ann", "--manager", "9"),
        ("users", "add", "Ann", "--webhook-url", "ftp://x/"),
        ("users", "add", "Ann", "--webhook-url", "http://user:pass@x/"),
        ("users", "add", "Ann", "--webhook-url", "http://x:99999/"),
        ("users", "add", "Ann", "--number-format", "e164"),
        ("users", "add", "Ann", "--daily-limit", "-1"),
        ("users", "set", "9", "--active"),
        ("users", "set", "9" * 40, "--active"),
        ("users", "rotate-key", "x"),
        ("users", "rotate-secret", "9"),
        ("webhooks", "deliver", "--threads", "0"),
        ("webhooks", "deliver", "--threads", "257"),
        ("webhooks", "list", "--limit", "0"),
        ("webhooks", "redeliver"),
        ("webhooks", "redeliver", "9"),
        ("webhooks", "redeliver", "9", "--failed"),
        ("summary", "--days", "0"),
    ],
)
def test_a_wrong_value_is_told_and_changes_nothing(flask, args):
    assert "Error" in flask(*args, exit_code=2)
    assert flask("users", "list", "--json") == []


@pytest.mark.parametrize("url", ["ftp://x/", "http://10.0.0.1/", "http://u:p@127.0.0.1/"])
def test_users_set_takes_no_url_that_may_not_be_called(flask, url):
    before = flask("users", "add", "Ann", "--webhook-url", "http://127.0.0.1/", "--json")
    told = flask("users", "set", 1, "--webhook-url", url, "--daily-limit", 3, exit_code=2)
    assert "--webhook-url" in told
    [user] = flask("users", "list", "--json")
    assert (user["webhook_url"], user["daily_limit"]) == (before["webhook_url"], None)


@on_sqlite
def test_what_people_read(flask, app):
    """A list is a table, one thing a line for each name; `-` is what is not there."""
    assert flask("users", "list") == "none\n"
    added = flask("users", "add", "Ann", "--webhook-url", "http://127.0.0.1/").splitlines()
    assert added[:3] == ["id              1", "name            Ann", "active          yes"]
    flask("users", "add", "日本 é", "--inactive", "--daily-limit", 30)
    assert flask("users", "list").splitlines() == [
        "id  name    active  approved  manager  number_format  daily_limit  webhook_url",
        "1   Ann     yes     yes       -        -              -            http://127.0.0.1/",
        "2   日本 é  no      yes       -        -              30           -",
    ]


@on_sqlite
@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1b[2Jb", "a\u202eb", "a\x9bb", "x" * 256])
def test_a_user_has_a_name_that_can_be_read(flask, name):
    assert "NAME" in flask("users", "add", name, exit_code=2)
    assert flask("users", "list", "--json") == []


@on_sqlite
def test_a_name_is_kept_without_the_spaces_around_it_and_may_come_twice(flask):
    long = "ñ" * 255
    assert flask("users", "add", f" {long} ", "--json")["name"] == long
    assert "user 1 has this name already" in flask("users", "add", long)
    assert len(flask("users", "list", "--json")) == 2


@on_sqlite
def test_nothing_that_is_stored_can_write_on_the_terminal(app, flask, make_user):
    """A provider's name comes from the main server, and a user's from an older version."""
    change(app, User, make_user().id, name="A\x1b[2J\n\x9b\u202eB\u2028")
    shown = flask("users", "list")
    assert r"A\x1b[2J\n\x9b\u202eB\u2028" in shown and shown.replace("\n", "").isprintable()
    assert flask("users", "list", "--json")[0]["name"] == "A\x1b[2J\n\x9b\u202eB\u2028"


@on_sqlite
def test_users_set_wants_something_to_set(flask, make_user):
    assert "say what to change" in flask("users", "set", make_user().id, exit_code=2)


def test_webhook_url_must_be_https_unless_told_otherwise(make_app, flask):
    runner = make_app(WEBHOOK_REQUIRE_HTTPS=1).test_cli_runner()
    args = ("users", "add", "Ann", "--webhook-url")
    told = flask(*args, "http://127.0.0.1/", exit_code=2, runner=runner)
    assert "must begin with https://: WEBHOOK_REQUIRE_HTTPS=0 allows plain http" in told
    told = flask(*args, "https://10.0.0.1/", exit_code=2, runner=runner)
    assert "not on the public internet: WEBHOOK_ALLOWED_NETWORKS allows its network" in told
    flask(*args, "https://127.0.0.1/", runner=runner)


# --- webhooks -----------------------------------------------------------------------------


@pytest.fixture
def add_delivery(app):
    """Add a delivery that nobody is trying; keywords are columns. Gives its id."""

    def add(user, **columns):
        with app.app_context():
            made = utcnow()
            row = Delivery(
                **{"webhook_id": f"msg_{made.timestamp()}", "user_id": user.id, "body": b"{}"}
                | {"next_attempt_at": made} | columns
            )  # fmt: skip
            transact(lambda tx: db.session.add(row))
            return row.id

    return add


def test_webhooks_list_shows_the_newest_50_or_as_many_as_asked(flask, make_user, add_delivery):
    ann, ben = make_user(), make_user(name="Ben")
    ids = [add_delivery(ann, state="dead", last_result="500") for _ in range(51)]
    pending, bens = add_delivery(ann), add_delivery(ben, state="dead")

    def shown(*options):
        return [row["id"] for row in flask("webhooks", "list", *options, "--json")]

    assert shown() == [bens, pending, *ids[:2:-1]]
    assert shown("--limit", 1000) == [bens, pending, *ids[::-1]]
    assert shown("--limit", 1) == [bens]
    assert shown("--state", "dead", "--user", ann.id) == ids[:0:-1]
    assert shown("--state", "pending") == [pending]
    assert shown("--user", ben.id) == [bens]
    [row] = flask("webhooks", "list", "--state", "dead", "--limit", 1, "--user", ann.id, "--json")
    assert (row["user"], row["state"], row["result"]) == (ann.id, "dead", "500")


def test_webhooks_redeliver_tries_one_or_all_that_failed(flask, make_user, receiver, add_delivery):
    user = make_user(webhook_url=receiver.url)
    dead = [add_delivery(user, state="dead", attempts=9, message_id=None) for _ in range(3)]
    done = add_delivery(user, state="delivered")
    waiting = add_delivery(user, next_attempt_at=utcnow() + timedelta(hours=1))
    held = {"lease": "another", "leased_until": utcnow() + timedelta(hours=1)}
    tried = add_delivery(user, **held)
    run = ("webhooks", "redeliver")
    assert flask(*run, dead[1], "--json") == [{"id": dead[1], "state": "delivered"}]
    expected = [{"id": id, "state": "delivered"} for id in (dead[0], dead[2])]
    assert flask(*run, "--failed", "--json") == expected
    assert len(receiver.received) == 3
    for id in (done, waiting):  # whatever its state
        assert flask(*run, id, "--json") == [{"id": id, "state": "delivered"}]
    assert flask(*run, tried, "--json") == [{"id": tried, "state": "being tried"}]
    assert flask(*run, "--failed", "--json") == []
    assert len(receiver.received) == 5


@on_sqlite
@pytest.mark.parametrize(("options", "threads"), [((), 64), (("--threads", 2), 2)])
def test_webhooks_deliver_calls_as_many_receivers_at_once_as_it_has_threads(
    flask, make_user, add_delivery, options, threads
):
    together = threading.Barrier(threads)

    def answer(connection, stopped):
        connection.recv(65536)
        together.wait(30)  # breaks, and the try fails, where fewer come
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    with raw_server(answer) as url:
        for n in range(threads):
            add_delivery(make_user(name=f"user {n}", webhook_url=url))
        told = flask("webhooks", "deliver", *options)
    assert f"delivered  {threads}\npending    0\ndead       0\n" in told


def test_purge_deletes_what_is_older_than_retention_days_and_nothing_else(
    make_app, make_user, assign, add_delivery
):
    """Numbers and counts stay, and so does what is still to be delivered."""
    app, user = make_app(RETENTION_DAYS=7), make_user()
    number = assign(user.id, ago=timedelta(days=400))
    young, old = utcnow() - timedelta(days=7, minutes=-1), utcnow() - timedelta(days=7, minutes=1)
    kept = {}

    def add(name, at, state=None, sent_at=None, tried_at=None):
        """A message, with its delivery and an attempt where they are told."""
        with app.app_context():
            message = Message(
                user_id=user.id, phone_number_id=number, provider="gw", digits=NUMBER,
                sms_text=name, received_at=at, created_at=at,
            )  # fmt: skip
            transact(lambda tx: db.session.add(message))
        if state:
            delivery = add_delivery(
                user, message_id=message.id, state=state, created_at=sent_at or at
            )
            attempt = Attempt(
                delivery_id=delivery, trigger="worker", started_at=tried_at or at, ms=1, result="1"
            )
            with app.app_context():
                transact(lambda tx: db.session.add(attempt))
        kept[name] = message.id

    with app.app_context():
        transact(lambda tx: tx.count(user.id, old, sms=5))
    add("young", young, "dead")
    add("young, unmatched", young)
    add("old", old)
    add("old, ended", old, "delivered")
    add("old, failed, tried of late", old, "dead", tried_at=young)
    add("old, still waiting", old, "pending")
    add("old, sent of late", old, "delivered", sent_at=young, tried_at=young)
    result = app.test_cli_runner().invoke(args=["purge", "--json"])
    assert result.exit_code == 0
    deleted = {"attempts": 3, "deliveries": 2, "messages": 3, "audit_entries": 0}
    assert json.loads(result.stdout) == deleted
    with app.app_context():
        texts = db.session.scalars(select(Message.sms_text).order_by(Message.id)).all()
        assert texts == [
            "young", "young, unmatched", "old, still waiting", "old, sent of late",
        ]  # fmt: skip
        states = db.session.scalars(select(Delivery.state).order_by(Delivery.id)).all()
        assert states == ["dead", "pending", "delivered"]
        assert len(db.session.scalars(select(Attempt)).all()) == 2
        assert db.session.get(PhoneNumber, number).digits == NUMBER
        assert db.session.scalar(select(UserSummary.sms)) == 5
    result = app.test_cli_runner().invoke(args=["purge", "--json"])
    assert json.loads(result.stdout) == dict.fromkeys(deleted, 0)


# --- summary ------------------------------------------------------------------------------


def test_a_month_is_billed_from_its_csv(app, flask, make_user):
    ann, ben = make_user(), make_user(name="=HYPERLINK(1)", daily_limit=30)
    days = [date(2026, 1, 31), date(2026, 2, 1), date(2026, 2, 28), date(2026, 3, 1)]
    with app.app_context():
        for n, day in enumerate(days):
            at = datetime.combine(day, datetime.min.time(), UTC)
            transact(lambda tx, at=at, n=n: tx.count(ann.id, at, numbers=10**n, sms=1))
        transact(lambda tx: tx.count(ben.id, datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC), otps=7))
    counts = "requests,numbers,sms,otps,webhooks_delivered"
    assert flask("summary", "--month", "2026-02", "--csv").splitlines() == [
        f"day,user_id,name,daily_limit,{counts}",
        f"2026-02-01,{ann.id},Ann,,0,10,1,0,0",
        f"2026-02-28,{ann.id},Ann,,0,100,1,0,0",
        f"2026-02-28,{ben.id},'=HYPERLINK(1),30,0,0,0,7,0",
        f"total,{ann.id},Ann,,0,110,2,0,0",
        f"total,{ben.id},'=HYPERLINK(1),30,0,0,0,7,0",
        "total,,,,0,110,2,7,0",
    ]
    month = flask("summary", "--month", "2026-02", "--json")
    assert (month["total"]["numbers"], [day["day"] for day in month["days"]]) == (
        110,
        ["2026-02-01", "2026-02-28"],
    )
    assert [user["daily_limit"] for user in month["users"]] == [None, 30]
    for bad in ("2026", "2026-13", "11-2026", ""):
        assert "--month" in flask("summary", "--month", bad, exit_code=2)


@on_sqlite
def test_nobody_manages_themselves(flask, make_user):
    for n in range(3):
        make_user(name=f"user {n}")
    flask("users", "set", 2, "--manager", 1)
    flask("users", "set", 3, "--manager", 2)
    for user, manager in ((1, 1), (1, 2), (1, 3), (2, 3)):
        assert "--manager" in flask("users", "set", user, "--manager", manager, exit_code=2)
    assert [row["manager"] for row in flask("users", "list", "--json")] == [None, 1, 2]
    flask("users", "set", 3, "--manager", 1)
    for bad in (99, "x", "9" * 26):
        assert "Error" in flask("users", "set", 3, "--manager", bad, exit_code=2)


def test_a_limit_can_be_lifted_again(flask, make_user):
    user = make_user()
    assert flask("users", "set", user.id, "--daily-limit", 0, "--json")["daily_limit"] == 0
    assert flask("users", "set", user.id, "--daily-limit", "none", "--json")["daily_limit"] is None
    assert "--daily-limit" in flask(
        "users", "set", user.id, "--daily-limit", "nothing", exit_code=2
    )


def test_users_are_found_by_a_part_of_their_name_and_by_what_they_wait_for(flask):
    for name, *options in (("Ann Smith",), ("Ben Smithers", "--pending"), ("100%",), ("1000",)):
        flask("users", "add", name, *options)

    def found(*options):
        return [user["name"] for user in flask("users", "list", *options, "--json")]

    assert found("--name", "smith") == ["Ann Smith", "Ben Smithers"]
    assert found("--name", "0%") == ["100%"]
    assert found("--pending") == ["Ben Smithers"]
    assert found("--pending", "--name", "ann") == []


def test_summary_of_so_many_days(app, flask, make_user, assign):
    """Today is the last of them; by default there are 30."""
    user, today = make_user(), utcnow().date()
    ages = (0, 1, 29, 30)
    rows = [
        model(day=today - timedelta(days=age), sms=10**n, **key)
        for n, age in enumerate(ages)
        for model, key in ((UserSummary, {"user_id": user.id}), (SystemSummary, {"shard": 3}))
    ]
    rows.append(SystemSummary(day=today, shard=4, unmatched=2))
    with app.app_context():
        transact(lambda tx: db.session.add_all(rows))
    midnight = utcnow().replace(hour=0, minute=0, second=0, microsecond=0)
    for n, since in enumerate((timedelta(0), timedelta(microseconds=-1))):
        number = assign(user.id, f"1202555000{n}")
        with app.app_context():
            transact(
                lambda tx, number=number, since=since: db.session.execute(
                    update(PhoneNumber)
                    .where(PhoneNumber.id == number)
                    .values(assigned_at=midnight + since)
                )
            )

    def figures(*options):
        data = flask("summary", *options, "--json")
        [of_user] = data["users"]
        assert of_user["sms"] == data["total"]["sms"] == sum(day["sms"] for day in data["days"])
        assert data["total"]["unmatched"] == 2
        return data["total"]["sms"], len(data["days"]), of_user["without_sms"]

    assert figures() == (111, 3, 2)
    assert figures("--days", 31) == (1111, 4, 2)
    assert figures("--days", 2) == (11, 2, 2)
    assert figures("--days", 1) == (1, 1, 1)
    days = [day["day"] for day in flask("summary", "--json")["days"]]
    assert days == [str(today - timedelta(days=age)) for age in (29, 1, 0)]


@on_sqlite
def test_summary_sorts_counts_from_the_highest_down(app, flask, make_user):
    counters = ("requests", "numbers", "sms", "otps", "webhooks_delivered")
    users = [make_user(name=f"user {n}") for n in range(3)]
    with app.app_context():
        for n, user in enumerate(users):
            steps = {name: (n + k) % 3 + 1 for k, name in enumerate(counters)}
            transact(lambda tx, user=user, steps=steps: tx.count(user.id, utcnow(), **steps))
    for name in counters:
        rows = flask("summary", "--sort", name, "--json")["users"]
        assert [row[name] for row in rows] == [3, 2, 1]
    rows = flask("summary", "--json")["users"]
    # Who holds no number has none without an SMS
    assert [(row["user_id"], row["without_sms"]) for row in rows] == [(1, 0), (2, 0), (3, 0)]


def test_summary_counts_in_all_per_day_and_per_user(make_app, flask, make_user):
    user = make_user()
    with sandbox() as url:
        client = make_app(MAIN_SERVER_URL=url).test_client()
        path = f"/api/get-number/{user.key}?country_id=1"
        number = client.get(path).json["data"]["phone_number"]
        assert client.get(f"{path}&operator_id=9001").status_code == 404
        assert client.get(f"{path}&operator_id=9004").status_code == 500
    sms = {"event": "otp_received", "data": {"phone_number": number, "sms_text": "code 1234"}}
    client.post(f"/api/ingest/{SYSTEM_KEY}", json=sms)
    data = flask("summary", "--json")
    counts = {"requests": 3, "numbers": 1, "sms": 1, "otps": 1, "webhooks_delivered": 0}
    assert data["total"] == counts | {"unmatched": 0}
    more = {"daily_limit": None, "without_sms": 0, "share_without_sms": 0}
    assert data["users"] == [counts | {"user_id": user.id, "name": "Ann"} | more]
    assert [day["numbers"] for day in data["days"]] == [1]
    assert data["states"] == {"phone_numbers assigned": 1, "phone_numbers unknown": 1}
    assert re.search(r"^numbers +1$", flask("summary"), re.M)


@pytest.mark.server
def test_a_command_prints_its_answer_alone(database_url):
    env = {"PATH": str(BIN), "DATABASE_URL": database_url, "SECRET_KEY": ""}
    command = [BIN / "flask", "summary", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
    assert isinstance(json.loads(done.stdout), dict)
    assert done.stderr == b""  # without SECRET_KEY, of which servers and doctor tell


def test_a_key_that_cannot_be_kept_stops_the_start_with_a_sentence(make_app, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("flask.Flask.auto_find_instance_path", lambda self: str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="SECRET_KEY is not set, and none can be kept"):
        make_app(SECRET_KEY="")


def test_doctor_finds_nothing_wrong_with_a_good_deployment(make_app, flask):
    with sandbox() as url:
        runner = make_app(MAIN_SERVER_URL=url).test_cli_runner()
        assert flask("doctor", "--json", runner=runner) == {"ok": True, "problems": []}


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"MAIN_SERVER_URL": ""}, "MAIN_SERVER_URL is not set"),
        ({"SYSTEM_API_KEY": ""}, "SYSTEM_API_KEY is not set"),
        (
            {"SYSTEM_API_KEY": "a wrong key, not short"},
            "the main server answered 401 (is SYSTEM_API_KEY wrong?)",
        ),
        (
            {"SECRET_KEY": ""},
            "SECRET_KEY is not set: the one in instance/secret_key serves this machine only",
        ),
    ],
)
def test_doctor_says_what_is_misconfigured_and_exits_1(make_app, flask, env, problem):
    with sandbox() as url:
        runner = make_app(**{"MAIN_SERVER_URL": url} | env).test_cli_runner()
        found = flask("doctor", "--json", exit_code=1, runner=runner)
        assert found == {"ok": False, "problems": [problem]}


@on_sqlite
@pytest.mark.parametrize(
    ("env", "answer", "problems"),
    [
        (
            {"MAIN_SERVER_URL": "", "SYSTEM_API_KEY": ""},
            {},
            ["MAIN_SERVER_URL is not set", "SYSTEM_API_KEY is not set"],
        ),
        ({}, {"status_code": 403, "json": {"status": "error", "message": "no"}},
         ["the main server answered 403 (is SYSTEM_API_KEY wrong?)"]),
        ({}, {"status_code": 404, "json": {"status": "error", "message": "no"}},
         ["the main server answered 404"]),
        ({}, {"exc": requests.ConnectionError},
         ["the main server cannot be used: Unreachable: connect"]),
        ({"SECRET_KEY": "x" * 31}, {}, ["SECRET_KEY has fewer than 32 characters"]),
        ({"SECRET_KEY": "x" * 32}, {}, []),
        ({"SECRET_KEY": "x" * 33}, {}, []),
    ],
)  # fmt: skip
def test_doctor_finds_this_and_nothing_else(make_app, flask, requests_mock, env, answer, problems):
    good = {"json": {"status": "success", "data": {"countries": [], "operators": []}}}
    url = "https://main.test"
    requests_mock.get(f"{url}/api/init/{SYSTEM_KEY}", **(answer or good))
    runner = make_app(**{"MAIN_SERVER_URL": url} | env).test_cli_runner()
    found = flask("doctor", "--json", exit_code=1 if problems else 0, runner=runner)
    assert found == {"ok": not problems, "problems": problems}
    text = flask("doctor", exit_code=1 if problems else 0, runner=runner)
    assert text == "".join(f"problem: {problem}\n" for problem in problems) or "ok\n"


@on_sqlite
@pytest.mark.parametrize(
    ("url", "is_open"),
    [
        ("http://main.test", True),
        ("http://10.0.0.1:8000", True),
        ("http://[2001:db8::1]/x", True),
        ("https://main.test", False),
        ("http://127.0.0.1:8000", False),
        ("http://[::1]", False),
        ("http://localhost/x", False),
    ],
)
def test_doctor_warns_of_a_key_that_is_sent_in_the_clear(make_app, url, is_open):
    with make_app(MAIN_SERVER_URL=url).app_context():
        assert bool([*checks.system_key()]) is is_open


@on_sqlite
@pytest.mark.parametrize(("key", "is_short"), [("a", True), ("x" * 15, True), ("x" * 16, False)])
def test_doctor_warns_of_a_short_system_key(make_app, key, is_short):
    with make_app(SYSTEM_API_KEY=key).app_context():
        found = [*checks.system_key()]
        assert [sentence for sentence in found if "fewer than 16 characters" in sentence] == found[
            : int(is_short)
        ]


def test_doctor_counts_the_secrets_that_cannot_be_read(app, make_app, make_user, make_provider):
    for n in range(3):
        make_user(name=f"user {n}")
    make_provider(secret="no seal")
    make_provider("other")
    change(app, User, 1, webhook_secret="nor this")
    with app.app_context():
        one, other = checks.sealed_secrets()
    assert one.startswith("1 users' webhook secrets are") and other.startswith("1 providers' ")
    with make_app(SECRET_KEY="another").app_context():
        assert next(checks.sealed_secrets()).startswith("3 users'")


@pytest.mark.parametrize(
    ("age", "is_late"), [({"days": 31}, False), ({"days": 31, "hours": 2}, True)]
)
def test_doctor_tells_that_nobody_purges(app, client, make_provider, age, is_late):
    client.post(make_provider(), json={"to": NUMBER, "text": "hi"})
    change(app, Message, 1, created_at=utcnow() - timedelta(**age))
    with app.app_context():
        found = [*checks.old_messages()]
    assert [("flask purge" in sentence) for sentence in found] == [True] * is_late


@on_sqlite
def test_doctor_tells_who_can_read_the_database(app):
    with app.app_context():
        assert [*checks.private_files()] == []
        path = Path(db.engine.url.database)
        path.chmod(0o640)
        [found] = checks.private_files()
        assert str(path) in found and "chmod" in found


@on_sqlite
def test_doctor_says_once_that_the_database_is_away(make_app, flask):
    """By the kind of the error and its number, which is no traceback."""
    with sandbox() as url:
        away = f"mysql://u:geheim@127.0.0.1:{free_port()}/n"
        runner = make_app(MAIN_SERVER_URL=url, DATABASE_URL=away).test_cli_runner()
        found = flask("doctor", "--json", exit_code=1, runner=runner)
    told = "the database does not answer: is its server running, and is DATABASE_URL right?"
    assert found == {"ok": False, "problems": [told]}


@pytest.mark.parametrize(
    ("seconds", "columns", "found"),
    [
        (59, {}, False),
        (61, {}, True),
        (61, {"state": "dead"}, False),
        (61, {"leased_until": timedelta(seconds=1)}, False),
        (61, {"leased_until": timedelta(seconds=-59)}, False),
        (61, {"leased_until": timedelta(seconds=-61)}, True),
    ],
)
def test_doctor_sees_that_no_worker_takes_what_is_due(
    make_app, flask, make_user, add_delivery, seconds, columns, found
):
    """A worker takes it within a second; for a minute that may be another one's lease."""
    now = utcnow()
    times = {k: now + v for k, v in columns.items() if isinstance(v, timedelta)}
    add_delivery(make_user(), next_attempt_at=now - timedelta(seconds=seconds), **columns | times)
    with sandbox() as url:
        runner = make_app(MAIN_SERVER_URL=url).test_cli_runner()
        told = flask("doctor", exit_code=int(found), runner=runner)
    late = (
        "problem: 1 webhook deliveries have been due for a minute: no worker runs, "
        "or more are due than it can send\n"
    )
    assert told == (late if found else "ok\n")


@on_sqlite
@pytest.mark.parametrize(("dyno", "found"), [("web.1", True), ("", False)])
def test_doctor_warns_of_sqlite_where_a_platform_throws_the_disk_away(
    make_app, flask, monkeypatch, dyno, found
):
    monkeypatch.setenv("DYNO", dyno)
    with sandbox() as url:
        runner = make_app(MAIN_SERVER_URL=url).test_cli_runner()
        output = flask("doctor", exit_code=int(found), runner=runner)
    assert ("SQLite on a disk that this platform throws away" in output) is found


def test_doctor_on_a_paas_disk_with_an_old_schema(make_app, flask, monkeypatch, empty_database_url):
    monkeypatch.setenv("DYNO", "web.1")
    with sandbox() as url:
        app = make_app(MAIN_SERVER_URL=url, DATABASE_URL=empty_database_url)
        output = flask("doctor", exit_code=1, runner=app.test_cli_runner())
    assert "flask db upgrade" in output
    assert ("SQLite on a disk" in output) == empty_database_url.startswith("sqlite")


@on_mariadb
@pytest.mark.parametrize(("processes", "found"), [(3, False), (4, True)])
@pytest.mark.parametrize("whose", ["the server's", "the user's"])
def test_doctor_counts_the_connections(
    make_app, flask, database_url, mariadb_server, whose, processes, found
):
    """Those of all processes and a worker, against 12 that are allowed."""
    if whose == "the server's":
        mariadb_server.run("SET GLOBAL max_connections=12")
    else:
        mariadb_server.run("CREATE USER small@'127.0.0.1' WITH MAX_USER_CONNECTIONS 12")
        mariadb_server.run("GRANT ALL ON migrated.* TO small@'127.0.0.1'")
        database_url = database_url.replace("root@", "small@")
    try:
        with sandbox() as url:
            env = {"MAIN_SERVER_URL": url, "WEB_CONCURRENCY": processes}
            runner = make_app(DATABASE_URL=database_url, **env).test_cli_runner()
            output = flask("doctor", exit_code=int(found), runner=runner)
    finally:
        mariadb_server.run("SET GLOBAL max_connections=200")
        mariadb_server.run("DROP USER IF EXISTS small@'127.0.0.1'")
    told = (
        "problem: 5 processes (WEB_CONCURRENCY and a worker) of 3 connections are more than the "
        "12 that the database server allows\n"
    )
    assert output == (told if found else "ok\n")


def test_migrations_go_up_and_down_and_leave_no_drift(make_app, empty_database_url):
    app = make_app(DATABASE_URL=empty_database_url)
    migrating.init_app(app)
    with app.app_context():
        upgrade()
        downgrade(revision="base")
        assert inspect(db.engine).get_table_names() == ["alembic_version"]
        upgrade()
        check()


@pytest.mark.server
def test_demo_once_makes_the_round_trip(flask):
    output = flask("demo", "--once")
    assert "4. webhook: delivered, signed, and exactly as documented" in output


@pytest.mark.server
@on_sqlite
@pytest.mark.parametrize("told_by", ["--port", "PORT"])
def test_demo_serves_until_it_is_stopped(start, tmp_path, database_url, told_by):
    """With a number, an SMS to it, and the webhook that comes of it, as the lines say."""
    port = free_port()
    options = ("--port", str(port)) if told_by == "--port" else ()
    env = {"PORT": "1" if options else str(port), "DATABASE_URL": database_url}
    process, url = start("flask", "demo", *options, port=port, PYTHONUNBUFFERED="1", **env)
    for _ in range(1000):  # it answers a moment before it says so
        log = (tmp_path / "log").read_text()
        if "Ctrl-C" in log:
            break
        time.sleep(0.05)
    key = re.search(r"usr_[\w-]+", log)[0]
    main_server = re.search(r"(http\S+) \(sandbox\)", log)[1]
    answer = requests.get(f"{url}/api/get-number/{key}?country_id=2", timeout=30).json()
    sms = {"phone_number": answer["data"]["phone_number"], "sms_text": "Your code is 123456"}
    requests.post(f"{main_server}/sms", json=sms, timeout=30)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    log = (tmp_path / "log").read_text()
    assert "webhook received, signature good" in log and log.endswith("stopped\n")


def test_summary_shows_whose_numbers_never_receive_an_sms(
    flask, app, client, make_user, make_provider, assign
):
    """What shows misuse; it stays when the messages have been purged."""
    ann, ben = make_user(), make_user(name="Ben")
    for user, numbers in ((ann, ("15550001", "15550002")), (ben, ("15550003", "15550004"))):
        for number in numbers:
            assign(user.id, number)
            with app.app_context():
                transact(lambda tx, user=user: tx.count(user.id, utcnow(), numbers=1))
    path = make_provider("gw")
    for number in ("15550001", "15550002", "15550003"):
        client.post(path, json={"to": number, "text": "code 1234"})
    with app.app_context():
        transact(lambda tx: [db.session.execute(delete(m)) for m in (Delivery, Message)])
    [first, second] = flask("summary", "--sort", "share_without_sms", "--json")["users"]
    assert (first["user_id"], first["name"]) == (ben.id, "Ben")
    assert (first["without_sms"], first["share_without_sms"]) == (1, 0.5)
    assert (second["user_id"], second["without_sms"], second["share_without_sms"]) == (ann.id, 0, 0)
    users = flask("summary", "--json")["users"]
    assert [row["user_id"] for row in users] == [ann.id, ben.id]
    assert re.search(r"^2 +Ben .* 0\.5$", flask("summary", "--sort", "without_sms"), re.M)
    flask("summary", "--sort", "beauty", exit_code=2)


@pytest.mark.parametrize("watch", [[], ["--watch"]])
def test_a_worker_on_an_old_schema_says_so_and_ends(make_app, empty_database_url, flask, watch):
    runner = make_app(DATABASE_URL=empty_database_url).test_cli_runner()
    output = flask("webhooks", "deliver", *watch, exit_code=1, runner=runner)
    assert output == "Error: the database schema is not current: run `flask db upgrade`\n"


def test_version_is_the_one_of_the_api(flask, client):
    told = flask("version", "--json")["service"]
    assert told == client.get("/openapi.json").json["info"]["version"]
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", told)
