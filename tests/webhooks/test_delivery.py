"""One try of a webhook and what comes of it: guards, retries, circuits, isolation, secrets."""

import base64
import contextlib
import gzip
import hmac
import json
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from select import select as wait_for_bytes

import pymysql
import pytest
from sqlalchemy import func, select
from standardwebhooks import Webhook, WebhookVerificationError

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Attempt, Message, User, UserSummary
from service.keys import Unreadable, seal, unseal
from service.sms.gateways import FORMATS
from tests.databases import on_mariadb, on_sqlite
from tests.fixtures import SMS
from tests.meanwhile import in_background, listening
from tests.peers import NO_BODY, NO_STATUS, raw_server, redirect_drip
from tests.world import PATIENCE, holding, new_world, receiving, refusing, wait_for

world = pytest.fixture(new_world, name="world")

RETRY_SECONDS = (5, 15, 45, 120, 300, 900, 3600, 21600, 86400)
MINUTE = timedelta(minutes=1)


def seconds(n):
    return timedelta(seconds=n)


# --- what may be called -------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize(
    "setting", [{"WEBHOOK_ALLOWED_NETWORKS": ""}, {"WEBHOOK_REQUIRE_HTTPS": "1"}]
)
def test_a_url_that_was_saved_before_it_was_forbidden_is_not_called(make_app, world, setting):
    """Address and form are checked each time, not only when the URL is saved."""
    connections = []

    def talk(connection, stopped):
        connections.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with raw_server(talk) as url:
        world.change(User, webhook_url=url)
        app = make_app(**setting)
        assert world.sms(app)["webhook"] == "pending"
        assert world.row().last_result == "forbidden"
        world.make_due()
        assert world.work(app=app) == ["pending"]
        assert [attempt.result for attempt in world.rows(Attempt)] == ["forbidden"] * 2
        assert connections == []
        world.make_due()
        assert world.work() == ["delivered"]  # where it is allowed, this very URL is called
    assert len(connections) == 1


@on_sqlite
def test_a_stored_url_that_is_none_costs_no_more_than_its_own_deliveries(world):
    world.change(User, webhook_url="http://[nonsense")
    assert world.sms()["webhook"] == "pending"
    assert (world.row().last_result, world.row().lease) == ("forbidden", None)


def test_removing_the_url_ends_its_deliveries_visibly(world):
    world.receiver.answers = [500]
    world.sms()
    world.change(User, webhook_url=None)
    world.make_due()
    assert world.work() == ["dead"]
    assert world.row().last_result == "no_url"
    assert world.row(model=User).webhook_failures == 1  # that was none of its failures


# --- the record of a try ------------------------------------------------------------------


def test_webhook_id_and_bytes_are_the_same_over_retries(world):
    world.receiver.answers = [500, 503]
    assert world.sms()["webhook"] == "pending"
    for expected in ("pending", "delivered"):
        world.make_due()
        assert world.work() == [expected]
    ids = {headers["webhook-id"] for headers, _ in world.receiver.received}
    assert (len(ids), len({body for _, body in world.receiver.received})) == (1, 1)
    row = world.row()
    assert world.receiver.received[0][1] == row.body
    log = [(a.trigger, a.result, a.next_attempt_at is None) for a in world.rows(Attempt)]
    assert log == [("ingest", "500", False), ("worker", "503", False), ("worker", "204", True)]
    assert (row.attempts, row.last_result, row.next_attempt_at) == (3, "204", None)
    assert world.counted() == 1


def test_a_second_delivery_of_the_same_otp_is_not_counted_and_keeps_the_first_time(world, flask):
    world.sms()
    first = world.row().delivered_at
    world.receiver.answers = [204, 500]
    for _ in range(2):
        assert flask("webhooks", "redeliver", 1, "--json") == [{"id": 1, "state": "delivered"}]
    row = world.row()
    assert (row.delivered_at, row.last_result, row.attempts) == (first, "500", 1)
    assert row.next_attempt_at is None
    assert world.counted() == 1
    with world.app.app_context():
        assert db.session.scalar(select(func.sum(UserSummary.webhooks_delivered))) == 1


@on_sqlite
@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b"thanks\0\xff", "thanks\ufffd\ufffd"),
        ("\U0001f600".encode() * 2000, "\U0001f600" * 1024),
        (b"x" * 10_000, "x" * 1024),
    ],
)
def test_of_an_answer_1024_characters_are_kept_as_valid_text(world, body, kept):
    with receiving(lambda: (body, 200)) as url:
        world.change(User, webhook_url=url)
        assert world.sms()["webhook"] == "delivered"
    assert world.row(model=Attempt).answer == kept


@on_sqlite
def test_of_a_long_answer_only_the_beginning_is_waited_for(make_app, world):
    def talk(connection, stopped):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 8192)
        stopped.wait()

    with raw_server(talk) as url:
        world.change(User, webhook_url=url)
        assert world.sms(make_app(WEBHOOK_TIMEOUT=PATIENCE))["webhook"] == "delivered"


@on_sqlite
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
    assert world.row(model=Attempt).answer.startswith("\x1f")  # as it came
    assert len(world.row(model=Attempt).answer) <= 1024


