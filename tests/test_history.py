"""GET /api/numbers, /api/messages, /api/summary and /healthz: what users read back."""

import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import insert, text

from service import history
from service.models import Message, PhoneNumber, User, count, db, transact, utcnow
from tests.conftest import SYSTEM_KEY
from tests.databases import on_mariadb
from tests.fixtures import NUMBER

OTHER = "12025550124"


def read(client, call, user, status=200, **query):
    response = client.get(f"/api/{call}/{user.key}", query_string=query)
    assert response.status_code == status, response.json
    assert response.headers["Cache-Control"] == "no-store"
    return response.json["data"][call] if status == 200 and call != "summary" else response.json


@pytest.fixture
def sms(client, make_provider):
    """Let an SMS come in; gives its id."""
    path = make_provider("gw")

    def send(text, to=NUMBER, **fields):
        return client.post(path, json={"to": to, "text": text} | fields).json["data"]["id"]

    return send


def test_numbers_are_listed_newest_first_in_pages(client, make_user, assign):
    ann, ben = make_user(), make_user(name="Ben")
    ids = [assign(ann.id, f"1202555{n:04}", timedelta(hours=9 - n)) for n in range(5)]
    assign(ben.id)
    rows = read(client, "numbers", ann)
    assert [row["id"] for row in rows] == ids[::-1]
    assert rows[0].keys() == {"id", "phone_number", "country_id", "operator_id", "assigned_at"}
    assert rows[0]["phone_number"] == "+12025550004"
    assert rows[0]["assigned_at"].endswith("Z")
    page = read(client, "numbers", ann, limit=2, before=ids[3])
    assert [row["id"] for row in page] == [ids[2], ids[1]]
    assert read(client, "numbers", ann, before=ids[0]) == []


def test_a_number_that_is_only_asked_for_is_not_listed(app, client, make_user):
    user = make_user()
    for state in ("requested", "unknown"):
        with app.app_context():
            row = PhoneNumber(user_id=user.id, state=state, country_id=1)
            transact(lambda row=row: db.session.add(row))
    assert read(client, "numbers", user) == []


def test_messages_are_those_of_the_user_oldest_first(client, make_user, assign, sms, receiver):
    ann, ben = make_user(webhook_url=receiver.url), make_user(name="Ben")
    assign(ann.id)
    assign(ben.id, OTHER)
    first, _, third = sms("Your code is 123456"), sms("code 999", OTHER), sms("Hello ✓ <b>")
    receiver.answers.append(500)
    fourth = sms("code: 777777")
    rows = read(client, "messages", ann)
    assert [row["id"] for row in rows] == [first, third, fourth]
    assert [row["webhook"] for row in rows] == ["delivered", "none", "pending"]
    received_at = rows[0].pop("received_at")
    assert received_at.endswith("Z")
    assert rows[0] == {
        "id": first, "phone_number": f"+{NUMBER}", "sms_text": "Your code is 123456",
        "otp_code": "123456", "otp_rule": "keyword-before", "provider": "gw",
        "webhook": "delivered",
    }  # fmt: skip
    assert (rows[1]["otp_code"], rows[1]["sms_text"]) == (None, "Hello ✓ <b>")
    # Without `after` the latest, with it those that follow: a reader misses none
    assert [row["id"] for row in read(client, "messages", ann, limit=2)] == [third, fourth]
    after = read(client, "messages", ann, limit=1, after=first)
    assert [row["id"] for row in after] == [third]
    assert read(client, "messages", ann, after=fourth) == []


@pytest.mark.parametrize("spelled", [f"+{NUMBER}", f"00{NUMBER}", NUMBER, "2025550123"])
def test_messages_of_one_number_as_it_was_given_out(app, client, make_user, assign, sms, spelled):
    user = make_user()
    id = assign(user.id)
    assign(user.id, OTHER)
    with app.app_context():
        transact(lambda: setattr(db.session.get(PhoneNumber, id), "phone_code", "1"))
    wanted, _ = sms("code 123456"), sms("code 654321", OTHER)
    rows = read(client, "messages", user, phone_number=spelled)
    assert [row["id"] for row in rows] == [wanted]
    assert read(client, "messages", user, phone_number="4917012345") == []


def test_an_sms_for_a_later_holder_is_not_the_earlier_ones(client, make_user, assign, sms):
    ann, ben = make_user(), make_user(name="Ben")
    assign(ann.id, ago=timedelta(hours=2))
    assign(ben.id, ago=timedelta(hours=1))
    sms("code 123456")
    assert read(client, "messages", ann) == []
    assert len(read(client, "messages", ben)) == 1


def waiting(app):
    return app.extensions["waiting"]._busy["all"]


def test_wait_answers_as_soon_as_there_is_one(app, client, make_user, assign, sms):
    user = make_user()
    assign(user.id)
    got = []
    thread = threading.Thread(
        target=lambda: got.extend(read(app.test_client(), "messages", user, wait=25))
    )
    thread.start()
    while not waiting(app) and thread.is_alive():
        time.sleep(0.01)
    sent = sms("code 123456")
    thread.join()
    assert [row["id"] for row in got] == [sent]


def test_wait_ends_with_the_empty_list(client, make_user):
    assert read(client, "messages", make_user(), wait=1) == []


