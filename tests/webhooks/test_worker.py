"""Leases and the worker: who tries a delivery, that nobody else does, and that each is tried."""

import contextlib
import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import requests

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Attempt, User
from service.webhooks import delivery, worker
from tests.conftest import SECRET_KEY
from tests.databases import on_mariadb, on_sqlite
from tests.fixtures import BIN, ROOT, SMS
from tests.meanwhile import in_background, listening
from tests.peers import raw_server
from tests.world import (
    PATIENCE,
    holding,
    new_world,
    receiving,
    refusing,
    stop_worker,
    wait_for,
)

world = pytest.fixture(new_world, name="world")

MINUTE = timedelta(minutes=1)


@pytest.fixture
def start_worker(tmp_path, database_url):
    """Start `flask webhooks deliver` as a process of its own."""
    env = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")} | {
        "DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY,
        "WEBHOOK_REQUIRE_HTTPS": "0", "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "WEBHOOK_TIMEOUT": str(PATIENCE),
    }  # fmt: skip
    workers = []
    with (tmp_path / "log").open("wb") as log:

        def start(*options):
            command = [BIN / "flask", "webhooks", "deliver", *options]
            workers.append(
                subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
            )
            return workers[-1]

        yield start
        for process in workers:
            process.kill()
            process.wait()


@contextlib.contextmanager
def called_back(world, *calls):
    """The user's webhook runs `calls`, one for each POST, the last for all that follow.

    Each may give a status, else 204 is answered. Gives the list of bodies received.
    """
    received = []

    def answer():
        call = calls[min(len(received), len(calls) - 1)]
        received.append(1)
        return "", call() or 204

    with receiving(answer) as url:
        world.change(User, id=world.user.id, webhook_url=url)
        yield received


# --- leases -------------------------------------------------------------------------------


def by_ingest(world, flask, app):
    world.sms(app)


def by_worker(world, flask, app):
    world.add()
    world.work(app=app)


def by_redelivery(world, flask, app):
    [id] = world.add(state="dead", next_attempt_at=None)
    flask("webhooks", "redeliver", id, runner=app.test_cli_runner())


def by_form(world, flask, app):
    world.add(state="dead", next_attempt_at=None)
    world.form("/profile/webhooks/redeliver", app, id="failed")


def by_test_event(world, flask, app):
    world.form("/profile/test", app)


def by_probe(world, flask, app):
    world.change(User, webhook_failures=5, webhook_open_until=utcnow() - MINUTE)
    by_worker(world, flask, app)


@pytest.mark.parametrize(
    "way", [by_ingest, by_worker, by_redelivery, by_form, by_test_event, by_probe]
)
def test_while_the_receiver_is_called_it_is_leased_for_longer_than_that_takes(
    make_app, world, flask, way
):
    """... and no longer than it must; and the caller holds no database connection."""
    app, seen = make_app(WEBHOOK_TIMEOUT="50"), []

    def look():
        with app.app_context():
            seen.append(db.engine.pool.checkedout())
        seen.append((world.row().lease, world.row().leased_until, utcnow()))

    with called_back(world, look):
        before = utcnow()
        way(world, flask, app)
    [in_use, (lease, until, after)] = seen
    assert in_use == 0
    assert lease
    assert before + timedelta(seconds=50) < until < after + timedelta(seconds=50) + MINUTE
    row = world.row()
    assert (row.state, row.lease, row.leased_until) == ("delivered", None, None)


def test_what_is_being_tried_is_tried_by_nobody_else(make_app, world, flask):
    """Neither by hand nor by a worker, until the lease has run out."""
    app = make_app(WEBHOOK_TIMEOUT=PATIENCE)
    with ThreadPoolExecutor() as pool, holding() as (held, url):
        world.change(User, webhook_url=url)
        sent = pool.submit(world.sms, app)
        held.wait()
        world.change(next_attempt_at=utcnow() - timedelta(minutes=2))
        assert flask("webhooks", "redeliver", 1, "--json") == [{"id": 1, "state": "being tried"}]
        assert world.work() == []
        assert "due" not in str(flask("doctor", "--json", exit_code=1)["problems"])
        world.change(state="dead")
        world.form("/profile/webhooks/redeliver", id="failed")
        world.form("/profile/webhooks/redeliver", id=1)
        assert held.calls == 1
        held.let_go()
        assert sent.result()["webhook"] == "delivered"
    assert [attempt.trigger for attempt in world.rows(Attempt)] == ["ingest"]


