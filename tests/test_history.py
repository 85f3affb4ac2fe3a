"""GET /api/numbers, /api/messages, /api/summary and /healthz: what users read back."""

import contextlib
import re
import sqlite3
import threading
import time
from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import delete, event, insert, select, text

from service import waiting
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Attempt, Delivery, Message, PhoneNumber, User
from service.database.writing import transact
from tests.conftest import SYSTEM_KEY
from tests.databases import on_mariadb, on_sqlite
from tests.fixtures import NUMBER
from tests.forms import logged_in, post
from tests.meanwhile import listening
from tests.peers import until
from tests.records import change

OTHER = "12025550124"


def read(client, call, user, status=200, **query):
    response = client.get(f"/api/{call}/{user.key}", query_string=query)
    assert response.status_code == status, response.json
    assert response.headers["Cache-Control"] == "no-store"
    return response.json["data"][call] if status == 200 and call != "summary" else response.json


@pytest.fixture
def sms(client, make_provider):
    """Let an SMS come in, by `app` or another process of the service; gives its id."""
    path = make_provider("gw")

    def send(text, to=NUMBER, by=None, **fields):
        taker = by.test_client() if by else client
        return taker.post(path, json={"to": to, "text": text} | fields).json["data"]["id"]

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


def test_lists_have_50_rows_unless_told_otherwise_and_200_at_most(app, client, make_user, assign):
    user = make_user()
    columns = {
        "user_id": user.id, "state": "assigned", "country_id": 1, "assigned_at": utcnow(),
        "requested_at": utcnow(),
    }  # fmt: skip
    sms = {"user_id": user.id, "provider": "gw", "sms_text": "x", "received_at": utcnow()}
    with app.app_context(), db.engine.begin() as connection:
        digits = [{"digits": f"1202555{n:04}"} for n in range(201)]
        connection.execute(insert(PhoneNumber), [columns | row for row in digits])
        connection.execute(insert(Message), [sms | row for row in digits])
    for call in ("numbers", "messages"):
        assert len(read(client, call, user)) == 50
        assert len(read(client, call, user, limit=200)) == 200
        assert len(read(client, call, user, limit=1)) == 1
    newest = read(client, "messages", user)
    assert [row["id"] for row in newest] == list(range(152, 202))
    after = read(client, "messages", user, after=0)
    assert [row["id"] for row in after] == list(range(1, 51))


def test_a_number_that_is_only_asked_for_is_not_listed(app, client, make_user):
    user = make_user()
    for state in ("requested", "unknown"):
        with app.app_context():
            row = PhoneNumber(user_id=user.id, state=state, country_id=1)
            transact(lambda tx, row=row: db.session.add(row))
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
        "otp_code": "123456", "otp_rule": "keyword-before", "provider": "gw", "sender": None,
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
        transact(lambda tx: setattr(db.session.get(PhoneNumber, id), "phone_code", "1"))
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


@pytest.mark.parametrize("own", [True, False])
def test_digits_are_a_whole_number_before_they_are_a_national_one(
    client, make_user, assign, sms, own
):
    """The user holds both; of somebody else's whole number they know nothing."""
    user, other = make_user(), make_user(name="Ben")
    row = assign(user.id)
    assign(user.id if own else other.id, "2025550123")
    change(client.application, PhoneNumber, row, phone_code="1")
    national, whole = sms("code 123456"), sms("code 654321", "2025550123")
    rows = read(client, "messages", user, phone_number="2025550123")
    assert [row["id"] for row in rows] == [whole if own else national]


@on_sqlite
def test_a_national_form_is_looked_up_in_no_other_numbers_or_messages(
    app, client, make_user, assign, sms
):
    user = make_user()
    change(app, PhoneNumber, assign(user.id), phone_code="1")
    wanted, asked = sms("code 123456"), []

    def listen(_connection, _cursor, statement, parameters, *_):
        if "FROM phone_numbers" in statement or "FROM messages" in statement:
            asked.append((statement, parameters))

    with listening(app, before_cursor_execute=listen):
        rows = read(client, "messages", user, phone_number=NUMBER[1:])
    assert [row["id"] for row in rows] == [wanted]
    keys = ("digits=?", "national=?", "rowid=?")
    with app.app_context(), db.engine.connect() as connection:
        for statement, parameters in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            assert all(any(key in step.detail for key in keys) for step in plan), plan


