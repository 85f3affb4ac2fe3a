"""What the operator finds and puts right: holders of numbers, unknown numbers, unmatched SMS."""

from datetime import timedelta

import pytest

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Message, PhoneNumber, SystemSummary, UserSummary
from service.database.writing import transact
from tests.fixtures import NUMBER
from tests.records import change, messages, totals

OTHER = "447400849540"
COUNTS = ("sms", "otps", "numbers")


@pytest.fixture
def unknown(app):
    """Record a request of the user whose number never reached us; gives the row's id."""

    def make(user_id, ago=timedelta(minutes=30)):
        row = PhoneNumber(
            user_id=user_id, state="unknown", country_id=1, requested_at=utcnow() - ago,
            idempotency_hash="h",
        )  # fmt: skip
        with app.app_context():
            transact(lambda tx: tx.session.add(row))
            return row.id

    return make


@pytest.fixture
def sms(client, make_provider):
    """Take in an SMS; gives the answer's data."""
    path = make_provider("gw")

    def post(text="Your code is 123456", to=NUMBER, **fields):
        return client.post(path, json={"to": to, "text": text} | fields).json["data"]

    return post


# --- finding ------------------------------------------------------------------------------


def test_numbers_list(flask, make_user, assign, unknown):
    ann, ben = make_user(), make_user(name="Ben")
    first, second, lost = assign(ann.id), assign(ben.id, OTHER), unknown(ann.id)

    def ids(*options):
        return [row["id"] for row in flask("numbers", "list", *options, "--json")]

    assert ids() == [lost, second, first]
    assert ids("--state", "unknown") == [lost]
    assert ids("--user", ben.id) == [second]
    assert ids("--user", ann.id, "--state", "assigned") == [first]
    assert ids("--limit", 1) == [lost]
    shown = flask("numbers", "list", "--user", ben.id).splitlines()
    assert shown[0].split()[:4] == ["id", "user", "number", "state"]
    assert shown[1].split()[:4] == [str(second), str(ben.id), f"+{OTHER}", "assigned"]


def test_who_held_a_number_and_what_came_for_them(flask, make_user, assign, sms):
    ann, ben = make_user(), make_user(name="Ben")
    first = assign(ann.id, ago=timedelta(days=2))
    sms("for Ann: code 111111")
    second = assign(ben.id, ago=timedelta(hours=1))
    sms("for Ben: code 222222")
    assign(ben.id, OTHER)
    both = flask("numbers", "holder", f"+{NUMBER}", "--json")
    assert [(row["id"], row["user"], row["name"]) for row in both] == [
        (first, ann.id, "Ann"),
        (second, ben.id, "Ben"),
    ]
    assert both[0]["until"] == both[1]["from"] and both[1]["until"] is None
    assert [message["id"] for message in both[0]["messages"]] == [1]
    assert "111111" not in str(both)

    def at(ago):
        time = (utcnow() - ago).isoformat()
        return [row["user"] for row in flask("numbers", "holder", NUMBER, "--at", time, "--json")]

    assert at(timedelta(days=3)) == []
    assert at(timedelta(days=1)) == [ann.id]
    assert at(timedelta(minutes=1)) == [ben.id]
    assert "nobody held +15550009999" in flask("numbers", "holder", "+1 555 000 9999")
    shown = flask("numbers", "holder", f"00{NUMBER}", "--at", both[0]["from"])
    assert "Ann" in shown and "Ben" not in shown and "SMS:" in shown
    assert "NUMBER" in flask("numbers", "holder", "Ann", exit_code=2)