@on_sqlite
@pytest.mark.parametrize("talk", NO_STATUS)
def test_every_slow_receiver_ends_at_the_deadline(make_app, world, talk):
    with raw_server(talk) as url:
        world.change(User, webhook_url=url)
        assert world.sms(make_app(WEBHOOK_TIMEOUT="0.3"))["webhook"] == "pending"
    [attempt] = world.rows(Attempt)
    assert (world.row().last_result, attempt.result) == ("timeout", "timeout")
    assert attempt.ms >= 300


def cut_short(connection, stopped):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok")


def left_open(connection, stopped):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nok")
    stopped.wait()


@on_sqlite
@pytest.mark.parametrize("talk", [*NO_BODY, cut_short, left_open])
def test_the_final_status_decides_whatever_becomes_of_the_body(make_app, world, talk):
    """A body that is late, cut off or endless is not waited for: what came of it is kept."""
    with raw_server(talk) as url:
        world.change(User, webhook_url=url)
        state = world.sms(make_app(WEBHOOK_TIMEOUT=PATIENCE))["webhook"]
    redirected = talk is redirect_drip
    assert state == ("pending" if redirected else "delivered")
    assert world.row().last_result == ("302" if redirected else "200")
    if talk in (cut_short, left_open):
        assert world.row(model=Attempt).answer == "ok"


@on_sqlite
@pytest.mark.parametrize("interim", ["103 Early Hints\r\nLink: </x>", "102 Processing", "199 Odd"])
def test_interim_answers_are_no_result(world, interim):
    received = []

    def talk(connection, stopped):
        received.append(connection.recv(65536))
        connection.sendall(f"HTTP/1.1 {interim}\r\n\r\n".encode() * 3)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with raw_server(talk) as url:
        world.change(User, webhook_url=url)
        assert world.sms()["webhook"] == "delivered"
    assert (world.row().last_result, len(received)) == ("204", 1)


@on_sqlite
def test_interim_answers_without_end_end_the_attempt(make_app, world):
    """Long before the time is up: nobody's processor is kept busy."""

    def talk(connection, stopped):
        with contextlib.suppress(OSError):
            while not stopped.is_set():
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    with raw_server(talk) as url:
        world.change(User, webhook_url=url)
        assert world.sms(make_app(WEBHOOK_TIMEOUT=PATIENCE))["webhook"] == "pending"
    assert world.row().last_result == "connection"


def forgetful(close):
    """A receiver that answers the first request of each connection and breaks off at the second."""
    connections = []

    def talk(connection, stopped):
        connections.append(connection)
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        while not stopped.is_set() and not wait_for_bytes([connection], [], [], 0.05)[0]:
            pass
        close(connection)

    return connections, talk


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@on_sqlite
@pytest.mark.parametrize("close", [reset, socket.socket.close])
def test_a_kept_connection_that_breaks_is_replaced_at_once(world, close):
    connections, talk = forgetful(close)
    with raw_server(talk) as url:
        world.change(User, webhook_url=url)
        assert [world.sms()["webhook"] for _ in range(3)] == ["delivered"] * 3
    assert len(connections) == 3
    assert [attempt.result for attempt in world.rows(Attempt)] == ["200"] * 3


@on_sqlite
def test_a_fresh_connection_that_breaks_is_not_tried_again_at_once(world):
    connections = []

    def talk(connection, stopped):
        connections.append(connection.recv(65536))
        reset(connection)

    with raw_server(talk) as url:
        world.change(User, webhook_url=url)
        assert world.sms()["webhook"] == "pending"
    assert len(connections) == 1


@on_sqlite
def test_a_stalled_tls_handshake_ends_at_the_deadline(make_app, world):
    def silence(connection, stopped):
        stopped.wait()

    with raw_server(silence) as url:
        world.change(User, webhook_url=url.replace("http", "https"))
        world.sms(make_app(WEBHOOK_TIMEOUT="0.3"))
    assert world.row().last_result == "timeout"


@on_sqlite
def test_an_attempt_began_before_the_receiver_was_called(world):
    called = []

    def answer():
        called.append(utcnow())
        return "", 204

    with receiving(answer) as url:
        world.change(User, webhook_url=url)
        before = utcnow()
        world.sms()
    assert before <= world.row(model=Attempt).started_at <= called[0]


def test_an_outcome_that_cannot_be_recorded_costs_neither_the_sms_nor_its_otp(app, world):
    """The database refuses it: the SMS is answered 200 and the OTP is delivered later."""
    with refusing(app, "INSERT ON attempts"):
        assert world.sms()["webhook"] == "pending"
    assert (world.row().state, world.row().attempts, world.counted()) == ("pending", 0, 0)
    world.change(leased_until=utcnow())
    assert world.work() == ["delivered"]
    assert world.counted() == 1


def test_a_try_that_breaks_off_gives_its_slot_back(app, world):
    """After a failure an endpoint has one slot: were it kept, nothing would be sent any more."""
    past = utcnow() - MINUTE
    world.change(User, webhook_failures=5, webhook_open_until=past)
    with refusing(app, "UPDATE ON users"):
        assert world.sms()["webhook"] == "pending"
    assert world.receiver.received == []
    assert world.sms()["webhook"] == "delivered"