def test_a_national_form_is_that_of_the_users_own_numbers(client, make_user, assign, sms):
    """Not as somebody else got it, nor of a row that never became a number."""
    user, other = make_user(), make_user(name="Ben")
    theirs = assign(other.id, ago=timedelta(hours=2))
    unknown = assign(user.id, ago=timedelta(hours=2))
    change(client.application, PhoneNumber, theirs, phone_code="1")
    change(client.application, PhoneNumber, unknown, phone_code="1", state="unknown")
    assign(user.id)
    wanted = sms("code 123456")
    assert read(client, "messages", user, phone_number="2025550123") == []
    rows = read(client, "messages", user, phone_number=NUMBER)
    assert [row["id"] for row in rows] == [wanted]


@on_sqlite
@pytest.mark.parametrize("character", ["x", "я", "😀", '"'])
def test_a_page_of_messages_is_at_most_a_megabyte(app, client, make_user, assign, character):
    """And the next call goes on where it ended, in either direction."""
    user = make_user()
    number = assign(user.id)
    texts = [f"{n} ".ljust(40_000, character) for n in range(30)]
    with app.app_context():
        rows = [
            Message(
                user_id=user.id, phone_number_id=number, provider="gw", digits=NUMBER,
                sms_text=text, received_at=utcnow(),
            )
            for text in texts
        ]  # fmt: skip
        transact(lambda tx: db.session.add_all(rows))

    forward, after = [], 0
    while rows := read(client, "messages", user, limit=200, after=after):
        forward.append([row["sms_text"] for row in rows])
        after = rows[-1]["id"]
    assert len(forward) > 1 and [text for page in forward for text in page] == texts
    latest = [row["sms_text"] for row in read(client, "messages", user, limit=200)]
    assert 1 < len(latest) < 30 and latest == texts[-len(latest) :]
    for query in ("?limit=200", "?limit=200&after=0"):
        assert len(client.get(f"/api/messages/{user.key}{query}").data) <= 1_000_000
    # In the browser each page leads on to the older ones
    browser, link, shown = logged_in(app, user.key), "/profile/messages", []
    post(browser, "/profile/reveal", reveal="1", page="messages")
    while link:
        page = browser.get(link).text
        shown += re.findall(r"<p class=.sms.[^>]*>(\d+) ", page)
        link = next(iter(re.findall(r'href="([^"]+)">Older<', page)), None)
    assert shown == [str(n) for n in reversed(range(30))]


# --- wait ---------------------------------------------------------------------------------


class Waiters:
    """Calls of /api/messages in threads of their own, which wait or have been answered."""

    def __init__(self, app):
        self.app, self.threads, self.answers, self.seconds = app, [], {}, {}
        # The looks of each call, the calls that began to wait, and of each poll the thread and
        # the id that it goes back to
        self.reads, self.waiting, self.polls = Counter(), set(), []
        self.after_first_look, self.changed = lambda: None, threading.Condition()
        with app.app_context():
            event.listen(db.engine, "after_cursor_execute", self._note)
        service = app.extensions["waiters"]
        service.wait = self._noted(service.wait)

    def _note(self, _connection, _cursor, statement, parameters, *_):
        thread, is_first_look = threading.current_thread(), False
        with self.changed:
            if is_poll(statement):
                bound = parameters if isinstance(parameters, tuple) else parameters.values()
                self.polls.append((thread, *bound))
            elif statement.startswith("SELECT messages.id, length("):
                self.reads[thread] += 1
                is_first_look = self.reads[thread] == 1
            self.changed.notify_all()
        if is_first_look:
            self.after_first_look()

    def _noted(self, wait):
        def noted(*args):
            with self.changed:
                self.waiting.add(threading.current_thread())
                self.changed.notify_all()
            wait(*args)

        return noted

    def call(self, user, **query):
        """Start a call; gives its thread."""

        def run():
            began = time.monotonic()
            rows = read(self.app.test_client(), "messages", user, **query)
            with self.changed:
                self.seconds[threading.current_thread()] = time.monotonic() - began
                self.answers[threading.current_thread()] = [row["id"] for row in rows]
                self.changed.notify_all()

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        return self.threads[-1]

    def settle(self, thread):
        """Whether the call waits; else it was answered."""
        self._until(lambda: thread in self.answers or thread in self.waiting)
        return thread not in self.answers

    def go_on(self, *threads):
        """Whether the calls still wait when the database has been asked for them again."""
        self.polled(3)
        return not set(threads) & set(self.answers)

    def polled(self, n):
        """Wait for so many more polls."""
        goal = len(self.polls) + n
        self._until(lambda: len(self.polls) >= goal)

    def answered(self, thread):
        """The ids that the call was answered with, which its time's end did not cause."""
        self._until(lambda: thread in self.answers)
        assert self.seconds[thread] < 20
        return self.answers[thread]

    def _until(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, 60)

    def join(self):
        for thread in self.threads:
            thread.join()


