"""Delivering webhooks: leases, retries, circuits, isolation, secrets, the log."""

import contextlib
import gzip
import json
import os
import signal
import subprocess
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import requests
from sqlalchemy import func, select, update
from standardwebhooks import Webhook, WebhookVerificationError

from service import delivery
from service.models import (
    Attempt,
    Delivery,
    Message,
    SystemSummary,
    User,
    db,
    transact,
    utcnow,
)
from service.secretbox import Unreadable, seal, unseal
from tests.conftest import SECRET_KEY
from tests.fixtures import BIN, ROOT
from tests.mariadb import free_port
from tests.peers import raw_server
from tests.test_ingest import SMS
from tests.test_outbound import SLOW


@pytest.fixture
def world(app, client, make_user, make_provider, assign, receiver):
    """A user with a number and a receiver; `sms()` sends one and gives the answer's data."""

    class World:
        user = make_user(webhook_url=receiver.url)
        ingest = make_provider()
        sent = 0

        def sms(self):
            self.sent += 1
            return client.post(self.ingest, json=SMS | {"id": self.sent}).json["data"]

        def counted(self):
            """Delivered webhooks as the system summary has them."""
            with app.app_context():
                total = select(func.coalesce(func.sum(SystemSummary.webhooks_delivered), 0))
                return db.session.scalar(total)

        def change(self, model=Delivery, **values):
            with app.app_context():
                transact(lambda: db.session.execute(update(model).values(values)))

        def make_due(self):
            self.change(next_attempt_at=utcnow(), leased_until=None)

        def work(self):
            """One pass of the worker; the states that its tries came to."""
            states = []
            with app.app_context():
                delivery.work(threading.Event(), False, threads=1, on_done=states.append)
            return states

        def rows(self, model=Delivery):
            with app.app_context():
                return db.session.scalars(select(model).order_by(model.id)).all()

    assign(World.user.id)
    World.receiver = receiver
    return World()


# --- durable ------------------------------------------------------------------------------


def test_a_crash_between_commit_and_try_leaves_a_lease_that_runs_out(app, world):
    world.receiver.answers = [500]
    world.sms()
    with app.app_context():  # the state in which kill -9 leaves it: leased, untried
        transact(
            lambda: db.session.execute(
                update(Delivery).values(
                    lease="dead-process",
                    leased_until=utcnow() + timedelta(seconds=60),
                    next_attempt_at=utcnow(),
                )
            )
        )
    assert world.work() == []
    world.change(leased_until=utcnow() - timedelta(microseconds=1))
    assert world.work() == ["delivered"]


def test_kill_9_during_the_try_loses_nothing(start, world, database_url):
    """The web process dies while the receiver is being called; a worker delivers later."""
    called = threading.Event()

    def silence(connection, stopped):
        connection.recv(65536)
        called.set()
        stopped.wait()

    with raw_server(silence) as url:
        world.change(User, webhook_url=url)
        port = free_port()
        process, base = start(
            "gunicorn", "--bind", f"127.0.0.1:{port}", "wsgi:app", port=port,
            DATABASE_URL=database_url, SECRET_KEY=SECRET_KEY,
            WEBHOOK_REQUIRE_HTTPS="0", WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
            WEBHOOK_TIMEOUT="60", WEB_CONCURRENCY="1",
        )  # fmt: skip

        def call():
            with contextlib.suppress(requests.ConnectionError):
                requests.post(base + world.ingest, json=SMS | {"id": "k"}, timeout=60)

        thread = threading.Thread(target=call)
        thread.start()
        assert called.wait(30)
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        process.kill()
        for pid in children.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        thread.join()
    [row] = world.rows()
    assert (row.state, row.attempts, row.leased_until > utcnow()) == ("pending", 0, True)
    world.change(User, webhook_url=world.receiver.url)
    assert world.work() == []
    world.change(leased_until=utcnow())
    assert world.work() == ["delivered"]
    assert world.receiver.received[0][0]["webhook-id"] == row.webhook_id