# --- retries ------------------------------------------------------------------------------


def test_the_schedule_is_front_loaded_and_ends_dead(world):
    world.receiver.answers = [500] * 10
    before = utcnow()
    world.sms()
    for delay in RETRY_SECONDS:
        row, after = world.row(), utcnow()
        assert before + seconds(0.8 * delay) <= row.next_attempt_at
        assert row.next_attempt_at <= after + seconds(1.2 * delay)
        assert row.state == "pending"
        assert world.rows(Attempt)[-1].next_attempt_at == row.next_attempt_at
        world.change(User, webhook_failures=0, webhook_open_until=None)
        world.make_due()
        before = utcnow()
        world.work()
    row = world.row()
    assert (row.state, row.attempts, row.next_attempt_at) == ("dead", 10, None)
    assert len(world.receiver.received) == 10


@on_sqlite
def test_those_that_failed_together_are_not_tried_again_together(world, make_user):
    """Delays differ by up to a fifth: seen in the longest one, beside which the test takes none."""
    for n in range(12):
        user = make_user(name=str(n), webhook_url=world.receiver.url)
        world.add(user=user, attempts=8)
    world.receiver.answers = [500] * 12
    before = utcnow()
    assert world.work() == ["pending"] * 12
    after = utcnow()
    times = sorted(row.next_attempt_at for row in world.rows())
    assert before + seconds(0.8 * 86400) <= times[0]
    assert times[-1] <= after + seconds(1.2 * 86400)
    assert times[-1] - times[0] > seconds(0.1 * 86400)


@on_sqlite
@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("120", 120, 120),
        ("0", 4, 6),
        ("99999999", 3600, 3600),
        ("9" * 5000, 3600, 3600),
        ("3599", 3599, 3599),
        ("-5", 4, 6),
        ("soon", 4, 6),
        ("\u00b2", 4, 6),
        ("Fri, 99 Foo", 4, 6),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 4, 6),
        ("", 4, 6),
    ],
)
def test_retry_after_is_respected_within_bounds(world, value, low, high):
    with receiving(lambda: ("", 503, {"Retry-After": value})) as url:
        world.change(User, webhook_url=url)
        before = utcnow()
        assert world.sms()["webhook"] == "pending"
        after = utcnow()
    row = world.row()
    assert row.lease is None
    assert before + seconds(low) <= row.next_attempt_at <= after + seconds(high)


@on_sqlite
@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0200"])
def test_retry_after_may_be_a_date(world, zone):
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=30)
    local = until + timedelta(hours=2) if zone == "+0200" else until
    value = format_datetime(local.replace(tzinfo=None)).replace("-0000", zone)
    with receiving(lambda: ("", 503, {"Retry-After": value})) as url:
        world.change(User, webhook_url=url)
        before = utcnow()
        world.sms()
        after = utcnow()
    # What is left until then is counted from before the outcome's time, or from after it
    lateness = world.row().next_attempt_at - until
    assert before - after <= lateness <= after - before


@pytest.mark.parametrize("column", ["active", "approved"])
def test_a_user_who_is_deactivated_is_sent_nothing_until_active_again(world, flask, column):
    """What waits to be tried again is dead then, with the reason, and can be redelivered."""
    world.receiver.answers = [500]
    assert world.sms()["webhook"] == "pending"
    world.change(User, **{column: False})
    world.make_due()
    assert world.work() == ["dead"]
    [row] = world.rows()
    assert (row.last_result, row.attempts) == ("user_inactive", 2)
    assert flask("webhooks", "redeliver", row.id, "--json") == [{"id": row.id, "state": "dead"}]
    assert len(world.receiver.received) == 1
    assert world.row(model=User).webhook_failures == 1
    world.change(User, **{column: True})
    again = flask("webhooks", "redeliver", row.id, "--json")
    assert again == [{"id": row.id, "state": "delivered"}]


def test_410_disables_the_endpoint_until_its_url_is_set(world, flask):
    world.add(next_attempt_at=utcnow() + MINUTE)
    world.receiver.answers = [410]
    before = utcnow()
    assert world.sms()["webhook"] == "none"
    user = world.row(model=User)
    assert before <= user.webhook_disabled_at <= utcnow()
    assert world.sms()["webhook"] == "none"
    assert [row.next_attempt_at for row in world.rows()[1:]] == [None, None]
    world.change(id=1, next_attempt_at=utcnow())
    assert world.work() == ["dead"]
    rows = world.rows()
    assert [row.state for row in rows] == ["dead"] * 3
    assert [row.last_result for row in rows] == ["disabled", "410", "disabled"]
    assert [row.attempts for row in rows] == [1, 1, 0]
    assert len(world.receiver.received) == 1
    # That nothing was sent is no failure of the endpoint
    assert world.row(model=User).webhook_failures == 1
    flask("users", "set", world.user.id, "--webhook-url", world.receiver.url)
    user = world.row(model=User)
    assert (user.webhook_failures, user.webhook_disabled_at) == (0, None)
    assert world.sms()["webhook"] == "delivered"
    again = flask("webhooks", "redeliver", "--failed", "--json")
    assert again == [{"id": n, "state": "delivered"} for n in (1, 2, 3)]