def is_poll(statement):
    return statement.startswith("SELECT messages.user_id, messages.id, messages.digits")


@pytest.fixture
def waiters():
    """Make Waiters of an app."""
    with contextlib.ExitStack() as stack:

        def make(app):
            made = Waiters(app)
            stack.callback(made.join)
            return made

        yield make


@pytest.fixture(autouse=True)
def _polls_follow_quickly(monkeypatch):
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.05)


@pytest.fixture
def elsewhere(app, make_app):
    """The service as another process runs it."""
    return make_app()


@pytest.fixture(params=["same process", "another process"])
def taker(request, app, elsewhere, monkeypatch):
    """The app that takes an SMS in for who waits in `app`; in the same no poll is needed."""
    if request.param == "another process":
        return elsewhere
    monkeypatch.setattr(waiting, "POLL_SECONDS", 60)
    return app


def test_wait_answers_as_soon_as_there_is_one(taker, app, make_user, assign, sms, waiters):
    """One of the user's own, after `after`, and of the number that is asked for."""
    user, other = make_user(), make_user(name="Ben")
    for digits, holder in ((NUMBER, user), (OTHER, other), ("12025550125", user)):
        assign(holder.id, digits)
    before = sms("code 111111", id="1")
    calls = waiters(app)
    call = calls.call(user, wait=25, after=before, phone_number=NUMBER)
    assert calls.settle(call)
    sms("code 123456", OTHER, by=taker)
    sms("code 123456", "12025550125", by=taker)
    assert sms("code 111111", id="1", by=taker) == before
    if taker is not app:
        assert calls.go_on(call)
    sent = sms("code 654321", by=taker)
    assert calls.answered(call) == [sent]
    # The first look and the one that found it: what is not asked for causes none
    assert calls.reads[call] == 2


def test_an_sms_between_the_look_and_the_wait_is_not_missed(
    taker, app, make_user, assign, sms, waiters
):
    user, calls, sent = make_user(), waiters(app), []
    assign(user.id)
    calls.after_first_look = lambda: sent.append(sms("code 123456", by=taker))
    call = calls.call(user, wait=25)
    assert calls.answered(call) == sent
    assert len(sent) == 1


@on_sqlite
def test_who_is_told_of_an_sms_that_is_gone_goes_on_waiting(app, make_user, assign, sms, waiters):
    user, calls = make_user(), waiters(app)
    assign(user.id)

    def come_and_go():
        sms("code 123456")
        with app.app_context():
            transact(lambda tx: tx.execute(delete(Message)))

    calls.after_first_look = come_and_go
    call = calls.call(user, wait=1)
    assert calls.answered(call) == []
    assert calls.reads[call] == 3


