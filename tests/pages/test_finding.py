"""Finding numbers and messages: by number, sender, text, time and state, in pages."""

import re
import time
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert

from service import search
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Delivery, Message, PhoneNumber
from tests.databases import on_sqlite
from tests.forms import logged_in, post

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def browser(browser):
    """It shows codes and texts."""
    post(browser, "/profile/reveal", reveal="1")
    return browser


@pytest.fixture
def store(app, user):
    """Add rows of the user as they are."""

    def add(model, rows):
        defaults = {
            Message: {"provider": "gw", "digits": "12025550100", "received_at": NOON},
            PhoneNumber: {"state": "assigned", "country_id": 1, "requested_at": NOON},
            Delivery: {"body": b"{}"},
        }[model]
        with app.app_context(), db.engine.begin() as connection:
            connection.execute(insert(model), [{"user_id": user.id} | defaults | r for r in rows])

    return add


def texts(browser, query=""):
    page = browser.get(f"/profile/messages{query}").text
    return re.findall(r'<p class="sms"[^>]*>([^<]*)<', page)


def numbers(browser, query=""):
    page = browser.get(f"/profile/numbers{query}").text
    return re.findall(r"<strong id=.number-\d+.>\+(\d+)<", page)


def counts(page):
    return re.findall(r'class="count">([^<]+)<', page)


def test_one_field_finds_numbers_in_any_notation_senders_and_texts(browser, store):
    store(PhoneNumber, [{"digits": "447400849540"}, {"digits": "12025550100"}])
    store(
        Message,
        [
            {"digits": "447400849540", "sms_text": "one", "sender": None},
            {"digits": "12025550100", "sms_text": "two 50% off", "sender": "Amazon"},
            {"digits": "12025550100", "sms_text": "three amazing_things", "sender": None},
        ],
    )
    for spelled in (
        "%2B44+7400+849540",
        "00447400849540",
        "07400+849-540",
        "(0)7400849540",
        "849540",
    ):
        assert numbers(browser, f"?q={spelled}") == ["447400849540"], spelled
    for spelled in ("%2B44+7400+849540", "07400+849-540"):
        assert texts(browser, f"?q={spelled}") == ["one"], spelled
    assert texts(browser, "?q=amazon") == ["two 50% off"]
    assert texts(browser, "?q=Amaz") == ["three amazing_things", "two 50% off"]
    # What means something in LIKE means itself here
    assert texts(browser, "?q=0%25+o") == ["two 50% off"]
    assert texts(browser, "?q=amazing_t") == ["three amazing_things"]
    assert texts(browser, "?q=amazing%25t") == texts(browser, "?q=tw_") == []
    page = browser.get("/profile/messages?q=Amaz").text
    assert counts(page) == ["2", "0"] and 'value="Amaz"' in page
    assert 'href="/profile/numbers?q=Amaz"' in page
    assert "Nothing found." in browser.get("/profile/numbers?q=Amaz").text
    link = re.search(r'class="number" href="([^"]+)"', browser.get("/profile/numbers").text)[1]
    assert re.findall(">(three|two|one) ?", browser.get(link).text)


def test_only_the_users_own_are_found(app, browser, make_user, store):
    other = make_user(name="Ben").id
    store(PhoneNumber, [{"digits": "447400849540", "user_id": other}])
    store(Message, [{"digits": "447400849540", "sms_text": "secret", "user_id": other}])
    for query in ("", "?q=447400849540", "?q=secret", "?q=8495"):
        assert texts(browser, query) == numbers(browser, query) == []
    assert browser.get("/profile/messages?before=1").status_code == 404
    assert browser.get("/profile/numbers?after=1").status_code == 404


def test_days_are_utc_and_both_included(browser, store):
    days = [datetime(2026, 3, 10, tzinfo=UTC) + timedelta(seconds=s) for s in (-1, 0, 86399, 86400)]
    store(Message, [{"sms_text": str(n), "received_at": at} for n, at in enumerate(days)])
    rows = [{"digits": f"1202555000{n}", "requested_at": at} for n, at in enumerate(days)]
    store(PhoneNumber, rows)
    for query, wanted in (
        ("?since=2026-03-10&until=2026-03-10", "21"), ("?since=2026-03-10", "321"),
        ("?until=2026-03-10", "210"), ("", "3210"), ("?since=&until=", "3210"),
    ):  # fmt: skip
        assert "".join(texts(browser, query)) == wanted
        assert [digits[-1] for digits in numbers(browser, query)] == list(wanted)
    for day in ("tomorrow", "9999-12-31", "0001-01-01"):
        for end in ("since", "until"):
            assert browser.get(f"/profile/messages?{end}={day}").status_code == 404


def test_states_are_those_of_the_webhook_and_of_the_number(browser, store):
    store(Message, [{"sms_text": state} for state in ("none", "dead", "delivered", "pending")])
    rows = [(2, "dead"), (3, "delivered"), (4, "pending")]
    store(Delivery, [{"webhook_id": str(id), "message_id": id, "state": s} for id, s in rows])
    for state in ("none", "dead", "delivered", "pending"):
        assert texts(browser, f"?state={state}") == [state]
    assert len(texts(browser, "?state=nonsense")) == 4
    store(PhoneNumber, [{"digits": "12025550101"}])
    store(PhoneNumber, [{"digits": "12025550102", "first_sms_at": NOON}])
    store(PhoneNumber, [{"state": state} for state in ("unknown", "requested", "refused")])
    assert numbers(browser, "?state=waiting") == ["12025550101"]
    assert numbers(browser, "?state=used") == ["12025550102"]
    assert browser.get("/profile/numbers?state=unknown").text.count(">no number<") == 1
    assert browser.get("/profile/numbers").text.count("<li>\n") >= 3
    assert counts(browser.get("/profile/numbers").text) == ["4", "3"]