# --- the circuit --------------------------------------------------------------------------


def test_circuit_opens_half_opens_and_closes(world):
    world.receiver.answers = [500] * 6
    for _ in range(4):
        world.sms()
    assert world.row(model=User).webhook_open_until is None
    world.sms()
    assert len(world.receiver.received) == 5
    # open: nothing is sent, by ingestion or worker
    assert world.sms()["webhook"] == "pending"
    last = world.rows()[-1]
    assert (last.last_result, last.lease, last.attempts) == ("circuit_open", None, 0)
    world.make_due()
    assert world.work() == []
    assert len(world.receiver.received) == 5
    # half-open: one probe, which fails, and the circuit is open for longer
    world.change(User, webhook_open_until=utcnow())
    world.make_due()
    before = utcnow()
    assert set(world.work()) == {"pending"}
    assert len(world.receiver.received) == 6
    assert world.row(model=User).webhook_open_until >= before + seconds(60)
    # half-open again: the probe gets through, and all that waited for the circuit goes
    world.change(User, webhook_open_until=utcnow())
    assert world.sms()["webhook"] == "delivered"
    user = world.row(model=User)
    assert (user.webhook_failures, user.webhook_open_until) == (0, None)
    world.make_due()
    assert set(world.work()) == {"delivered"}
    assert {row.state for row in world.rows()} == {"delivered"}


@on_sqlite
@pytest.mark.parametrize(
    ("failures", "pause"),
    [(3, None), (4, 30), (5, 60), (6, 120), (8, 480), (9, 900), (14, 900), (5000, 900)],
)
def test_each_failure_doubles_the_pause_from_the_fifth_on_up_to_15_minutes(world, failures, pause):
    world.change(User, webhook_failures=failures, webhook_open_until=utcnow() - MINUTE)
    if pause is None:
        world.change(User, webhook_open_until=None)
    world.receiver.answers = [500]
    before = utcnow()
    assert world.sms()["webhook"] == "pending"
    after, user = utcnow(), world.row(model=User)
    assert user.webhook_failures == failures + 1
    if pause is None:
        assert user.webhook_open_until is None
    else:
        assert before + seconds(pause) <= user.webhook_open_until <= after + seconds(pause)


@pytest.mark.parametrize("state", [{"webhook_failures": 3}, {"webhook_failures": 0}])
def test_a_success_closes_the_circuit(world, state):
    opened = None if state["webhook_failures"] else utcnow() - MINUTE
    world.change(User, webhook_open_until=opened, **state)
    assert world.sms()["webhook"] == "delivered"
    user = world.row(model=User)
    assert (user.webhook_failures, user.webhook_open_until) == (0, None)


def open_circuit(world):
    world.receiver.answers = [500]
    world.change(User, webhook_failures=6)
    assert world.sms()["webhook"] == "pending"
    assert world.row(model=User).webhook_open_until > utcnow()


def resume(world):
    world.form("/profile/webhooks/enable")


def probe(world):
    world.change(User, webhook_failures=5, webhook_open_until=utcnow() - MINUTE)
    assert world.sms()["webhook"] == "delivered"
    assert world.row(model=User).webhook_open_until is None


@pytest.mark.parametrize("change", [open_circuit, resume, probe])
def test_a_circuit_that_opens_or_closes_changes_no_delivery(world, change):
    """However many wait, others wait for none of them."""
    soon, late = utcnow() + seconds(20), utcnow() + timedelta(hours=2)
    waits = {"last_result": "circuit_open"}
    ids = [
        *world.add(1),
        *world.add(1, next_attempt_at=late),
        *world.add(1, next_attempt_at=soon, attempts=1, last_result="500"),
        *world.add(1, **waits),
        *world.add(1, **waits, state="dead"),
    ]

    def stored():
        return [(row.state, row.last_result, row.next_attempt_at) for row in map(world.row, ids)]

    before = stored()
    change(world)
    assert stored() == before


def test_while_a_circuit_is_open_the_worker_takes_what_others_wait_for(world, make_user):
    other = make_user(name="Ben", webhook_url=world.receiver.url)
    later = utcnow() + MINUTE
    world.change(User, id=world.user.id, webhook_failures=5, webhook_open_until=later)
    world.add(20)
    world.add(1, next_attempt_at=later, attempts=1)
    world.add(2, user=other)
    assert world.work() == ["delivered"] * 2
    assert {row.user_id for row in world.rows() if row.attempts and row.delivered_at} == {other.id}
    world.change(User, id=world.user.id, webhook_open_until=utcnow())
    assert world.work().count("delivered") == 20