def test_one_query_asks_for_all_who_wait(app, elsewhere, make_user, assign, sms, waiters):
    users, calls = [make_user(), make_user(name="Ben")], waiters(app)
    assign(users[0].id)
    threads = [[calls.call(user, wait=25) for _ in range(4)] for user in users]
    assert all(calls.settle(thread) for thread in threads[0] + threads[1])
    calls.polled(4)
    assert len({thread for thread, _ in calls.polls}) == 1
    assert calls.reads.keys() >= {*threads[0], *threads[1]}
    assert {calls.reads[thread] for thread in threads[0] + threads[1]} == {1}
    sent = sms("code 123456", by=elsewhere)
    assert [calls.answered(thread) for thread in threads[0]] == [[sent]] * 4
    assert calls.go_on(*threads[1])
    assert {calls.reads[thread] for thread in threads[1]} == {1}
    assign(users[1].id, OTHER)
    sms("code 123456", OTHER)


@on_sqlite
def test_a_poll_reads_no_more_than_the_latest_sms(app, elsewhere, make_user, assign, sms, waiters):
    """Also after a purge, when SQLite gives the ids out again."""
    user, calls = make_user(), waiters(app)
    assign(user.id)
    assign(user.id, OTHER)
    old = {
        "user_id": user.id, "provider": "gw", "digits": OTHER, "sms_text": "x",
        "received_at": utcnow(),
    }  # fmt: skip
    with app.app_context(), db.engine.begin() as connection:
        connection.execute(insert(Message), [old | {"id": id} for id in (7, 5000)])
    call = calls.call(user, wait=25, phone_number=NUMBER)
    assert calls.settle(call)
    calls.polled(1)
    assert calls.polls[0][1] == 5000 - waiting.MARGIN
    assert sms("code 123456", OTHER, by=elsewhere) == 5001
    calls.polled(3)
    assert calls.polls[-1][1] == 5001 - waiting.MARGIN
    with app.app_context():
        transact(lambda tx: tx.execute(delete(Message)))
    calls.polled(3)
    sent = sms("code 654321", by=elsewhere)
    assert sent == 1
    assert calls.answered(call) == [sent]


@on_sqlite
def test_the_polls_end_with_the_last_who_waits_and_begin_again(
    app, elsewhere, make_user, assign, sms, waiters
):
    user, calls = make_user(), waiters(app)
    assign(user.id)
    for n in range(2):
        call = calls.call(user, wait=25, after=sms(f"code {n}"))
        assert calls.settle(call)
        calls.polled(1)
        watcher = calls.polls[-1][0]
        sent = sms(f"code 12345{n}", by=elsewhere)
        assert calls.answered(call) == [sent]
        until(lambda watcher=watcher: not watcher.is_alive())


@contextlib.contextmanager
def polls_fail(app, error):
    """Polls of `app` raise `error` while the block runs; gives a list of the threads that did."""
    failed = []

    def fail(_connection, _cursor, statement, *_):
        if is_poll(statement):
            failed.append(threading.current_thread())
            raise error

    with listening(app, before_cursor_execute=fail):
        yield failed


NO_DISK = sqlite3.OperationalError("disk I/O error")


@on_sqlite
def test_polls_go_on_after_a_failure_which_is_logged_once(
    app, elsewhere, make_user, assign, sms, waiters, caplog
):
    user, calls = make_user(), waiters(app)
    assign(user.id)
    call = calls.call(user, wait=25, phone_number=NUMBER)
    assert calls.settle(call)
    for n in range(2):
        with polls_fail(app, NO_DISK) as failed:
            if n:
                sent = sms("code 123456", by=elsewhere)
            until(lambda failed=failed: len(failed) >= 3)
            assert call not in calls.answers
        assert n or calls.go_on(call)
        assert caplog.text.count("event=waiters_failed") == n + 1
    assert calls.answered(call) == [sent]


@on_sqlite
def test_who_waits_looks_in_the_end_whatever_became_of_the_polls(
    app, elsewhere, make_user, assign, sms, waiters
):
    user, calls, sent = make_user(), waiters(app), []
    assign(user.id)
    calls.after_first_look = lambda: sent.append(sms("code 123456", by=elsewhere))
    with polls_fail(app, NO_DISK):
        call = calls.call(user, wait=1)
        assert calls.answered(call) == sent
    assert calls.seconds[call] >= 1