def test_waiters_hold_neither_connections_nor_every_thread(make_app, make_user, monkeypatch):
    """Of 8 threads 4 wait, 2 of them for one user; all others are answered at once."""
    app, users = make_app(THREADS=8), [make_user(name=name) for name in ("Ann", "Ben", "Cem")]
    go_on, at_rest, answered = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)

    def rest(seconds):
        at_rest.release()
        go_on.wait(60)

    monkeypatch.setattr(history.time, "sleep", rest)

    def wait(user):
        read(app.test_client(), "messages", user, wait=1)
        answered.release()

    threads = [threading.Thread(target=wait, args=(user,)) for user in users for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        assert at_rest.acquire(timeout=60)
    for _ in range(20):
        assert answered.acquire(timeout=60)
    # Everybody else has been answered: what is checked out now is held by those who wait
    with app.app_context():
        assert db.engine.pool.checkedout() == 0
    assert waiting(app) == 4
    assert max(app.extensions["waiting"]._busy[user.id] for user in users) == 2
    go_on.set()
    for thread in threads:
        thread.join()
    assert waiting(app) == 0


@on_mariadb
def test_an_sms_that_is_just_being_stored_is_not_passed_over(app, client, make_user, assign, sms):
    """It has the lower id and is committed later: reading on from the higher one would miss it."""
    user = make_user()
    assign(user.id)
    columns = {
        "user_id": user.id, "provider": "gw", "digits": NUMBER,
        "sms_text": "first", "received_at": utcnow(), "created_at": utcnow(),
    }  # fmt: skip
    with app.app_context(), db.engine.connect() as connection:
        first = connection.execute(insert(Message).values(columns)).inserted_primary_key.id
        second = sms("second")
        assert second > first
        got = []
        reader = threading.Thread(
            target=lambda: got.extend(read(app.test_client(), "messages", user, after=first - 1))
        )
        reader.start()
        reader.join(0.5)
        waited = reader.is_alive()
        connection.commit()
    reader.join()
    assert waited
    assert [row["id"] for row in got] == [first, second]


def test_summary_counts_in_all_and_per_day(app, client, make_user):
    user = make_user()
    today = utcnow()
    with app.app_context():
        for days, numbers in ((0, 1), (2, 2), (40, 4)):
            at = today - timedelta(days=days)
            transact(lambda at=at, n=numbers: count(user.id, at, numbers=n, sms=n, otps=1))
    data = read(client, "summary", user)["data"]
    assert data["totals"] == {"numbers": 7, "sms": 7, "otps": 3, "webhooks_delivered": 0}
    assert len(data["days"]) == 30
    assert data["days"][-1] == {
        "day": today.date().isoformat(), "numbers": 1, "sms": 1, "otps": 1, "webhooks_delivered": 0,
    }  # fmt: skip
    assert [day["numbers"] for day in data["days"][-4:]] == [0, 2, 0, 1]
    assert len(read(client, "summary", user, days=1)["data"]["days"]) == 1


@pytest.mark.parametrize("call", ["numbers", "messages", "summary"])
def test_who_may_read(app, client, make_user, call):
    user, path = make_user(), f"/api/{call}"
    assert client.get(path, headers={"Authorization": f"Bearer {user.key}"}).status_code == 200
    assert client.get(path, headers={"X-API-Key": SYSTEM_KEY}).status_code == 400
    as_user = client.get(f"{path}/{SYSTEM_KEY}?user_id={user.id}")
    assert as_user.status_code == 200
    assert client.get(f"{path}/{SYSTEM_KEY}?user_id=99").status_code == 404
    for bad in (path, f"{path}/nonsense"):
        response = client.get(bad)
        assert (response.status_code, response.json["status"]) == (401, "error")
    with app.app_context():
        transact(lambda: setattr(db.session.get(User, user.id), "active", False))
    assert client.get(f"{path}/{user.key}").status_code == 401


@pytest.mark.parametrize(
    ("call", "query", "field"),
    [
        ("numbers", {"limit": 0}, "limit"),
        ("numbers", {"limit": 201}, "limit"),
        ("numbers", {"before": "-1"}, "before"),
        ("numbers", {"before": 2**63}, "before"),
        ("messages", {"after": "x"}, "after"),
        ("messages", {"wait": 26}, "wait"),
        ("messages", {"wait": "1_0"}, "wait"),
        ("messages", {"phone_number": "Ann"}, "phone_number"),
        ("summary", {"days": 367}, "days"),
        ("summary", {"days": ["1", "2"]}, "days"),
    ],
)
def test_a_bad_parameter_is_named(client, make_user, call, query, field):
    answer = read(client, call, make_user(), status=400, **query)
    assert answer["message"].startswith(field)
    assert list(answer["errors"]) == [field]


def test_healthz_needs_no_key(client):
    response = client.get("/healthz")
    assert (response.status_code, response.json["status"]) == (200, "success")


def test_healthz_is_503_when_the_schema_is_not_current(app, client):
    def set_version(version):
        with app.app_context(), db.engine.begin() as connection:
            was = connection.scalar(text("SELECT version_num FROM alembic_version"))
            connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})
        return was

    current = set_version("0001")
    response = client.get("/healthz")
    set_version(current)
    assert response.status_code == 503
    assert response.json == {"status": "error", "message": "The database schema is not current"}


def test_healthz_is_503_when_the_database_is_away(make_app, tmp_path):
    app = make_app(DATABASE_URL=f"sqlite:///{tmp_path}/no/such/folder.sqlite3")
    response = app.test_client().get("/healthz")
    assert response.status_code == 503
    assert response.json == {"status": "error", "message": "The database does not answer"}