def test_pages_lead_newer_and_older_with_their_positions(browser, store):
    """Though half of them have the same time."""
    at = [NOON + timedelta(seconds=n // 2) for n in range(45)]
    store(Message, [{"sms_text": f"n{n}", "received_at": at[n]} for n in range(45)])
    newest = [f"n{n}" for n in reversed(range(45))]

    def page(query):
        text = browser.get(query).text
        links = {
            name: query.replace("&amp;", "&")
            for query, name in re.findall(r'href="([^"]+)">(Newer|Older|Newest)<', text)
        }
        where = re.search(r"<span>([^<]+ of [^<]+)</span>", text)
        return re.findall(r'class="sms"[^>]*>([^<]+)<', text), links, where and where[1]

    shown, links, where = page("/profile/messages?q=n&state=none")
    assert (shown, where, set(links)) == (newest[:20], "1\u201320 of 45", {"Older"})
    shown, links, where = page(links["Older"])
    assert (shown, where, set(links)) == (newest[20:40], "21\u201340 of 45", {"Newer", "Older"})
    shown, last, where = page(links["Older"])
    assert (shown, where, set(last)) == (newest[40:], "41\u201345 of 45", {"Newer"})
    assert page(last["Newer"])[0::2] == (newest[20:40], "21\u201340 of 45")
    assert page(links["Newer"])[0::2] == (newest[:20], "1\u201320 of 45")
    shown, links, where = page("/profile/messages?before=1")
    assert (shown, set(links), where) == ([], {"Newest"}, None)


def test_what_is_counted_and_looked_through_is_bounded_and_says_so(browser, store, monkeypatch):
    monkeypatch.setattr(search, "BOUND", 50)
    rows = [{"sms_text": f"n{n}", "received_at": NOON + timedelta(days=n)} for n in range(60)]
    store(Message, rows)
    page = browser.get("/profile/messages").text
    assert "1\u201320 of 50+" in page and counts(page)[0] == "50+" and "Of the newest" not in page
    page = browser.get("/profile/messages?q=n5").text
    assert "Of the newest 50 messages; choose dates" in page and counts(page)[0] == "10"
    assert texts(browser, "?q=n5")[-1] == "n50"  # and not n5
    assert texts(browser, "?q=n5&until=2026-04-10") == ["n5"]
    assert "after the first 50 of 50+" in browser.get("/profile/messages?before=5").text


@on_sqlite
def test_texts_are_searched_by_who_gave_the_key_in_the_last_15_minutes(browser, store, monkeypatch):
    """Else who has but a copy of the cookie could guess a code, digit by digit."""
    store(Message, [{"sms_text": "code 123456", "otp_code": "123456", "sender": "Bank"}])
    for query in ("?q=3456", "?q=code", "?q=bank"):
        assert texts(browser, query) == ["code 123456"]
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began + 901)
    for query, found in (("?q=3456", 0), ("?q=code", 0), ("?q=Bank", 1)):
        page = browser.get(f"/profile/messages{query}").text
        assert page.count("text of 11 characters") == found
        assert "Texts were not searched" in page and "123456" not in page


@on_sqlite
def test_a_search_in_a_list_that_is_hidden_is_kept_while_codes_are_shown(app, user, store):
    client = logged_in(app, user.key)
    response = post(client, "/profile/reveal?q=a%26b&before=7&x=1", reveal="1", page="messages")
    assert response.location == "/profile/messages?q=a%26b&before=7"


@pytest.mark.parametrize("path", ["messages", "numbers", "webhooks"])
def test_pages_of_very_many_are_read_by_an_index(app, browser, user, store, path):
    """Nothing is sorted, and no table read through, to show a page of them."""
    model, time_of = {
        "messages": (Message, Message.received_at), "webhooks": (Delivery, Delivery.created_at),
        "numbers": (PhoneNumber, PhoneNumber.requested_at),
    }[path]  # fmt: skip
    now = utcnow()
    rows = [
        {"id": n, time_of.key: now - timedelta(seconds=5000 - n)}
        | ({"webhook_id": str(n)} if model is Delivery else {})
        | ({"sms_text": "x"} if model is Message else {})
        for n in range(1, 5001)
    ]
    store(model, rows)
    with app.app_context():
        query = db.select(model.id).where(model.user_id == user.id)
        query = query.where((time_of <= now) & ((time_of < now) | (model.id < 9)))
        newest = query.order_by(time_of.desc(), model.id.desc()).limit(21)
        text = newest.compile(db.engine, compile_kwargs={"literal_binds": True})
        sqlite = db.engine.dialect.name == "sqlite"
        explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
        with db.engine.connect() as connection:
            plan = str(connection.exec_driver_sql(f"{explain}{text}".replace("%", "%%")).all())
    assert f"user_id_{time_of.key}_id" in plan
    assert "TEMP B-TREE" not in plan and "filesort" not in plan
