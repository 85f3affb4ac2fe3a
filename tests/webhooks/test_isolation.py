"""Slow receivers: what they leave of the worker's threads, and SMS that do not wait for them."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from service.database.columns import utcnow
from service.database.models import Attempt, Result, Trigger, User
from service.webhooks import attempt, pace, worker
from tests.databases import on_sqlite
from tests.forms import Clock
from tests.meanwhile import listening
from tests.world import PATIENCE, Held, holding, new_world, receiving, stop_worker, wait_for

world = pytest.fixture(new_world, name="world")

# So many due deliveries keep four threads occupied with their batches, and leave some
PLENTY = 4 * 16 + 1


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def patient(make_app):
    """An app that waits for receivers for longer than any test does."""
    return make_app(WEBHOOK_TIMEOUT=10 * PATIENCE)


@contextlib.contextmanager
def taking(clock, seconds):
    """A receiver that takes so many seconds for each call; gives its calls and its URL."""
    calls = []

    def answer():
        calls.append(1)
        clock.now += seconds
        return "", 204

    with receiving(answer) as url:
        yield calls, url


# --- the worker's threads -----------------------------------------------------------------


def beside_worker(world, held, call, *options, app):
    """Run `call` while a worker runs, whose receivers answer then, and which is stopped."""

    def run():
        try:
            return call()
        finally:
            stop_worker()
            held.let_go()

    with ThreadPoolExecutor() as pool:
        done = pool.submit(run)
        world.work("--watch", *options, app=app)
        return done.result()


def is_delivered(world, id):
    return lambda: world.row(id).state == "delivered"


def leased(world):
    return [row for row in world.rows() if row.lease]


def make_users(make_user, n, **columns):
    return [make_user(name=f"user {i}", **columns) for i in range(n)]


@pytest.mark.parametrize("first", [4, 50])
def test_fifty_endpoints_that_are_silent_all_at_once_keep_no_fast_one_waiting(
    patient, world, make_user, first
):
    """Nothing is known of any, and all have plenty due; a few of them, perhaps, before the rest."""
    with holding() as (held, url):
        users = make_users(make_user, 50, webhook_url=url)

        def add(some):
            for user in some:
                world.add(PLENTY, user=user)

        def look():
            held.wait(4 * 4 if first == 4 else 50)
            add(users[first:])
            held.wait(50 - first)
            wait_for(is_delivered(world, *world.add()))
            return held.calls

        add(users[:first])
        assert beside_worker(world, held, look, app=patient) <= 50 + 3 * 4


@pytest.mark.parametrize(("failures", "threads"), [(0, 4), (1, 1)])
def test_an_endpoint_occupies_four_threads_and_one_after_a_failure(
    patient, world, make_user, failures, threads
):
    """No more is claimed for it; others have the rest."""
    with holding() as (held, url):
        busy = make_user(name="Ben", webhook_url=url, webhook_failures=failures)
        world.add(PLENTY + 16, user=busy)

        def look():
            held.wait(threads)
            wait_for(is_delivered(world, *world.add()))
            return held.calls, len(leased(world)), {row.last_result for row in world.rows()[:-1]}

        assert beside_worker(world, held, look, app=patient) == (threads, threads * 16, {None})


def were_slow(world, clock, app, users):
    """Nobody but this process knows of it: they arrived."""
    with taking(clock, 4) as (calls, url):
        world.change(User, webhook_url=url)
        for user in users:
            world.add(user=user)
        assert world.work(app=app) == ["delivered"] * len(users)
        assert len(calls) == len(users)


def failed(world, clock, app, users):
    world.change(User, webhook_failures=1)


@pytest.mark.parametrize("how", [were_slow, failed])
def test_endpoints_that_are_slow_or_failed_get_half_of_the_threads(
    make_app, world, make_user, clock, how
):
    app, users = make_app(WEBHOOK_TIMEOUT=5), make_users(make_user, 8)
    how(world, clock, app, users)
    with holding() as (held, url):
        world.change(User, webhook_url=url)
        world.change(User, id=world.user.id, webhook_url=world.receiver.url, webhook_failures=0)
        for user in users:
            world.add(user=user)

        def look():
            held.wait(4)
            wait_for(is_delivered(world, *world.add()))
            return held.calls

        assert beside_worker(world, held, look, "--threads", "8", app=app) == 4


def test_more_than_half_that_become_slow_at_the_same_time_keep_no_fast_one_waiting(
    patient, world, make_user
):
    """They were held when another attempt of each turned out to be slow; no further slow one
    gets a thread then."""
    users = make_users(make_user, 7)
    ms = 1000 * 10 * PATIENCE
    slow = attempt.Attempt(Trigger.TEST, None, utcnow(), ms, Result("204"), None, None)
    with holding() as (held, url):
        world.change(User, webhook_url=url)
        world.change(User, id=world.user.id, webhook_url=world.receiver.url)
        for user in users[:6]:
            world.add(user=user)

        def look():
            held.wait(6)
            with patient.app_context():
                for user in users:
                    pace.pace().note(user.id, slow)
            [waits] = world.add(user=users[6])
            wait_for(is_delivered(world, *world.add()))
            return world.row(waits).attempts

        assert beside_worker(world, held, look, "--threads", "8", app=patient) == 0


# --- what the worker asks the database ----------------------------------------------------


def asked(app, before, after):
    """Make these calls before and after each query for the users whose deliveries are due."""

    def around(call):
        def listen(_connection, _cursor, statement, *_):
            if statement.startswith("SELECT users.id, users.webhook_failures"):
                call()

        return listen

    return listening(app, before_cursor_execute=around(before), after_cursor_execute=around(after))


@pytest.mark.parametrize(("threads", "due", "expected"), [(64, 0, 1), (1, 3, 4)])
def test_all_threads_together_ask_once_for_what_they_are_free_for(
    world, make_user, threads, due, expected
):
    """Nobody asks while no thread is free."""
    for user in make_users(make_user, due, webhook_url=world.receiver.url):
        world.add(user=user)
    questions = []
    with asked(world.app, lambda: None, lambda: questions.append(1)):
        assert world.work("--threads", str(threads)) == ["delivered"] * due
    assert len(questions) == expected


def test_no_more_is_claimed_than_there_are_free_threads(patient, world, make_user):
    with holding() as (held, url):
        for user in make_users(make_user, 6, webhook_url=url):
            world.add(user=user)

        def look():
            held.wait(5)
            return len(leased(world))

        assert beside_worker(world, held, look, "--threads", "5", app=patient) == 5


def test_a_thread_that_becomes_free_takes_what_is_due_without_a_pause(world, monkeypatch):
    monkeypatch.setattr(worker, "POLL_SECONDS", 10 * PATIENCE)
    world.add(40)
    assert world.work("--threads", "1") == ["delivered"] * 40


def test_who_loses_what_is_due_to_another_pauses_and_asks_again(world, monkeypatch):
    """The other is quicker three times, and each time dies before it delivers."""
    world.add()
    times = []
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.25)

    def expire():
        world.change(leased_until=None)

    def lose():
        times.append(time.monotonic())
        if len(times) <= 3:
            world.change(lease="another", leased_until=utcnow() + timedelta(hours=1))

    with asked(world.app, expire, lose):
        assert world.work() == ["delivered"]
    assert times[3] - times[0] >= 3 * 0.2


# --- SMS do not wait for a receiver that is slow again and again --------------------------


def is_skipped(world, app=None):
    """Whether an SMS leaves its webhook to a worker, for which it is due at once."""
    count, before = len(world.rows(Attempt)), utcnow()
    state = world.sms(app)["webhook"]
    row = world.rows()[-1]
    if state == "delivered":
        return False
    assert (state, row.last_result, row.attempts, row.lease) == ("pending", "busy", 0, None)
    assert before <= row.next_attempt_at <= utcnow()
    assert len(world.rows(Attempt)) == count
    return True


@contextlib.contextmanager
def slow_five_times(world, clock):
    """The user's receiver was slow five times; gives its calls and its URL."""
    with taking(clock, 4) as (calls, url):
        world.change(User, webhook_url=url)
        for _ in range(5):
            world.sms()
        yield calls, url


