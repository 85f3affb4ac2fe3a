"""The webhook log: what it tells of each delivery and of the last day, replaying, resuming."""

import re
import secrets
from datetime import timedelta

import pytest
from sqlalchemy import select

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Attempt, Delivery, Message
from service.database.writing import transact
from tests import records
from tests.databases import on_sqlite
from tests.fixtures import NUMBER
from tests.forms import change, post


@pytest.fixture
def user(make_user, receiver):
    return make_user(webhook_url=receiver.url)


@pytest.fixture
def deliver(app, user):
    """Store a delivery of an SMS; gives its id."""

    def add(tx, state, result, ago, ms, test):
        at = utcnow() - ago
        row = Delivery(
            webhook_id=secrets.token_hex(8), user_id=user.id, state=state,
            body=b'{"event":"otp_received"}', last_result=result, created_at=at,
            next_attempt_at=at + timedelta(days=result != "circuit_open"),
        )  # fmt: skip
        if not test:
            message = Message(
                user_id=user.id, provider="gw", digits=NUMBER, sms_text="x", received_at=at
            )
            db.session.add(message)
            db.session.flush()
            row.message_id = message.id
        db.session.add(row)
        db.session.flush()
        tried = {"started_at": at, "ms": ms, "result": result or "500", "trigger": "ingest"}
        db.session.add(Attempt(delivery_id=row.id, **tried))
        return row.id

    def store(state, result="500", ago=timedelta(0), ms=1, test=False):
        with app.app_context():
            return transact(add, state, result, ago, ms, test)

    return store


def states(app):
    with app.app_context():
        return db.session.scalars(select(Delivery.state).order_by(Delivery.id)).all()


@on_sqlite
def test_each_delivery_is_told_by_its_number_and_its_result(browser, deliver):
    deliver("dead", "timeout")
    deliver("delivered", "200", test=True)
    page = browser.get("/profile/webhooks").text
    bold = [
        re.sub(r"<[^>]+>|\s+", " ", b) for b in re.findall("<strong>(.+?)</strong>", page, re.S)
    ]
    assert [" ".join(text.split()) for text in bold] == [
        "Test event · answered 200", f"+{NUMBER} · no answer in time",
    ]  # fmt: skip
    assert f'href="/profile?number=%2B{NUMBER}"' in page and "otp_received" not in page


def test_what_was_sent_is_shown_beside_what_was_answered_once_it_is_asked_for(
    app, browser, user, receiver, assign, make_provider
):
    assign(user.id)
    receiver.answers.append(500)
    browser.post(make_provider("gw"), json={"to": NUMBER, "text": "code 775120"})
    [(headers, body)] = receiver.received
    hidden = browser.get("/profile/webhooks").text
    assert "775120" not in hidden and receiver.url not in hidden
    post(browser, "/profile/reveal", reveal="1", page="webhooks")
    page = browser.get("/profile/webhooks").text
    sent = re.search(r'aria-label="What was sent">(.+?)</pre>', page, re.DOTALL)[1]
    assert f"POST {receiver.url}\n" in sent
    for name in ("webhook-id", "Content-Type"):
        assert f"\n{name}: {headers[name]}\n" in sent
    assert (
        abs(
            int(re.search(r"webhook-timestamp: (\d+)", sent)[1]) - int(headers["webhook-timestamp"])
        )
        < 2
    )
    assert sent.replace("&#34;", '"').endswith("\n\n" + body.decode())
    assert "answered 500" in page


@on_sqlite
def test_tabs_have_counts_and_the_last_day_a_rate_and_a_time(browser, deliver):
    assert "The last 24 hours" not in browser.get("/profile/webhooks").text
    for ms in (100, 200, 900):
        deliver("delivered", "204", timedelta(minutes=ms), ms)
    deliver("dead", "500", timedelta(hours=1), 5000)
    deliver("pending", "500", timedelta(hours=2), 5000)
    deliver("dead", "500", timedelta(hours=25), 5000)
    deliver("delivered", "204", ms=7, test=True)
    page = browser.get("/profile/webhooks").text
    assert "The last 24 hours: 75.0 % of 4 webhooks delivered, in 200 ms (median)" in page
    assert re.findall(r'class="count">(\d+)<', page) == ["7", "1", "4", "2"]


@on_sqlite
def test_what_there_is_nothing_of_has_no_button(browser, deliver):
    deliver("delivered", "204")
    assert "Redeliver all failed" not in browser.get("/profile/webhooks").text
    deliver("dead")
    assert "Redeliver all failed" in browser.get("/profile/webhooks").text


def test_what_failed_since_a_time_is_redelivered(app, browser, receiver, deliver):
    for hours in (3, 1):
        deliver("dead", ago=timedelta(hours=hours))
    since = (utcnow() - timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M")
    post(browser, "/profile/webhooks/redeliver", id="failed", since="when?")
    assert "That is not a time." in browser.get("/profile/webhooks").text
    assert states(app) == ["dead", "dead"]
    back = post(browser, "/profile/webhooks/redeliver?state=dead", id="failed", since=since)
    assert back.location == "/profile/webhooks?state=dead"
    assert states(app) == ["dead", "delivered"]
    assert "Tried again: 1 delivered." in browser.get("/profile/webhooks").text


@pytest.mark.parametrize("is_disabled", [False, True])
def test_a_paused_endpoint_has_one_button_which_sends_what_waits(
    app, browser, user, receiver, deliver, flask, is_disabled
):
    for result in ("circuit_open", "circuit_open", "500"):  # the last one has a time of its own
        deliver("pending", result)
    deliver("dead", "500")
    deliver("dead", "disabled", ago=timedelta(hours=1))
    deliver("delivered", "204")
    later = utcnow() + timedelta(hours=1)
    name = "webhook_disabled_at" if is_disabled else "webhook_open_until"
    change(app, user, webhook_failures=9, **{name: later})
    page = browser.get("/profile/webhooks").text
    assert ">Resume and send 3</button>" in page and "Redeliver all failed" not in page
    post(browser, "/profile/webhooks/enable")
    told = "Webhooks are sent again, 3 that waited among them."
    assert told in browser.get("/profile/webhooks").text
    flask("webhooks", "deliver", "--threads", 1)
    assert states(app) == ["delivered", "delivered", "pending", "dead", "delivered", "delivered"]
    assert len(receiver.received) == 3


def test_what_is_being_tried_just_now_is_not_resumed(app, browser, deliver):
    """Its outcome would be written over what resuming had made of it."""
    held, free = deliver("dead", "disabled"), deliver("dead", "disabled")
    lease = {"lease": "another", "leased_until": utcnow() + timedelta(minutes=1)}
    records.change(app, Delivery, held, **lease)
    post(browser, "/profile/webhooks/enable")
    with app.app_context():
        assert [db.session.get(Delivery, id).state for id in (held, free)] == ["dead", "pending"]