def test_of_several_processes_one_probes_a_half_open_circuit(make_app, world):
    """The others take it for open meanwhile, and wait as long as a try can take."""
    apps = [make_app(WEBHOOK_TIMEOUT=PATIENCE) for _ in range(5)]
    with ThreadPoolExecutor(len(apps)) as pool:
        for calls in range(1, 5):
            with holding() as (held, url):
                past = utcnow() - MINUTE
                world.change(User, webhook_url=url, webhook_failures=5, webhook_open_until=past)
                before = utcnow()
                sent = [pool.submit(world.sms, app) for app in apps]
                held.wait()
                others = len(apps) - 1
                wait_for(lambda: held.calls > 1 or sum(a.done() for a in sent) == others)  # noqa: B023
                assert held.calls == 1
                user = world.row(model=User)
                assert user.webhook_open_until > before + seconds(PATIENCE)
                put_off = [row for row in world.rows() if row.last_result == "circuit_open"]
                assert len(put_off) == others
                assert all(row.lease is None for row in put_off)
                assert world.work() == []  # they are the worker's when the circuit is closed
                held.let_go()
                states = sorted(answer.result()["webhook"] for answer in sent)
                assert states == ["delivered"] + ["pending"] * others
            assert held.calls == 1
            assert world.counted() == calls
            world.change(last_result="an earlier round")


@on_mariadb
def test_a_probe_that_another_has_claimed_stays_theirs_after_a_deadlock(world):
    """The claim is run again then, and must not take the other's for what it has seen."""
    past, taken = utcnow() - MINUTE, utcnow() + MINUTE
    world.change(User, webhook_failures=5, webhook_open_until=past)
    claims = []

    def deadlock(_cursor, statement, _parameters, _context):
        if statement.startswith("UPDATE users SET webhook_open_until") and not claims:
            claims.append(statement)
            in_background(lambda: world.change(User, webhook_open_until=taken))()
            raise pymysql.err.OperationalError(1213, "Deadlock found")

    with listening(world.app, do_execute=deadlock):
        assert world.sms()["webhook"] == "pending"
    assert len(claims) == 1
    assert world.rows()[-1].last_result == "circuit_open"
    assert world.receiver.received == []


@pytest.mark.parametrize("answer", [500, 410, 204])
def test_what_a_url_did_is_not_held_against_the_one_that_has_taken_its_place(world, answer):
    """The user changes the URL while the old one is being called."""
    user = {"webhook_failures": 4, "webhook_open_until": None, "webhook_disabled_at": None}
    soon = utcnow() + seconds(20)
    [waits] = world.add(next_attempt_at=soon)

    def change_it():
        world.change(User, webhook_url="http://127.0.0.1:1/new", **user)
        return "", answer

    with receiving(change_it) as url:
        world.change(User, webhook_url=url, webhook_failures=4)
        world.sms()
    after = world.row(model=User)
    assert {name: getattr(after, name) for name in user} == user
    assert world.row(waits).next_attempt_at == soon


def test_what_is_sent_by_hand_goes_past_an_open_circuit_and_closes_it(world, flask):
    [id, _] = world.add(2, last_result="circuit_open")
    world.change(User, webhook_failures=7, webhook_open_until=utcnow() + MINUTE)
    assert flask("webhooks", "redeliver", id, "--json") == [{"id": id, "state": "delivered"}]
    assert world.row(model=User).webhook_open_until is None
    assert world.work() == ["delivered"]


# --- isolation ----------------------------------------------------------------------------


def test_a_silent_receiver_holds_four_calls_and_nobody_elses(make_app, world, make_user, assign):
    """What comes beyond is queued at once; other users, other calls, the worker go on."""
    other = make_user(name="Ben", webhook_url=world.receiver.url)
    assign(other.id, "12025550999")
    app = make_app(WEBHOOK_TIMEOUT=PATIENCE)
    with ThreadPoolExecutor(4) as pool, holding(500) as (held, url):
        world.change(User, id=world.user.id, webhook_url=url)
        sent = [pool.submit(world.sms, app) for _ in range(4)]
        held.wait(4)
        before = utcnow()
        assert [world.sms(app)["webhook"] for _ in range(6)] == ["pending"] * 6
        after, busy = utcnow(), world.rows()[4:]
        assert {(row.last_result, row.attempts, row.lease) for row in busy} == {("busy", 0, None)}
        times = sorted(row.next_attempt_at for row in busy)
        assert before + seconds(1) <= times[0] and times[-1] <= after + seconds(1)
        # Neither are other users', whose worker leaves alone what it could not send
        assert world.sms(app, phone_number="12025550999")["webhook"] == "delivered"
        world.change(last_result=None)
        [id] = world.add(user=other)
        world.change(next_attempt_at=utcnow())
        assert world.work(app=app) == ["delivered"]
        assert world.row(id).state == "delivered"
        assert {row.last_result for row in world.rows()[4:10]} == {None}
        assert app.test_client().get("/healthz").status_code == 200
        assert not any(answer.done() for answer in sent)
        held.let_go()
        assert [answer.result()["webhook"] for answer in sent] == ["pending"] * 4
    assert held.calls == 4
    assert world.row(world.user.id, User).webhook_failures == 4


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_what_ends_at_the_same_moment_is_recorded_together(
    make_app, world, make_user, assign, is_taken_over
):
    """By one transaction, and exactly; one whose lease was lost meanwhile changes no other's."""
    app, numbers = make_app(WEBHOOK_TIMEOUT=PATIENCE), ["12025550801", "12025550802"]
    outcomes, commits = app.extensions["outcomes"], []
    with ThreadPoolExecutor(4) as pool, holding() as (held, url):
        for number in numbers:
            assign(make_user(name=number, webhook_url=url).id, number)
        calls = [pool.submit(world.sms, app, phone_number=number) for number in 2 * numbers]
        held.wait(4)
        with listening(app, commit=commits.append):
            with writing(outcomes):
                held.let_go()
                wait_for(lambda: len(outcomes._waiting) == 4)
                if is_taken_over:
                    world.change(id=world.rows()[0].id, lease="another")
            states = sorted(call.result()["webhook"] for call in calls)
    kept = 4 - is_taken_over
    assert states == sorted(["delivered"] * kept + ["pending"] * is_taken_over)
    assert sorted(row.state for row in world.rows()) == states
    assert [row.attempts for row in world.rows()] == [1 - is_taken_over, 1, 1, 1]
    assert len(world.rows(Attempt)) == world.counted() == kept
    assert (len(commits) == 1) != is_taken_over