@on_sqlite
def test_after_five_slow_attempts_sms_do_not_wait_for_the_receiver(make_app, world, clock, flask):
    """A worker does, and who redelivers by hand; nothing of it is a failure."""
    with taking(clock, 4) as (calls, url):
        world.change(User, webhook_url=url)
        assert [is_skipped(world) for _ in range(7)] == [False] * 5 + [True] * 2
        assert len(calls) == 5
        assert flask("webhooks", "redeliver", 6, "--json") == [{"id": 6, "state": "delivered"}]
        assert world.work(app=make_app()) == ["delivered"]
    user = world.row(model=User)
    assert (user.webhook_failures, user.webhook_open_until) == (0, None)


@on_sqlite
def test_attempts_that_take_less_than_four_fifths_of_the_timeout_are_not_slow(world, clock):
    with taking(clock, 3.99) as (_, url):
        world.change(User, webhook_url=url)
        assert not any(is_skipped(world) for _ in range(7))


@on_sqlite
def test_an_attempt_that_is_fast_begins_the_count_again(world, clock):
    with taking(clock, 4) as (_, slow):
        for url in [slow] * 4 + [world.receiver.url] + [slow] * 5:
            world.change(User, webhook_url=url)
            assert not is_skipped(world)
        assert is_skipped(world)