@on_mariadb
def test_of_several_who_claim_the_same_rows_at_once_one_gets_them(
    world, mariadb_server, start_worker
):
    """All have chosen them when the first writes its lease: a lock on the rows sees to that."""
    world.add(3)
    with mariadb_server.connect("migrated") as lock, lock.cursor() as cursor:
        lock.begin()
        cursor.execute("SELECT id FROM deliveries FOR UPDATE")
        workers = [start_worker() for _ in range(3)]
        waiting = "SHOW STATUS LIKE 'Innodb_row_lock_current_waits'"
        wait_for(lambda: mariadb_server.run(waiting)[0][1] == "3")
        lock.commit()
        assert [process.wait(PATIENCE) for process in workers] == [0] * 3
    assert len(world.receiver.received) == 3
    assert [row.state for row in world.rows()] == ["delivered"] * 3
    assert world.counted() == 3


@pytest.mark.parametrize("theirs", ["pending", "delivered"])
def test_an_outcome_without_the_lease_is_not_written(world, theirs):
    """A try that outlived its lease does not overwrite what the next holder wrote."""
    later = utcnow() + MINUTE

    def take_over():
        world.change(lease="another", leased_until=later, state=theirs, next_attempt_at=later)
        return 204 if theirs == "pending" else 500

    with called_back(world, take_over):
        assert world.sms()["webhook"] == theirs
    row = world.row()
    assert (row.lease, row.leased_until, row.state) == ("another", later, theirs)
    assert (row.attempts, row.last_result, row.next_attempt_at) == (0, None, later)
    assert world.rows(Attempt) == []
    assert world.counted() == 0


def test_a_worker_that_lost_its_lease_counts_what_the_next_holder_wrote(world):
    world.add()

    def take_over():
        world.change(lease="another", leased_until=utcnow() + MINUTE, state="delivered")
        return 500

    with called_back(world, take_over):
        assert world.work() == ["delivered"]


def test_a_crash_between_commit_and_try_leaves_a_lease_that_runs_out(world):
    # The state in which kill -9 leaves it: leased, untried
    world.add(lease="dead-process", leased_until=utcnow() + MINUTE)
    assert world.work() == []
    world.change(leased_until=utcnow())
    assert world.work() == ["delivered"]


def test_kill_9_during_the_try_loses_nothing(serve, world):
    """The web process dies while the receiver is being called; a worker delivers later."""
    called = threading.Event()

    def silence(connection, stopped):
        connection.recv(65536)
        called.set()
        stopped.wait()

    with raw_server(silence) as url:
        world.change(User, webhook_url=url)
        process, base = serve(
            WEBHOOK_REQUIRE_HTTPS="0", WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
            WEBHOOK_TIMEOUT=str(PATIENCE), WEB_CONCURRENCY="1",
        )  # fmt: skip

        def call():
            with contextlib.suppress(requests.ConnectionError):
                requests.post(base + world.ingest, json=SMS | {"id": "k"}, timeout=PATIENCE)

        thread = threading.Thread(target=call)
        thread.start()
        assert called.wait(PATIENCE)
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


# --- by hand ------------------------------------------------------------------------------


def test_redeliver_starts_a_fresh_schedule(world, flask):
    world.receiver.answers = [500, 500]
    world.sms()
    world.change(state="dead", attempts=10, next_attempt_at=None)
    assert flask("webhooks", "redeliver", 1, "--json") == [{"id": 1, "state": "pending"}]
    assert world.row().attempts == 1
    assert flask("webhooks", "redeliver", 1, "--json") == [{"id": 1, "state": "delivered"}]
    assert world.counted() == 1
    triggers = [attempt.trigger for attempt in world.rows(Attempt)]
    assert triggers == ["ingest", "redelivery", "redelivery"]
    flask("webhooks", "redeliver", 99, exit_code=2)
    flask("webhooks", "redeliver", exit_code=2)