@on_sqlite
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_watcher_that_is_gone_is_replaced(app, elsewhere, make_user, assign, sms, waiters):
    """As in a fork, which inherits no thread."""
    user, calls = make_user(), waiters(app)
    assign(user.id)
    with polls_fail(app, SystemExit()) as failed:
        calls.call(user, wait=2)
        until(lambda: failed and not failed[0].is_alive())
    call = calls.call(user, wait=25)
    assert calls.settle(call)
    sent = sms("code 123456", by=elsewhere)
    assert calls.answered(call) == [sent]


@pytest.mark.parametrize("column", ["active", "approved"])
def test_a_wait_ends_when_its_user_is_deactivated(app, make_user, assign, sms, waiters, column):
    """And nothing that comes in just then is shown."""
    user, other = make_user(), make_user(name="Ben")
    assign(user.id)
    calls = waiters(app)
    call, others = calls.call(user, wait=25), calls.call(other, wait=25)
    assert calls.settle(call) and calls.settle(others)
    change(app, User, user.id, **{column: False})
    sms("code 123456")
    until(lambda: call in calls.answers)
    assert calls.answers[call] == []
    assert calls.settle(others)
    change(app, User, other.id, **{column: False})  # whom nobody tells of an SMS
    calls.join()
    assert calls.answers[others] == []


def test_a_wait_ends_with_the_key_that_it_came_with(app, make_user, assign, sms, waiters):
    """Who has the old key gets nothing that came after the new one."""
    user = make_user()
    assign(user.id)
    calls = waiters(app)
    call = calls.call(user, wait=25)
    assert calls.settle(call)
    change(app, User, user.id, key_hash="another")
    sms("code 123456")
    calls.join()
    assert calls.answers[call] == []


def test_wait_ends_with_the_empty_list(app, make_user, waiters):
    calls = waiters(app)
    call = calls.call(make_user(), wait=1)
    calls.join()
    assert calls.answers[call] == []
    assert calls.reads[call] == 2
    assert calls.seconds[call] >= 1


@on_sqlite
@pytest.mark.parametrize("query", [{}, {"wait": 0}, {"wait": 25}])
def test_what_is_there_is_answered_at_once(app, make_user, assign, sms, waiters, query):
    user, calls = make_user(), waiters(app)
    if query.get("wait"):
        assign(user.id)
        sms("code 123456")
    call = calls.call(user, **query)
    calls.join()
    assert calls.reads[call] == 1
    assert not calls.waiting


@on_sqlite
def test_a_share_of_the_calls_may_wait_and_a_quarter_of_that_for_one_user(
    make_app, make_user, assign, sms, waiters
):
    """The others are answered at once; a place is free again when its call has ended.

    Of 20 calls at once 9 may wait, and 2 for one user.
    """
    app = make_app(WORKER_CONNECTIONS=20)
    users = [make_user(name=name) for name in ("Ann", "Ben", "Cem", "Dan", "Eva")]
    calls, settled = waiters(app), []
    for n, user in enumerate(users):
        assign(user.id, f"1202555010{n}")
        mine = [calls.call(user, wait=25) for _ in range(2 if n < 4 else 1)]
        # The rest must find their places taken
        settled.append([calls.settle(call) for call in mine])
        settled[-1].append(calls.settle(calls.call(user, wait=25)))
    assert settled == [[True, True, False]] * 4 + [[True, False]]
    for n in range(5):
        sms("code 123456", f"1202555010{n}")
    calls.join()
    again = calls.call(users[0], wait=1, after=999)
    assert calls.settle(again)


def test_who_waits_holds_no_connection(app, client, make_user, assign, sms, waiters):
    """The pool has 3: while 4 wait, as many as may, all others are served."""
    users, calls = [make_user(), make_user(name="Ben")], waiters(app)
    assign(users[0].id)
    assign(users[1].id, OTHER)
    threads = [calls.call(user, wait=25) for user in users for _ in range(2)]
    assert all(calls.settle(thread) for thread in threads)
    assert len(read(client, "numbers", users[0])) == 1
    assert calls.go_on(*threads)
    sent = [sms("code 123456"), sms("code 123456", OTHER)]
    calls.join()
    assert [calls.answers[thread] for thread in threads] == [[id] for id in sent for _ in range(2)]