def test_an_outcome_without_the_lease_is_not_written(app, world):
    """A try that outlived its lease must not overwrite what the next holder wrote."""
    world.receiver.answers = [500]
    world.sms()
    world.make_due()
    with app.app_context():
        [row] = delivery.claim_due()
        theirs = utcnow() + timedelta(seconds=60)
        values = {"lease": "another", "leased_until": theirs}
        theft = update(Delivery).values(values).execution_options(synchronize_session=False)
        transact(lambda: db.session.execute(theft))
        delivery.deliver(row, "worker")
    [row] = world.rows()
    assert (row.lease, row.state, row.attempts) == ("another", "pending", 1)


def test_webhook_id_and_bytes_are_the_same_over_retries(world):
    world.receiver.answers = [500, 503]
    assert world.sms()["webhook"] == "pending"
    for expected in ("pending", "delivered"):
        world.make_due()
        assert world.work() == [expected]
    ids = {headers["webhook-id"] for headers, _ in world.receiver.received}
    assert (len(ids), len({body for _, body in world.receiver.received})) == (1, 1)
    [row] = world.rows()
    assert world.receiver.received[0][1] == row.body
    log = [(a.trigger, a.result, a.next_attempt_at is None) for a in world.rows(Attempt)]
    assert log == [("ingest", "500", False), ("worker", "503", False), ("worker", "204", True)]
    assert world.counted() == 1


# --- retries ------------------------------------------------------------------------------


def test_the_schedule_is_front_loaded_and_ends_dead(world):
    world.receiver.answers = [500] * 10
    world.sms()
    for seconds in delivery.RETRY_SECONDS:
        [row] = world.rows()
        wait = (row.next_attempt_at - utcnow()).total_seconds()
        assert 0.8 * seconds - 60 < wait <= 1.2 * seconds
        world.change(User, webhook_failures=0, webhook_open_until=None)
        world.make_due()
        world.work()
    [row] = world.rows()
    assert (row.state, row.attempts, row.next_attempt_at) == ("dead", 10, None)
    assert delivery.RETRY_SECONDS == (5, 15, 45, 120, 300, 900, 3600, 21600, 86400)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("120", 119, 120),
        ("0", 3, 6),
        ("99999999", 3599, 3600),
        ("9" * 5000, 3599, 3600),
        ("-5", 3, 6),
        ("soon", 3, 6),
        ("Fri, 99 Foo", 3, 6),
    ],
)
def test_retry_after_is_respected_within_bounds(app, world, value, low, high):
    outcome = delivery._Outcome("503", "", value)
    with app.app_context():
        assert low <= delivery._delay(1, outcome).total_seconds() <= high


def test_retry_after_may_be_a_date(app, world):
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=30)
    outcome = delivery._Outcome("503", "", format_datetime(until))
    with app.app_context():
        before, delay, after = datetime.now(UTC), delivery._delay(1, outcome), datetime.now(UTC)
    assert before + delay <= until <= after + delay


def test_410_disables_the_endpoint_until_its_url_is_set(app, world, flask):
    world.receiver.answers = [410]
    assert world.sms()["webhook"] == "none"
    assert world.sms()["webhook"] == "none"
    assert [row.state for row in world.rows()] == ["dead", "dead"]
    assert len(world.receiver.received) == 1
    flask("users", "set", world.user.id, "--webhook-url", world.receiver.url)
    assert world.sms()["webhook"] == "delivered"
    again = flask("webhooks", "redeliver", "--failed", "--json")
    assert again == [{"id": 1, "state": "delivered"}, {"id": 2, "state": "delivered"}]


def test_redeliver_starts_a_fresh_schedule(world, flask):
    world.receiver.answers = [500, 500]
    world.sms()
    world.change(state="dead", attempts=10, next_attempt_at=None)
    assert flask("webhooks", "redeliver", 1, "--json") == [{"id": 1, "state": "pending"}]
    assert world.rows()[0].attempts == 1
    assert flask("webhooks", "redeliver", 1, "--json") == [{"id": 1, "state": "delivered"}]
    assert flask("webhooks", "redeliver", 1, "--json") == [{"id": 1, "state": "delivered"}]
    assert world.counted() == 1
    flask("webhooks", "redeliver", 99, exit_code=2)
    flask("webhooks", "redeliver", exit_code=2)