def test_all_failed_means_the_users_own_otps_that_are_dead(world, make_user):
    """Not test events, not what waits for its next try, not what arrived, nobody else's."""
    other = make_user(name="Ben", webhook_url=world.receiver.url)
    dead = {"state": "dead", "next_attempt_at": None, "attempts": 10}
    mine = world.add(2, **dead)
    world.add(message_id=None, **dead)
    world.add(user=other, **dead)
    world.add(state="delivered", next_attempt_at=None)
    world.add(next_attempt_at=utcnow() + MINUTE)
    untouched = [(row.id, row.state, row.next_attempt_at) for row in world.rows()[2:]]
    world.receiver.answers = [500]
    world.form("/profile/webhooks/redeliver", id="failed")
    assert len(world.receiver.received) == 2
    assert [(world.row(id).state, world.row(id).attempts) for id in mine] == [
        ("pending", 1),
        ("delivered", 1),
    ]
    assert [(row.id, row.state, row.next_attempt_at) for row in world.rows()[2:]] == untouched


def test_all_failed_stops_calling_an_endpoint_that_says_it_is_gone(world):
    world.add(3, state="dead", next_attempt_at=None)
    world.receiver.answers = [410]
    world.form("/profile/webhooks/redeliver", id="failed")
    assert len(world.receiver.received) == 1
    assert [row.last_result for row in world.rows()] == ["410", "disabled", "disabled"]


def test_all_failed_leaves_alone_what_somebody_else_has_delivered_meanwhile(world):
    _, theirs = world.add(2, state="dead", next_attempt_at=None)

    def deliver():
        world.change(id=theirs, state="delivered", next_attempt_at=None)

    with called_back(world, deliver) as received:
        world.form("/profile/webhooks/redeliver", id="failed")
    assert len(received) == 1
    assert world.row(theirs).attempts == 0


def test_by_hand_too_an_endpoint_gets_no_more_calls_than_it_may(make_app, world, flask):
    app = make_app(WEBHOOK_TIMEOUT=PATIENCE)
    [id] = world.add(next_attempt_at=utcnow() + MINUTE)
    with ThreadPoolExecutor() as pool, holding() as (held, url):
        world.change(User, webhook_url=url, webhook_failures=1)
        sent = pool.submit(world.sms, app)
        held.wait()
        answer = flask("webhooks", "redeliver", id, "--json", runner=app.test_cli_runner())
        assert answer == [{"id": id, "state": "pending"}]
        assert held.calls == 1
        held.let_go()
        assert sent.result()["webhook"] == "delivered"


# --- batches ------------------------------------------------------------------------------


def leased(world):
    return [row for row in world.rows() if row.lease]


def test_a_thread_takes_the_sixteen_oldest_of_one_user(world, make_user):
    other = make_user(name="Ben", webhook_url=world.receiver.url)
    now, taken = utcnow(), []
    world.add(16, user=other, next_attempt_at=now - MINUTE)
    for n in range(20):  # the newest first
        world.add(next_attempt_at=now - (n + 2) * MINUTE)
    theirs = {row.id for row in world.rows() if row.user_id == other.id}
    ages = {row.id: row.next_attempt_at for row in world.rows() if row.id not in theirs}
    oldest = set(sorted(ages, key=ages.get)[:16])

    def look():
        taken.append({row.id for row in leased(world)})

    with called_back(world, look, lambda: None):
        assert world.work() == ["delivered"] * 36
    assert taken == [oldest]
    assert len(world.receiver.received) == 16


def test_a_batch_is_of_one_user_though_others_are_due_between(world, make_user):
    """A slow receiver keeps nobody else's waiting."""
    other, now, users = make_user(name="Ben"), utcnow(), []

    def look():
        users.append({row.user_id for row in leased(world)})

    with called_back(world, look):
        url = world.row(world.user.id, User).webhook_url
        world.change(User, webhook_url=url)
        for n in range(6):
            user = [world.user, other][n % 2]
            world.add(user=user, next_attempt_at=now - timedelta(minutes=6 - n))
        assert world.work() == ["delivered"] * 6
    assert {frozenset(seen) for seen in users} == {
        frozenset({world.user.id}),
        frozenset({other.id}),
    }