@pytest.mark.parametrize("status", [503, 204])
def test_what_changes_a_circuit_waits_for_nobody_elses_outcome(app, world, status):
    """It locks its user, so it is recorded alone: a failure, or the success after some."""
    world.change(User, webhook_failures=3)
    with holding(status) as (held, url), writing(app.extensions["outcomes"]):
        world.change(User, webhook_url=url)
        held.let_go()
        assert world.sms()["webhook"] == ("delivered" if status == 204 else "pending")
    assert world.row(world.user.id, User).webhook_failures == (0 if status == 204 else 4)


@contextlib.contextmanager
def writing(group):
    """As if somebody wrote a group while the block runs."""
    with group._changed:
        group._is_writing = True
    try:
        yield
    finally:
        with group._changed:
            group._is_writing = False
            group._changed.notify_all()


def test_a_share_of_the_calls_may_wait_for_receivers_and_the_worker_takes_the_rest_at_once(
    make_app, world, make_user, assign
):
    """Of 27 calls at once 4, and one of a user's; nobody waits for anything beyond."""
    app, numbers = make_app(WEBHOOK_TIMEOUT=PATIENCE, WORKER_CONNECTIONS=27), []
    with ThreadPoolExecutor(4) as pool, holding() as (held, url):
        for n in range(5):
            numbers.append(f"1202555080{n}")
            assign(make_user(name=str(n), webhook_url=url).id, numbers[-1])
        first = pool.submit(world.sms, app, phone_number=numbers[0])
        held.wait()
        assert world.sms(app, phone_number=numbers[0])["webhook"] == "pending"
        others = [pool.submit(world.sms, app, phone_number=number) for number in numbers[1:4]]
        held.wait(3)
        assert world.sms(app, phone_number=numbers[4])["webhook"] == "pending"
        waiting = [row for row in world.rows() if row.last_result == "busy"]
        assert len(waiting) == 2
        assert all((row.attempts, row.lease) == (0, None) for row in waiting)
        assert all(row.next_attempt_at <= utcnow() for row in waiting)
        held.let_go()
        assert {call.result()["webhook"] for call in (first, *others)} == {"delivered"}
    with receiving(lambda: ("", 204)) as url:
        world.change(User, webhook_url=url)
        assert world.work(app=app) == ["delivered"] * 2


@on_sqlite
@pytest.mark.parametrize("answers_in_time", [True, False])
def test_the_try_ends_before_the_gateway_gives_up_and_the_worker_goes_on(
    make_app, world, monkeypatch, answers_in_time
):
    """Its gateway waits two seconds (Telnyx does), the webhook would have a hundred."""
    impatient = FORMATS["generic"]._replace(patience=2 if not answers_in_time else 60)
    monkeypatch.setitem(FORMATS, "generic", impatient)
    app = make_app(WEBHOOK_TIMEOUT=PATIENCE)
    with holding() as (held, url):
        world.change(User, webhook_url=url)
        if answers_in_time:
            held.let_go()
        webhook = world.sms(app)["webhook"]
        held.let_go()
    [row] = world.rows()
    assert webhook == row.state == ("delivered" if answers_in_time else "pending")
    if not answers_in_time:
        assert (row.last_result, row.attempts) == ("timeout", 1)
        assert row.next_attempt_at <= utcnow()
        # Nothing is held against the receiver, which had less time than it may take
        assert world.row(model=User).webhook_failures == 0
        world.change(User, webhook_url=world.receiver.url)
        assert world.work() == ["delivered"]


@on_sqlite
def test_of_a_list_of_sms_the_worker_delivers_what_would_take_too_long(make_app, world):
    """A list may hold thousands, and its gateway waits for one answer."""
    app = make_app(WEBHOOK_TIMEOUT=0.3)
    with holding() as (_, url):
        world.change(User, webhook_url=url)
        sms = [SMS | {"id": n} for n in range(3)]
        answer = app.test_client().post(world.ingest, json=sms)
    assert [data["webhook"] for data in answer.json["data"]] == ["pending"] * 3
    assert [(row.attempts, row.lease) for row in world.rows()] == [(1, None), (0, None), (0, None)]
    world.change(User, webhook_url=world.receiver.url)
    world.make_due()
    assert sorted(world.work()) == ["delivered"] * 3