def test_removing_the_url_ends_its_deliveries_visibly(world):
    world.receiver.answers = [500]
    world.sms()
    world.change(User, webhook_url=None)
    world.make_due()
    assert world.work() == ["dead"]
    assert world.rows()[0].last_result == "no_url"


# --- isolation ----------------------------------------------------------------------------


def test_circuit_opens_half_opens_and_closes(app, world):
    world.receiver.answers = [500] * 6
    for _ in range(5):
        world.sms()
    assert len(world.receiver.received) == 5
    # open: nothing is sent, by ingestion or worker
    assert world.sms()["webhook"] == "pending"
    assert world.rows()[-1].last_result == "circuit_open"
    world.make_due()
    assert set(world.work()) == {"pending"}
    assert len(world.receiver.received) == 5
    assert world.rows()[-1].attempts == 0
    # half-open: one probe, which fails, and the circuit is open for longer
    world.change(User, webhook_open_until=utcnow())
    world.make_due()
    assert set(world.work()) == {"pending"}
    assert len(world.receiver.received) == 6
    [user] = world.rows(User)
    assert user.webhook_open_until > utcnow() + timedelta(seconds=delivery.CIRCUIT_SECONDS)
    # half-open again: the probe gets through, and all that waited for the circuit goes
    world.change(User, webhook_open_until=utcnow())
    assert world.sms()["webhook"] == "delivered"
    [user] = world.rows(User)
    assert (user.webhook_failures, user.webhook_open_until) == (0, None)
    world.make_due()
    assert set(world.work()) == {"delivered"}
    assert {row.state for row in world.rows()} == {"delivered"}


def test_a_black_hole_holds_few_threads(make_app, world):
    """Of ten SMS at once for one silent receiver, a few are tried, the rest queued at once."""

    def silence(connection, stopped):
        stopped.wait()

    tried, answers = world.rows(Attempt), []
    with raw_server(silence) as url, ExitStack() as stack:
        world.change(User, webhook_url=url)
        app = make_app(WEBHOOK_TIMEOUT=3)
        stack.enter_context(app.app_context())

        def call(n):
            answers.append(app.test_client().post(world.ingest, json=SMS | {"id": n}).json)

        threads = [threading.Thread(target=call, args=(n,)) for n in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {a["data"]["webhook"] for a in answers} == {"pending"}
    results = [row.last_result for row in world.rows()]
    assert (results.count("timeout"), results.count("busy")) == (4, 6)
    assert len(world.rows(Attempt)) - len(tried) == 4


def test_one_dead_receiver_among_ten_costs_the_others_nothing(
    app,
    world,
    make_user,
    assign,
    receiver,
):
    dead = make_user(webhook_url="http://127.0.0.1:1/")
    assign(dead.id, digits="199999999")
    alive = [make_user(webhook_url=receiver.url) for _ in range(9)]
    for n, user in enumerate(alive):
        assign(user.id, digits=f"19999999{n}")
    client, states = app.test_client(), {"delivered": 0, "pending": 0}
    for round in range(6):
        for n in range(10):
            sms = {"to": f"19999999{n}", "text": "code 1234", "id": f"{round}-{n}"}
            states[client.post(world.ingest, json=sms).json["data"]["webhook"]] += 1
    assert states == {"delivered": 54, "pending": 6}
    assert len(receiver.received) == 54


@pytest.mark.parametrize("talk", SLOW)
def test_every_slow_receiver_ends_at_the_deadline(make_app, world, talk):
    with raw_server(talk) as url:
        world.change(User, webhook_url=url)
        app = make_app(WEBHOOK_TIMEOUT="0.3")
        data = app.test_client().post(world.ingest, json=SMS).json["data"]
    assert data["webhook"] == "pending"
    assert world.rows()[0].last_result == "timeout"


def test_a_stalled_tls_handshake_ends_at_the_deadline(make_app, world):
    def silence(connection, stopped):
        stopped.wait()

    with raw_server(silence) as url:
        world.change(User, webhook_url=url.replace("http", "https"))
        make_app(WEBHOOK_TIMEOUT="0.3").test_client().post(world.ingest, json=SMS)
    assert world.rows()[0].last_result == "timeout"


def test_a_gzip_bomb_is_not_unpacked_and_one_kilobyte_is_kept(world):
    bomb = gzip.compress(b"\0" * 50_000_000)

    def talk(connection, stopped):
        connection.recv(65536)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
        )
        connection.sendall(bomb)

    with raw_server(talk) as url:
        world.change(User, webhook_url=url)
        assert world.sms()["webhook"] == "delivered"
    assert len(world.rows(Attempt)[0].answer) <= 1024