def test_a_batch_ends_with_the_first_that_does_not_arrive(world):
    """Those before it are recorded with it, those after it given back at once."""
    world.add(5)
    states = []

    def look():
        states.append([(row.state, row.lease is not None) for row in world.rows()])

    with called_back(world, lambda: 204, lambda: 503, look, lambda: None):
        assert sorted(world.work()) == ["delivered"] * 4 + ["pending"]
    [then] = states
    assert then[:2] == [("delivered", False), ("pending", False)]
    assert [row.attempts for row in world.rows()] == [1] * 5
    assert world.row(2).last_result == "503"
    assert world.counted() == 4


def test_a_batch_gives_back_only_what_it_still_holds(world):
    """Its lease ran out, and somebody else took one over."""
    _, theirs, other = world.add(3)

    def take_over():
        world.change(id=theirs, lease="another", leased_until=utcnow() + timedelta(hours=1))
        return 500

    with called_back(world, take_over, lambda: None):
        assert world.work() == ["delivered", "pending"]
    assert world.row(theirs).lease == "another"
    assert world.row(theirs).leased_until > utcnow()
    assert world.row(other).state == "delivered"


def test_of_a_batch_what_is_still_held_is_recorded_though_one_was_taken_over(world):
    first, theirs, third = world.add(3)

    def take_over():
        world.change(id=theirs, lease="another", leased_until=utcnow() + timedelta(hours=1))

    with called_back(world, lambda: None, lambda: None, take_over):
        assert world.work() == ["delivered", "delivered", "pending"]
    rows = {row.id: (row.state, row.attempts, row.lease) for row in world.rows()}
    held = ("delivered", 1, None)
    assert rows == {first: held, theirs: ("pending", 0, "another"), third: held}
    assert world.counted() == 2
    assert [row.delivery_id for row in world.rows(Attempt)] == [first, third]


def test_a_batch_that_lasts_is_recorded_before_it_goes_on(world):
    """So that a crash repeats little, and what it holds goes to who is free."""
    world.add(3)
    seen = []

    def slow():
        threading.Event().wait(0.6)  # longer than a batch goes on

    def look():
        seen.append([(row.state, row.attempts) for row in world.rows()])

    with called_back(world, slow, look, lambda: None):
        assert world.work() == ["delivered"] * 3
    assert seen == [[("delivered", 1), ("pending", 0), ("pending", 0)]]


def test_of_a_batch_at_least_one_is_tried_however_slow_the_database(world, monkeypatch):
    """Or a worker would claim and give back for ever."""
    monkeypatch.setattr(delivery, "BATCH_SECONDS", -1)
    world.add(3)
    assert world.work() == ["delivered"] * 3
    assert len(world.receiver.received) == 3


def test_told_to_stop_it_finishes_the_call_and_gives_back_the_rest(world):
    world.add(3)
    with called_back(world, stop_worker) as received:
        assert world.work("--watch", "--threads", "1") == ["delivered"]
    assert len(received) == 1
    states = [(row.state, row.lease, row.attempts) for row in world.rows()]
    assert states == [("delivered", None, 1), ("pending", None, 0), ("pending", None, 0)]


def test_what_is_put_off_in_a_batch_ends_it(world):
    """The circuit opens when the batch is claimed: the first is put off, the rest given back."""
    world.add(3)
    later = utcnow() + MINUTE

    def listen(_connection, _cursor, statement, *_):
        if statement.startswith("SELECT users.id") and "users.key_hash" in statement:
            in_background(lambda: world.change(User, webhook_open_until=later))()

    with listening(world.app, before_cursor_execute=listen):
        assert world.work() == ["pending"]
    rows = [(row.last_result, row.lease, row.attempts) for row in world.rows()]
    assert rows == [("circuit_open", None, 0), (None, None, 0), (None, None, 0)]
    assert world.receiver.received == []