@on_sqlite
def test_without_time_for_a_try_the_worker_has_it_at_once(world, monkeypatch):
    impatient = FORMATS["generic"]._replace(patience=0.9)
    monkeypatch.setitem(FORMATS, "generic", impatient)
    assert world.sms()["webhook"] == "pending"
    [row] = world.rows()
    assert (row.last_result, row.attempts) == ("busy", 0)
    assert world.receiver.received == []
    assert world.work() == ["delivered"]


def test_an_endpoint_that_failed_is_tried_by_one_at_a_time(make_app, world):
    app = make_app(WEBHOOK_TIMEOUT=PATIENCE)
    with ThreadPoolExecutor() as pool, holding() as (held, url):
        world.change(User, webhook_url=url, webhook_failures=1)
        first = pool.submit(world.sms, app)
        held.wait()
        assert world.sms(app)["webhook"] == "pending"
        assert world.row(2).last_result == "busy"
        held.let_go()
        assert first.result()["webhook"] == "delivered"
        # ... and after a success by more
        assert world.sms(app)["webhook"] == "delivered"
    assert world.row(model=User).webhook_failures == 0


def test_failures_of_several_processes_at_once_are_all_counted(make_app, world):
    apps = [make_app(WEBHOOK_TIMEOUT=PATIENCE) for _ in range(2)]
    with ThreadPoolExecutor(5) as pool, holding(500) as (held, url):
        world.change(User, webhook_url=url)
        sent = [pool.submit(world.sms, apps[n % 2]) for n in range(5)]
        held.wait(5)
        held.let_go()
        assert [answer.result()["webhook"] for answer in sent] == ["pending"] * 5
    user = world.row(model=User)
    assert user.webhook_failures == 5
    assert user.webhook_open_until > utcnow()


def test_one_dead_receiver_among_ten_costs_the_others_nothing(world, make_user, assign):
    """Its circuit opens, theirs do not."""
    dead = make_user(webhook_url="http://127.0.0.1:1/")
    assign(dead.id, digits="199999999")
    for n in range(9):
        assign(make_user(webhook_url=world.receiver.url).id, digits=f"19999999{n}")
    states = [
        world.sms(phone_number=f"19999999{n}")["webhook"] for _ in range(6) for n in range(10)
    ]
    assert states == (["delivered"] * 9 + ["pending"]) * 6
    assert len(world.receiver.received) == 54
    opened = [user.id for user in world.rows(User) if user.webhook_open_until]
    assert opened == [dead.id]
    assert {row.last_result for row in world.rows() if row.user_id == dead.id} == {
        "connect",
        "circuit_open",
    }


# --- secrets ------------------------------------------------------------------------------


def test_secrets_are_sealed_at_rest(app, make_app, world):
    [user] = world.rows(User)
    assert world.user.secret not in user.webhook_secret
    with app.app_context():
        assert unseal(user.webhook_secret) == world.user.secret
        assert seal("x") != seal("x")
    with make_app(SECRET_KEY="another").app_context(), pytest.raises(Unreadable):
        unseal(user.webhook_secret)


@on_sqlite
def test_another_secret_key_leaves_deliveries_pending_and_says_why(make_app, world):
    assert world.sms(make_app(SECRET_KEY="another"))["webhook"] == "pending"
    assert world.row().last_result == "secret_unreadable"


def verified(secret, received):
    headers, body = received
    try:
        Webhook(secret).verify(body, dict(headers.items()))
    except WebhookVerificationError:
        return False
    return True


def test_a_rotation_signs_with_both_secrets_for_24_hours(world, flask):
    before = utcnow()
    new = flask("users", "rotate-secret", world.user.id, "--json")["webhook_secret"]
    until, after = world.row(model=User).webhook_old_secret_until, utcnow()
    assert before + timedelta(hours=24) <= until <= after + timedelta(hours=24)
    assert 24 <= len(base64.b64decode(new.removeprefix("whsec_"), validate=True)) <= 64
    world.sms()
    world.change(User, webhook_old_secret_until=utcnow() + MINUTE)
    world.sms()
    world.change(User, webhook_old_secret_until=utcnow())
    world.sms()
    received = world.receiver.received
    assert [verified(new, call) for call in received] == [True] * 3
    assert [verified(world.user.secret, call) for call in received] == [True, True, False]


@on_sqlite
def test_an_old_secret_that_cannot_be_read_does_not_stop_the_new_one(world):
    world.change(
        User,
        webhook_old_secret="sealed under another key",
        webhook_old_secret_until=utcnow() + MINUTE,
    )
    assert world.sms()["webhook"] == "delivered"
    [call] = world.receiver.received
    assert verified(world.user.secret, call)
    assert len(call[0]["webhook-signature"].split()) == 1


# --- test events, the log, purge ----------------------------------------------------------