# --- secrets ------------------------------------------------------------------------------


def test_secrets_are_sealed_at_rest(app, make_app, world):
    [user] = world.rows(User)
    assert world.user.secret not in user.webhook_secret
    with app.app_context():
        assert unseal(user.webhook_secret) == world.user.secret
        assert seal("x") != seal("x")
    with make_app(SECRET_KEY="another").app_context(), pytest.raises(Unreadable):
        unseal(user.webhook_secret)


def test_another_secret_key_leaves_deliveries_pending_and_says_why(make_app, world):
    client = make_app(SECRET_KEY="another").test_client()
    assert client.post(world.ingest, json=SMS).json["data"]["webhook"] == "pending"
    assert world.rows()[0].last_result == "secret_unreadable"


def test_a_rotation_signs_with_both_secrets_for_24_hours(world, flask):
    new = flask("users", "rotate-secret", world.user.id, "--json")["webhook_secret"]
    world.sms()
    world.change(User, webhook_old_secret_until=utcnow())
    world.sms()
    (both, body), (one, _) = world.receiver.received
    for secret in (new, world.user.secret):
        assert Webhook(secret).verify(body, dict(both.items()))
    assert Webhook(new).verify(body, dict(one.items()))
    with pytest.raises(WebhookVerificationError):
        Webhook(world.user.secret).verify(body, dict(one.items()))


# --- test event, log, purge ---------------------------------------------------------------


def test_the_test_event_goes_the_same_way(app, world):
    with app.app_context():
        user = db.session.get(User, world.user.id)
        sent = delivery.send_test(user)
        world.receiver.answers = [500]
        failed = delivery.send_test(user)
    headers, body = world.receiver.received[0]
    assert json.loads(body) == {"event": "test", "data": {}}
    assert Webhook(world.user.secret).verify(body, dict(headers.items()))
    assert (sent.state, failed.state) == ("delivered", "dead")
    assert [a.trigger for a in world.rows(Attempt)] == ["test", "test"]
    assert world.counted() == 0


def test_webhooks_list_shows_every_attempt(world, flask):
    world.receiver.answers = [500]
    world.sms()
    [row] = flask("webhooks", "list", "--json")
    assert (row["state"], row["result"]) == ("pending", "500")
    assert [(a["trigger"], a["result"]) for a in row["attempts"]] == [("ingest", "500")]
    assert flask("webhooks", "list", "--state", "dead", "--user", "1", "--json") == []


def test_purge_deletes_what_is_old_and_ended_in_batches(app, world, flask):
    world.receiver.answers = [200, 500]
    world.sms()
    world.sms()
    old = utcnow() - timedelta(days=31)
    world.change(created_at=old)
    world.change(Message, created_at=old)
    world.change(Attempt, started_at=old)
    runner = app.test_cli_runner()
    with app.app_context():
        result = runner.invoke(args=["purge", "--json"])
    assert json.loads(result.stdout) == {"attempts": 2, "deliveries": 1, "messages": 1}
    assert "deliveries: 1 deleted" in result.stderr
    assert [row.state for row in world.rows()] == ["pending"]
    assert len(world.rows(Message)) == 1