@on_sqlite
def test_one_sms_probes_after_30_seconds_which_double_up_to_15_minutes(world, clock):
    with slow_five_times(world, clock) as (calls, _):
        for seconds in (30, 60, 120, 240, 480, 900, 900):
            clock.now += seconds - 0.1
            assert is_skipped(world)
            clock.now += 0.1
            assert [is_skipped(world) for _ in range(2)] == [False, True]
        assert len(calls) == 5 + 7


@contextlib.contextmanager
def slow_at_first(world, clock, attempts):
    """The user's receiver is slow so many times, and holds its calls from then on."""
    held, calls = Held(), []

    def answer():
        calls.append(1)
        if len(calls) > attempts:
            return held()
        clock.now += PATIENCE
        return "", 204

    with receiving(answer) as url, ThreadPoolExecutor() as pool:
        world.change(User, webhook_url=url)
        try:
            yield held, pool
        finally:
            held.let_go()


@on_sqlite
def test_after_four_slow_attempts_sms_still_wait_at_once(make_app, world, clock):
    app = make_app(WEBHOOK_TIMEOUT=PATIENCE)
    with slow_at_first(world, clock, 4) as (held, pool):
        for _ in range(4):
            world.sms(app)
        sent = [pool.submit(world.sms, app) for _ in range(2)]
        held.wait(2)
    assert [answer.result()["webhook"] for answer in sent] == ["delivered"] * 2


@on_sqlite
def test_one_of_several_sms_probes_and_a_fast_answer_ends_it(make_app, world, clock):
    app = make_app(WEBHOOK_TIMEOUT=PATIENCE)
    with slow_at_first(world, clock, 5) as (held, pool):
        for _ in range(5):
            world.sms(app)
        clock.now += 30
        probe = pool.submit(world.sms, app)
        held.wait()
        assert is_skipped(world, app)
        held.let_go()
        assert probe.result()["webhook"] == "delivered"
        assert not any(is_skipped(world, app) for _ in range(2))


@on_sqlite
def test_what_a_url_did_is_not_held_against_the_next(world, clock):
    with slow_five_times(world, clock) as (_, url):
        assert is_skipped(world)
        # ... though that one is slow, too
        world.change(User, webhook_url=f"{url}?next")
        assert [is_skipped(world) for _ in range(6)] == [False] * 5 + [True]


@on_sqlite
def test_what_is_known_of_endpoints_is_bounded(world, clock, monkeypatch, make_user, assign):
    monkeypatch.setattr(pace.Pace, "MAX_USERS", 1)
    with slow_five_times(world, clock) as (_, url):
        assign(make_user(name="Ben", webhook_url=url).id, "12025550999")
        assert is_skipped(world)
        world.sms(phone_number="+12025550999")
        assert not is_skipped(world)