def test_the_test_event_goes_the_same_way_but_once(world):
    world.form("/profile/test")
    world.receiver.answers = [500]
    world.form("/profile/test")
    headers, body = world.receiver.received[0]
    assert json.loads(body) == {"event": "test", "data": {}}
    assert verified(world.user.secret, (headers, body))
    rows = world.rows()
    assert [(row.state, row.last_result) for row in rows] == [("delivered", "204"), ("dead", "500")]
    assert [(row.next_attempt_at, row.attempts, row.lease) for row in rows] == [(None, 1, None)] * 2
    assert [a.trigger for a in world.rows(Attempt)] == ["test", "test"]
    assert world.counted() == 0


def test_webhooks_list_shows_every_attempt(world, flask):
    world.receiver.answers = [500]
    world.sms()
    [row] = flask("webhooks", "list", "--json")
    assert (row["state"], row["result"]) == ("pending", "500")
    assert [(a["trigger"], a["result"]) for a in row["attempts"]] == [("ingest", "500")]
    assert flask("webhooks", "list", "--state", "dead", "--user", "1", "--json") == []


def test_purge_deletes_in_batches_what_is_old_and_ended(app, world):
    """Neither what is young nor what still has to be delivered."""
    old, young = utcnow() - timedelta(days=31), utcnow() - timedelta(days=29)
    many = world.add(501, state="delivered", created_at=old)
    # Each a message of its own, with one try: (its age, its state, how old the try is)
    cases = {
        "old": (old, "dead", old),
        "tried again lately": (old, "delivered", young),
        "young": (young, "dead", young),
        "young, old try": (young, "delivered", old),
        "to be delivered": (old, "pending", young),
    }
    ids = {}
    with app.app_context():
        for name, (created_at, state, started_at) in cases.items():
            [ids[name]] = world.add(state=state, created_at=created_at)
            attempt = {"trigger": "ingest", "ms": 1, "result": "500"}
            db.session.add(Attempt(delivery_id=ids[name], started_at=started_at, **attempt))
            db.session.commit()
        alone, recent = (  # nobody's, so without a delivery
            Message(provider="gw", digits="1", sms_text="x", received_at=old, created_at=old)
            for _ in range(2)
        )
        db.session.add_all([alone, recent])
        db.session.commit()
        messages = {name: world.row(id).message_id for name, id in ids.items()}
        messages |= {"many": world.row(many[0]).message_id, "alone": alone.id, "recent": recent.id}
    world.change(Message, created_at=old)
    world.change(Message, id=messages["recent"], created_at=young)
    world.change(Message, id=messages["young"], created_at=young)

    result = app.test_cli_runner().invoke(args=["purge", "--json"])
    gone = json.loads(result.stdout.splitlines()[-1])
    assert gone == {"attempts": 3, "deliveries": 503, "messages": 4, "audit_entries": 0}
    batches = [line for line in result.stderr.splitlines() if line.startswith("deliveries")]
    assert batches == ["deliveries: 500 deleted", "deliveries: 503 deleted"]
    left = {"young", "young, old try", "to be delivered"}
    assert {row.id for row in world.rows()} == {ids[name] for name in left}
    kept = {messages[name] for name in left | {"recent"}}
    assert {row.id for row in world.rows(Message)} == kept
    tried = {"young", "to be delivered"}
    assert {row.delivery_id for row in world.rows(Attempt)} == {ids[name] for name in tried}


# --- signatures that we check -------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize(
    ("late", "webhook_id", "status"),
    [
        (240, "msg_1", 200),
        (-299, "msg_1", 200),
        (300, "msg_1", 401),
        (-420, "msg_1", 401),
        (0, "", 401),  # without an id, which is signed too, it could be sent again and again
        (-int("9" * 20), "msg_1", 401),
        (None, "msg_1", 401),
    ],
)
def test_a_signature_of_the_main_server_counts_for_five_minutes(
    client, app, make_provider, late, webhook_id, status
):
    """... before and after its time, since clocks differ."""
    key, body = base64.b64encode(b"k" * 32), json.dumps({"event": "otp_received", "data": SMS})
    with app.app_context():
        secret = seal(f"whsec_{key.decode()}")
    ingest = make_provider(format="main-server", secret=secret)
    timestamp = "9" * 5000 if late is None else str(int(time.time()) - late)
    signed = f"{webhook_id}.{timestamp}.{body}".encode()
    signature = base64.b64encode(hmac.digest(b"k" * 32, signed, "sha256")).decode()
    headers = {
        "webhook-id": webhook_id, "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,b2xk v1,{signature}",
    }  # fmt: skip
    assert client.post(ingest, data=body, headers=headers).status_code == status


@on_sqlite
def test_with_a_secret_that_is_none_no_signature_is_right(client, make_provider, app):
    with app.app_context():
        secret = seal("whsec_a")  # not base64
    ingest = make_provider(format="main-server", secret=secret)
    headers = {
        "webhook-id": "m", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,",
    }  # fmt: skip
    sent = client.post(ingest, json={"event": "otp_received", "data": SMS}, headers=headers)
    assert sent.status_code == 401