@on_mariadb
def test_an_sms_that_is_just_being_stored_is_not_passed_over(
    app, mariadb_server, make_user, assign, sms, waiters
):
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
        calls = waiters(app)
        call = calls.call(user, after=first - 1)
        while call.is_alive() and not mariadb_server.row_lock_waits():
            time.sleep(0.01)  # until the reader waits for it; where it does not, it ends
        assert call.is_alive()
        connection.commit()
    calls.join()
    assert calls.answers[call] == [first, second]


@on_mariadb
def test_a_lower_id_that_is_committed_later_is_not_passed_over(
    app, elsewhere, make_user, assign, sms, waiters
):
    ann, ben = make_user(), make_user(name="Ben")
    assign(ben.id, OTHER)
    columns = {
        "user_id": ann.id, "provider": "gw", "digits": NUMBER,
        "sms_text": "first", "received_at": utcnow(), "created_at": utcnow(),
    }  # fmt: skip
    calls = waiters(app)
    call = calls.call(ann, wait=25)
    assert calls.settle(call)
    with elsewhere.app_context(), db.engine.connect() as connection:
        lower = connection.execute(insert(Message).values(columns)).inserted_primary_key.id
        higher = sms("second", OTHER, by=elsewhere)
        assert lower < higher
        assert calls.go_on(call)
        assert calls.polls[-1][1] == higher - waiting.MARGIN
        connection.commit()
    assert calls.answered(call) == [lower]


@on_mariadb
def test_readers_do_not_wait_for_each_other(app, client, make_user, assign, sms):
    """They share the lock: here another one holds it for as long as the call takes."""
    user = make_user()
    assign(user.id)
    sent = sms("code 123456")
    with app.app_context(), db.engine.connect() as other:
        # All columns: what an index alone can answer does not lock the row
        assert other.execute(select(Message).with_for_update(read=True)).one().id == sent
        assert [row["id"] for row in read(client, "messages", user)] == [sent]


def test_summary_counts_in_all_and_per_day(app, client, make_user):
    user = make_user()
    today = utcnow()
    with app.app_context():
        for days, numbers in ((0, 1), (2, 2), (40, 4)):
            at = today - timedelta(days=days)
            transact(lambda tx, at=at, n=numbers: tx.count(user.id, at, numbers=n, sms=n, otps=1))
    data = read(client, "summary", user)["data"]
    assert data["totals"] == {"numbers": 7, "sms": 7, "otps": 3, "webhooks_delivered": 0}
    assert len(data["days"]) == 30
    assert data["days"][-1] == {
        "day": today.date().isoformat(), "numbers": 1, "sms": 1, "otps": 1, "webhooks_delivered": 0,
    }  # fmt: skip
    assert [day["numbers"] for day in data["days"][-4:]] == [0, 2, 0, 1]
    assert [day["numbers"] for day in read(client, "summary", user, days=3)["data"]["days"]] == [
        2, 0, 1,
    ]  # fmt: skip
    assert len(read(client, "summary", user, days=1)["data"]["days"]) == 1
    assert len(read(client, "summary", user, days=366)["data"]["days"]) == 366
    nothing = {"numbers": 0, "sms": 0, "otps": 0, "webhooks_delivered": 0}
    other = read(client, "summary", make_user(name="Ben"), days=1)["data"]
    assert other == {"totals": nothing, "days": [nothing | {"day": today.date().isoformat()}]}


@pytest.fixture
def log_in(client):
    """Let the client's browser be a user's."""

    def enter(user):
        token = re.search(r'csrf_token" value="([^"]+)"', client.get("/login").text)[1]
        form = {"csrf_token": token, "api_key": user.key}
        assert client.post("/login", data=form).headers["Location"] == "/profile"

    return enter