def test_messages_list(flask, make_user, assign, sms):
    ann, ben = make_user(), make_user(name="Ben")
    assign(ann.id)
    assign(ben.id, OTHER)
    mine, his, lost = sms(), sms(to=OTHER), sms("lost: code 333333", to="15550001111")

    def ids(*options):
        return [row["id"] for row in flask("messages", "list", *options, "--json")]

    assert ids() == [lost["id"], his["id"], mine["id"]]
    assert ids("--user", ann.id) == [mine["id"]]
    assert ids("--number", f"+{OTHER}") == [his["id"]]
    assert ids("--unmatched") == [lost["id"]]
    assert ids("--limit", 1) == [lost["id"]]
    assert ids("--since", (utcnow() + timedelta(hours=1)).isoformat()) == []
    assert len(ids("--since", (utcnow() - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%MZ"))) == 3
    [row] = flask("messages", "list", "--unmatched", "--json")
    assert (row["unmatched"], row["has_code"], row["webhook"]) == ("unknown_number", True, "none")


def test_texts_and_codes_are_shown_only_when_asked_for_which_is_audited(flask, sms):
    sms("hello: code 333333")
    for args in (("messages", "list"), ("messages", "list", "--json")):
        assert "333333" not in str(flask(*args))
    assert flask("audit", "--json") == []
    [row] = flask("messages", "list", "--reveal", "--json")
    assert (row["otp_code"], row["sms_text"]) == ("333333", "hello: code 333333")
    entry = flask("audit", "--json")[0]
    details = {"first": 1, "last": 1, "count": 1}
    assert (entry["action"], entry["details"]) == ("codes_revealed", details)


# --- unknown numbers ----------------------------------------------------------------------


def test_an_unknown_number_is_resolved_with_the_sms_that_came_meanwhile(
    app, flask, make_user, unknown, sms, receiver
):
    user = make_user(webhook_url=receiver.url)
    id = unknown(user.id)
    sms("too early: code 111111", received_at=(utcnow() - timedelta(hours=2)).isoformat())
    sms("Your code is 222222", message_id="x")
    sms("no secret in here")
    for _ in range(2):  # the same again changes nothing
        row = flask("numbers", "resolve", id, f"+{NUMBER}", "--json")
        assert (row["state"], row["number"]) == ("assigned", f"+{NUMBER}")
        assert row["assigned_at"] == row["requested_at"]
    assert [(m.user_id, m.unmatched) for m in messages(app)] == [
        (None, "unknown_number"),
        (user.id, None),
        (user.id, None),
    ]
    [(_, body)] = receiver.received
    assert b"222222" in body
    assert totals(app, UserSummary, *COUNTS) == (2, 1, 1)
    assert totals(app, SystemSummary, *COUNTS, "unmatched") == (3, 2, 1, 1)
    resolved = [e for e in flask("audit", "--json") if e["action"] == "number_resolved"]
    assert [(e["user"], e["details"]) for e in resolved] == [
        (user.id, {"number_id": id, "state": "assigned"})
    ]
    assert sms("Your code is 444444")["matched"]


def test_of_an_unknown_number_may_be_found_that_there_was_none(app, flask, make_user, unknown):
    id = unknown(make_user().id)
    for _ in range(2):
        assert flask("numbers", "resolve", id, "--none", "--json")["state"] == "refused"
    assert totals(app, UserSummary, "requests", "numbers") == (0, 0)
    with app.app_context():  # a repeat of that call asks for another number
        assert db.session.get(PhoneNumber, id).idempotency_hash is None
    assert len([e for e in flask("audit", "--json") if e["action"] == "number_resolved"]) == 1
    assert "is refused" in flask("numbers", "resolve", id, NUMBER, exit_code=2)


def test_a_request_whose_process_died_is_resolved_too(app, flask, make_user, unknown):
    user = make_user()
    for ago, exit_code in ((timedelta(seconds=1), 2), (timedelta(minutes=30), 0)):
        id = unknown(user.id, ago)
        change(app, PhoneNumber, id, state="requested", idempotency_hash=None)
        told = flask("numbers", "resolve", id, NUMBER, exit_code=exit_code)
        assert ("is requested" in told) == bool(exit_code)
    # An unknown one was counted when its call ended
    assert totals(app, UserSummary, "requests", "numbers") == (1, 1)


@pytest.mark.parametrize("args", [(), (NUMBER, "--none"), ("12",), ("x" * 30,)])
def test_numbers_resolve_wants_a_number_or_none(flask, make_user, unknown, args):
    id = unknown(make_user().id)
    assert "Usage" in flask("numbers", "resolve", id, *args, exit_code=2)
    assert flask("numbers", "list", "--json")[0]["state"] == "unknown"


def test_only_an_unknown_number_is_resolved(flask, make_user, assign):
    id = assign(make_user().id)
    for number in (OTHER, "--none"):
        assert f"has +{NUMBER}" in flask("numbers", "resolve", id, number, exit_code=2)
    for bad in (99, "9" * 26, "x", 0):
        assert "ID" in flask("numbers", "resolve", bad, NUMBER, exit_code=2)


# --- unmatched SMS ------------------------------------------------------------------------


def test_an_unmatched_sms_is_given_to_who_held_the_number(
    app, flask, make_user, assign, sms, receiver
):
    ann, ben = make_user(webhook_url=receiver.url), make_user(name="Ben")
    assign(ann.id, ago=timedelta(days=2))
    second = assign(ben.id, ago=timedelta(seconds=10))
    late = (utcnow() - timedelta(seconds=30)).isoformat()
    id = sms("Your code is 123456", received_at=late)["id"]
    assert messages(app)[0].unmatched == "assignment_changed"
    for _ in range(2):
        row = flask("messages", "assign", id, ann.id, "--json")
        assert (row["user"], row["unmatched"], row["webhook"]) == (ann.id, None, "delivered")
    assert len(receiver.received) == 1
    assert totals(app, UserSummary, "sms", "otps") == (1, 1)
    assert totals(app, SystemSummary, "sms", "otps", "unmatched") == (1, 1, 0)
    assert [e["action"] for e in flask("audit", "--user", ann.id, "--json")] == ["message_assigned"]
    told = flask("messages", "assign", id, ben.id, exit_code=2)
    assert f"is that of user {ann.id}" in told
    assert [m["id"] for m in flask("numbers", "holder", NUMBER, "--json")[1]["messages"]] == []
    assert second


def test_a_code_that_was_not_found_then_is_found_now(app, flask, make_user, assign, sms, receiver):
    """As when the words of a language were added since."""
    user = make_user(webhook_url=receiver.url)
    id = sms()["id"]
    change(app, Message, id, otp_code=None, otp_rule=None)
    with app.app_context():
        transact(lambda tx: tx.count(None, utcnow(), otps=-1))
    assign(user.id)
    assert flask("messages", "assign", id, user.id, "--json")["has_code"]
    assert b"123456" in receiver.received[0][1]
    for model in (UserSummary, SystemSummary):
        assert totals(app, model, "sms", "otps") == (1, 1)


def test_an_sms_is_not_given_to_who_never_held_its_number(app, flask, make_user, assign, sms):
    user = make_user()
    assign(user.id, OTHER)
    id = sms()["id"]
    assert f"never held +{NUMBER}" in flask("messages", "assign", id, user.id, exit_code=2)
    assert "no message 99" in flask("messages", "assign", 99, user.id, exit_code=2)
    change(app, Message, id, digits="")
    assert "--number" in flask("messages", "assign", id, user.id, exit_code=2)
    assert messages(app)[0].user_id is None
    row = flask("messages", "assign", id, user.id, "--number", f"+{OTHER}", "--json")
    assert (row["user"], row["number"]) == (user.id, f"+{OTHER}")