# --- the worker process -------------------------------------------------------------------


def test_two_workers_one_killed_mid_drain_deliver_all(world, app, tmp_path, database_url):
    """kill -9 of one of two real workers: all delivered, each webhook-id received, none lost."""
    world.receiver.answers = [500] * 300
    with app.app_context():
        user = db.session.get(User, world.user.id)

        def add():
            for _ in range(300):
                row = delivery._new(user, b"{}")
                row.message_id = message
                db.session.add(row)

        world.sms()
        message = db.session.scalar(select(Message.id))
        transact(add)
    world.receiver.answers = []
    world.change(User, webhook_failures=0, webhook_open_until=None)
    world.make_due()
    env = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")} | {
        "DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY,
        "WEBHOOK_REQUIRE_HTTPS": "0", "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "WEBHOOK_TIMEOUT": "1",
    }  # fmt: skip
    command = [BIN / "flask", "webhooks", "deliver", "--watch", "--threads", "4"]
    with (tmp_path / "log").open("wb") as log:
        workers = [
            subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
            for _ in range(2)
        ]
    try:
        while len(world.receiver.received) < 60:
            time.sleep(0.005)
            assert workers[0].poll() is None, (tmp_path / "log").read_text()
        workers[0].kill()
        pending = select(func.count()).where(Delivery.state == "pending")
        with app.app_context():
            while db.session.scalar(pending):
                db.session.rollback()
                time.sleep(0.05)
                assert workers[1].poll() is None
        workers[1].terminate()
        assert workers[1].wait(30) == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    received = {headers["webhook-id"] for headers, _ in world.receiver.received}
    assert received == {row.webhook_id for row in world.rows()}
    assert {row.state for row in world.rows()} == {"delivered"}
    assert world.counted() == 301


def test_doctor_tells_of_due_deliveries_without_a_worker(world, flask):
    world.receiver.answers = [500]
    world.sms()
    world.change(next_attempt_at=utcnow() - timedelta(minutes=2))
    problems = flask("doctor", "--json", exit_code=1)["problems"]
    assert "1 webhook deliveries are due and no worker takes them" in problems


def test_a_batch_ends_with_the_first_that_does_not_arrive(app, world):
    """Those before it are recorded together, those after it given back at once."""
    world.receiver.answers = [500] * 4
    for _ in range(4):
        world.sms()
    world.change(User, webhook_failures=0)
    world.make_due()
    world.receiver.answers, states = [204, 204, 503], []
    with app.app_context():
        batch = delivery.claim_due()
        assert len(batch) == 4 and len({row.lease for row in batch}) == 1
        assert delivery.claim_due() == []
        delivery.deliver_batch(batch, threading.Event(), states.append)
        assert states == ["delivered", "delivered", "pending"]
        [left] = delivery.claim_due()
    assert left.attempts == 1
    assert [row.state for row in world.rows()] == ["delivered", "delivered", "pending", "pending"]


def test_a_batch_is_of_one_user_and_not_of_who_has_no_slot_free(
    app, client, world, make_user, assign
):
    other = make_user(name="Ben", webhook_url=world.receiver.url)
    assign(other.id, "12025550999")
    world.receiver.answers = [500] * 2
    world.sms()
    sms = {"phone_number": "12025550999", "sms_text": "code 123456"}
    client.post(world.ingest, json=sms)
    world.make_due()
    with app.app_context():
        slots = app.extensions["delivery"]["slots"]
        with contextlib.ExitStack() as held:
            for _ in range(delivery.SLOTS):
                held.enter_context(slots.take(other.id, delivery.SLOTS))
            [row] = delivery.claim_due()
            assert row.user_id != other.id
            assert delivery.claim_due() == []
        [row] = delivery.claim_due()
        assert row.user_id == other.id