@pytest.fixture
def deliver(app):
    """Record a delivery, of an SMS or of a test event, with what was answered; gives its id."""

    def record(user, sms=False, state="dead", answers=()):
        delivery = Delivery(webhook_id="?", user_id=user.id, body=b"{}", state=state)
        rows = [
            Attempt(trigger="test", started_at=utcnow(), ms=1, result="200", answer=answer)
            for answer in answers
        ]

        def write(tx):
            if sms:
                message = Message(
                    user_id=user.id, provider="gw", digits=NUMBER, sms_text="x",
                    received_at=utcnow(),
                )  # fmt: skip
                db.session.add(message)
                db.session.flush()
                delivery.message_id = message.id
            db.session.add(delivery)
            db.session.flush()
            delivery.webhook_id = f"msg_{delivery.id}"
            for row in rows:
                row.delivery_id = delivery.id
                db.session.add(row)

        with app.app_context():
            transact(write)
            return delivery.id

    return record


def test_the_last_outcome_of_a_test_event_is_shown_to_its_user_alone(
    client, make_user, log_in, deliver
):
    """Nothing of an SMS: what a receiver says of one may quote the code, which is hidden."""
    ann, ben = make_user(), make_user(name="Ben")
    ids = [
        deliver(ann, answers=("answer 1", "answer 2")),
        deliver(ann, sms=True, answers=("answer 3",)),
        deliver(ben, answers=("answer 4",)),
    ]
    log_in(ann)
    pages = [client.get(f"/profile/edit?tested={id}") for id in [*ids, 999]]
    assert [page.status_code for page in pages] == [200] * 4
    told = [re.findall(r"answer \d", page.text) for page in pages]
    assert told == [["answer 2"], [], [], []]


def test_the_webhook_log_is_the_users_own_newest_first_in_pages(client, make_user, log_in, deliver):
    ann, ben = make_user(), make_user(name="Ben")
    mine = [deliver(ann, sms=n % 2, state="delivered" if n > 20 else "dead") for n in range(23)]
    deliver(ben)
    log_in(ann)

    def listed(query=""):
        page = client.get(f"/profile/webhooks{query}").text
        return [int(id) for id in re.findall(r"<code>msg_(\d+)</code>", page)]

    newest = mine[::-1]
    assert listed() == newest[:20]
    assert listed(f"?before={newest[19]}") == newest[20:]
    assert listed(f"?before={newest[-1]}") == []
    assert listed("?state=delivered") == newest[:2]
    assert listed("?state=dead") == newest[2:22]
    assert listed("?state=pending") == []


def test_the_page_of_messages_is_newest_first_in_pages_and_never_waits(
    app, client, make_user, log_in, waiters
):
    user, calls = make_user(), waiters(app)
    log_in(user)

    def listed(query=""):
        looked = sum(calls.reads.values())
        page = client.get(f"/profile/messages{query}").text
        assert sum(calls.reads.values()) - looked == 1
        return [int(n) for n in re.findall(r"\+1202555(\d{4})", page)]

    assert listed() == []
    with app.app_context(), db.engine.begin() as connection:
        sms = {"user_id": user.id, "provider": "gw", "sms_text": "x", "received_at": utcnow()}
        rows = [sms | {"id": n, "digits": f"1202555{n:04}"} for n in range(1, 24)]
        connection.execute(insert(Message), rows)
    assert listed() == [*range(23, 3, -1)]
    assert listed("?before=4") == [3, 2, 1]
    assert listed("?before=1") == []


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
        transact(lambda tx: setattr(db.session.get(User, user.id), "active", False))
    assert client.get(f"{path}/{user.key}").status_code == 401


@on_sqlite
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
    assert response.status_code == 200
    assert response.json == {"status": "success", "data": {"database": "ok"}}


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


@on_sqlite
def test_healthz_is_503_when_the_database_is_away(make_app, tmp_path):
    app = make_app(DATABASE_URL=f"sqlite:///{tmp_path}/no/such/folder.sqlite3")
    response = app.test_client().get("/healthz")
    assert response.status_code == 503
    assert response.json == {"status": "error", "message": "The database does not answer"}