@on_sqlite
def test_no_question_of_the_worker_reads_all_that_is_pending(world):
    """However many wait: each is found by its user, or by its id."""
    world.add(3)
    asked = []

    def listen(_connection, _cursor, statement, parameters, *_):
        if "deliveries" in statement and not statement.startswith("INSERT"):
            asked.append((statement, parameters))

    with listening(world.app, before_cursor_execute=listen):
        assert world.work() == ["delivered"] * 3
    with world.app.app_context(), db.engine.connect() as connection:
        for statement, parameters in asked:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plan = [row.detail for row in rows if "deliveries" in row.detail]
            assert plan, statement
            assert all("user_id=?" in step or "rowid=?" in step for step in plan), plan


# --- the worker ---------------------------------------------------------------------------


def test_without_watch_it_tries_what_is_due_and_nothing_else(world):
    world.add(1)
    world.add(1, next_attempt_at=utcnow() + MINUTE)
    world.add(1, state="dead")
    world.add(1, state="delivered")
    assert world.work() == ["delivered"]
    assert [row.attempts for row in world.rows()] == [1, 0, 0, 0]


def test_with_watch_it_waits_for_what_becomes_due(world):
    [first] = world.add(1)

    def come_later():
        wait_for(lambda: world.row(first).state == "delivered")
        world.add(1)

    with ThreadPoolExecutor() as pool, called_back(world, lambda: None, stop_worker):
        later = pool.submit(come_later)
        assert world.work("--watch", "--threads", "1") == ["delivered"] * 2
        later.result()


def test_more_threads_than_connections_call_at_once_and_leave_some_for_others(
    make_app, world, make_user
):
    """Five receivers hold their calls; the pool has three connections, and none is in use."""
    app, statuses = make_app(WEBHOOK_TIMEOUT=PATIENCE), []
    with ThreadPoolExecutor() as pool, holding() as (held, url):
        for n in range(5):
            world.add(user=make_user(name=str(n), webhook_url=url))

        def meanwhile():
            held.wait(5)
            statuses.append(app.test_client().get("/healthz").status_code)
            held.let_go()

        done = pool.submit(meanwhile)
        assert world.work("--threads", "5", app=app) == ["delivered"] * 5
        done.result()
    assert statuses == [200]


def test_an_outcome_that_cannot_be_recorded_does_not_end_the_worker(world, make_user):
    """All others are recorded all the same; this one waits until its lease has run out."""
    other = make_user(name="Ben", webhook_url=world.receiver.url)
    ids = world.add(16)
    world.add(1, user=other)
    with refusing(world.app, "INSERT ON attempts", f"NEW.delivery_id = {ids[-1]}"):
        assert sorted(world.work()) == ["delivered"] * 16 + ["pending"]
    assert [row.id for row in world.rows() if row.state == "pending"] == ids[-1:]
    assert world.counted() == 16
    world.change(leased_until=utcnow())
    assert world.work() == ["delivered"]


def test_with_watch_an_error_of_the_database_does_not_end_the_worker(world, caplog):
    """Claiming fails until the database takes the lease again."""
    [id] = world.add()

    def failed():
        return [r for r in caplog.records if "event=worker_failed" in r.getMessage()]

    with (
        ThreadPoolExecutor() as pool,
        called_back(world, stop_worker),
        contextlib.ExitStack() as up,
    ):
        up.enter_context(refusing(world.app, "UPDATE ON deliveries", "NEW.lease IS NOT NULL"))

        def mend():
            try:
                wait_for(failed)
            finally:
                up.close()

        mended = pool.submit(mend)
        assert world.work("--watch", "--threads", "1") == ["delivered"]
        mended.result()
    assert world.row(id).state == "delivered"


def test_while_the_database_fails_the_worker_waits_longer_and_longer(world, caplog, monkeypatch):
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.1)
    world.add()

    def failed():
        return [r.created for r in caplog.records if "event=worker_failed" in r.getMessage()]

    def look():
        wait_for(lambda: len(failed()) == 4)
        stop_worker()

    with ThreadPoolExecutor() as pool, refusing(world.app, "UPDATE ON deliveries"):
        done = pool.submit(look)
        assert world.work("--watch", "--threads", "8") == []
        done.result()
    assert failed()[3] - failed()[0] >= 0.8 * (0.2 + 0.4 + 0.8)


def test_without_watch_an_error_of_the_database_ends_it(world, caplog):
    world.add()
    with refusing(world.app, "UPDATE ON deliveries", "NEW.lease IS NOT NULL"):
        assert world.work() == []
    assert "event=worker_failed" in caplog.text
    assert world.work() == ["delivered"]


@pytest.mark.parametrize(("late", "told"), [(MINUTE / 2, False), (MINUTE * 2, True)])
def test_doctor_tells_of_what_has_been_due_for_a_minute(world, flask, late, told):
    now = utcnow()
    world.add(next_attempt_at=now - late)
    world.add(next_attempt_at=now - 2 * MINUTE, state="dead")
    world.add(next_attempt_at=now - 2 * MINUTE, lease="x", leased_until=now + MINUTE)
    world.add(next_attempt_at=now + MINUTE)
    problems = flask("doctor", "--json", exit_code=1)["problems"]
    assert ("1 webhook deliveries have been due for a minute" in str(problems)) == told
    assert ("due" in str(problems)) == told


@pytest.mark.parametrize(
    ("closed", "told"), [(-MINUTE, False), (MINUTE / 2, False), (MINUTE * 2, True)]
)
def test_what_an_open_circuit_kept_back_has_not_been_due(world, flask, closed, told):
    world.add(next_attempt_at=utcnow() - 5 * MINUTE)
    world.change(User, webhook_failures=5, webhook_open_until=utcnow() - closed)
    problems = flask("doctor", "--json", exit_code=1)["problems"]
    assert ("1 webhook deliveries have been due for a minute" in str(problems)) == told


@pytest.mark.server
def test_two_workers_one_killed_mid_drain_deliver_all(world, start_worker):
    """kill -9 of one of two real workers while both call: all delivered, none lost."""
    rows = world.add(80)
    taken = set()

    def pending():
        return [row.lease for row in world.rows() if row.state == "pending"]

    def only_the_dead_one_holds_any():
        return len(set(pending())) == 2 and taken.issuperset(pending())

    with holding() as (held, url):
        world.change(User, webhook_url=url)
        workers = [start_worker("--watch", "--threads", "2") for _ in range(2)]
        held.wait(4)  # two of each, whose outcome is not recorded yet
        taken.update(row.lease for row in world.rows() if row.lease)
        workers[0].kill()
        workers[0].wait()
        held.let_go()
        wait_for(only_the_dead_one_holds_any)
        world.change(leased_until=utcnow())
        wait_for(lambda: not pending())
        workers[1].terminate()
        assert workers[1].wait() == 0
    assert held.calls >= len(rows) + 2  # what the dead one had sent was sent again
    assert {row.state for row in world.rows()} == {"delivered"}
    assert world.counted() == len(rows)


def test_the_worker_does_its_chore_again_and_again_whatever_becomes_of_it(app, monkeypatch, caplog):
    """Parts of SMS whose others never come are stored by it."""
    monkeypatch.setattr(worker, "CHORE_SECONDS", 0)
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.01)
    stop, calls = threading.Event(), []

    def chore():
        calls.append(1)
        if len(calls) == 2:
            raise ValueError
        if len(calls) == 4:
            stop.set()

    with app.app_context():
        worker.work(stop, watch=True, threads=1, chore=chore)
    assert len(calls) == 4
    assert caplog.text.count("event=worker_failed") == 1


def test_between_its_chores_the_worker_leaves_some_time(app, monkeypatch):
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.01)
    stop, calls, polls = threading.Event(), [], []
    monkeypatch.setattr(worker.queue, "due_users", lambda: polls.append(1) or [])

    def look():
        wait_for(lambda: len(polls) >= 5)
        stop.set()

    threading.Thread(target=look).start()
    with app.app_context():
        worker.work(stop, watch=True, threads=1, chore=lambda: calls.append(1))
    assert len(calls) == 1
