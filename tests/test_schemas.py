"""The shapes of what comes in: what is taken, what is refused, and how it is read."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Message, Operator, PhoneNumber
from service.database.writing import transact
from tests.conftest import MAIN, SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import NUMBER

BIGGEST = 2**31 - 1


def all_of(app, model):
    with app.app_context():
        return db.session.scalars(select(model).order_by(model.id)).all()


# --- the main server's answers ------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "taken"),
    [
        ({"id": 7, "name": "é" * 255}, True),
        ({"id": 7, "name": "é" * 256}, False),
        ({"id": BIGGEST, "name": "Op"}, True),
        ({"id": 2**31, "name": "Op"}, False),
        ({"id": 2**63, "name": "Op"}, False),
        ({"id": 0, "name": "Op"}, True),
        ({"id": -1, "name": "Op"}, False),
        ({"id": "7", "name": "Op"}, False),
        ({"id": 7.5, "name": "Op"}, False),
        ({"id": 7, "name": "Op", "country_id": BIGGEST}, True),
        ({"id": 7, "name": "Op", "country_id": None}, True),
        ({"id": 7, "name": "Op", "country_id": 2**31}, False),
        ({"id": 7, "name": "Op", "country_id": -1}, False),
        ({"id": 7, "name": "Op", "country_id": "1"}, False),
        ({"id": 7, "name": 7}, False),
        ({"name": "Op"}, False),
        ("Op", False),
    ],
)
def test_an_operator_that_no_record_can_hold_costs_no_number(
    app, client, make_user, requests_mock, operator, taken
):
    """The number was granted: it is recorded all the same, and so are the other operators."""
    data = {"phone_number": "+12025550123", "operator": operator}
    data["operators"] = [{"id": 9, "name": "Good"}]
    body = {"status": "success", "data": data}
    requests_mock.get(f"{MAIN}/api/get-number/{SYSTEM_KEY}", json=body)
    response = client.get(f"/api/get-number/{make_user().key}?country_id=1")
    assert response.status_code == 200
    assert [row.digits for row in all_of(app, PhoneNumber)] == ["12025550123"]
    told = {row.id: (row.name, row.country_id) for row in all_of(app, Operator)}
    expected = {9: ("Good", 1)}
    if taken:
        expected[operator["id"]] = (operator["name"], operator.get("country_id", 1))
    assert told == expected


@on_sqlite
@pytest.mark.parametrize(
    ("countries", "operators", "status"),
    [
        ([{"id": 1}], [], 200),
        ([{"id": 1, "phone_code": None}], [], 200),
        ([{"id": 1, "name": "A", "more": {}}], [{"id": 1, "name": "O", "more": 1}], 200),
        ([{"id": 1}], [{"id": 1, "name": "O", "country_id": None}], 200),
        ([{"id": 1.5}], [], 500),
        ([{"name": "A"}], [], 500),
        ([{"id": 1, "name": 5}], [], 500),
        ([{"id": 1, "phone_code": ["1"]}], [], 500),
        ([], [{"id": 1}], 500),
        ([], [{"id": "1", "name": "O"}], 500),
        (None, [], 500),
    ],
)
def test_the_lists_of_init(client, make_user, requests_mock, countries, operators, status):
    data = {"countries": countries, "operators": operators, "more": 1}
    body = {"status": "success", "data": data}
    requests_mock.get(f"{MAIN}/api/init/{SYSTEM_KEY}", json=body)
    response = client.get(f"/api/init/{make_user().key}")
    assert response.status_code == status
    assert status == 500 or response.json["data"] == data


@on_sqlite
@pytest.mark.parametrize(
    ("number", "digits"),
    [
        ("+1234", "1234"),
        ("+123", None),
        ("+" + "1" * 20, "1" * 20),
        ("+" + "1" * 21, None),
        ("001202", "1202"),
        ("1 202.555-(0123)\t\u00a0", "12025550123"),
        ("+00123456", "00123456"),
        ("++12025550123", None),
        ("1202x5550123", None),
        ("+١٢٣٤٥", None),
    ],
)
def test_the_spellings_of_a_number(app, client, make_user, requests_mock, number, digits):
    body = {"status": "success", "data": {"phone_number": number}}
    requests_mock.get(f"{MAIN}/api/get-number/{SYSTEM_KEY}", json=body)
    client.get(f"/api/get-number/{make_user().key}?country_id=1")
    assert [row.digits for row in all_of(app, PhoneNumber)] == [digits]


# --- queries ------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize(
    ("query", "low", "high"),
    [
        ("numbers?limit", 1, 200),
        ("numbers?before", 0, 2**63 - 1),
        ("messages?limit", 1, 200),
        ("messages?after", 0, 2**63 - 1),
        ("messages?wait", 0, 25),
        ("summary?days", 1, 366),
        ("get-number?country_id", 0, BIGGEST),
        ("get-number?country_id=1&operator_id", 0, BIGGEST),
    ],
)
def test_the_range_of_each_number_in_a_query(
    client, make_user, make_provider, assign, requests_mock, query, low, high
):
    body = {"status": "success", "data": {"phone_number": "+12025550123"}}
    requests_mock.get(f"{MAIN}/api/get-number/{SYSTEM_KEY}", json=body)
    user = make_user()
    assign(user.id)
    client.post(make_provider(), json={"to": NUMBER, "text": "one, so that no wait is waited"})
    headers = {"X-API-Key": user.key}
    name = query.replace("=1&", "?").rpartition("?")[2]

    def call(value):
        return client.get(f"/api/{query}={value}", headers=headers)

    assert [call(value).status_code for value in (low, high)] == [200, 200]
    for value in (low - 1, high + 1):
        response = call(value)
        message = response.json["message"]
        assert (response.status_code, message) == (400, f"{name} must be between {low} and {high}")
    response = call("1x")
    assert (response.status_code, response.json["message"]) == (400, f"{name} must be an integer")


@on_sqlite
def test_user_id_begins_at_1(client):
    response = client.get(f"/api/numbers/{SYSTEM_KEY}?user_id=0")
    message = f"user_id must be between 1 and {BIGGEST}"
    assert (response.status_code, response.json["message"]) == (400, message)


@on_sqlite
def test_every_parameter_that_is_wrong_is_told_and_unknown_ones_are_ignored(client, make_user):
    key = make_user().key
    query = "operator_id=x&number_format=x&country_id=1&country_id=2&other=x"
    answer = client.get(f"/api/get-number/{key}?{query}").json
    assert answer["message"] == "country_id was given more than once"
    assert answer["errors"] == {
        "country_id": ["country_id was given more than once"],
        "operator_id": ["operator_id must be an integer"],
        "number_format": ["number_format must be one of full, national, remove_plus"],
    }


@on_sqlite
def test_what_is_shown_without_being_asked_for(app, client, make_user, make_provider):
    """The 50 newest numbers, the 50 oldest messages, 30 days, and no wait."""
    user, ingest = make_user(), make_provider()
    at = utcnow() - timedelta(hours=1)
    columns = {"user_id": user.id, "state": "assigned", "country_id": 1, "assigned_at": at}
    with app.app_context():
        rows = [PhoneNumber(digits=f"{12025550000 + n}", **columns) for n in range(51)]
        transact(lambda tx: db.session.add_all(rows))
    call = {"headers": {"X-API-Key": user.key}}
    assert client.get("/api/messages", **call).json["data"] == {"messages": []}
    for n in range(51):
        client.post(ingest, json={"to": "12025550000", "text": f"{n}"})
    assert len(client.get("/api/numbers", **call).json["data"]["numbers"]) == 50
    assert len(client.get("/api/messages", **call).json["data"]["messages"]) == 50
    assert len(client.get("/api/summary", **call).json["data"]["days"]) == 30


# --- incoming SMS -------------------------------------------------------------------------


@pytest.fixture
def send(client):
    """Send an SMS as the main server does; gives the status."""

    def send(webhook_id="1", **data):
        data = {"phone_number": f"+{NUMBER}", "sms_text": "Hello"} | data
        return client.post(
            f"/api/ingest/{SYSTEM_KEY}",
            data=json.dumps({"event": "otp_received", "data": data}),
            headers={"webhook-id": webhook_id, "Content-Type": "application/json"},
        ).status_code

    return send


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("phone_number", "1" * 20, 200),
        ("phone_number", "1" * 21, 400),
        ("phone_number", None, 400),
        ("sms_text", None, 400),
    ],
)
def test_what_no_record_can_hold_is_400_and_not_stored(app, send, field, value, status):
    assert send(**{field: value}) == status
    assert len(all_of(app, Message)) == (status == 200)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("received_at", "yesterday"),
        ("received_at", "9" * 15),
        ("received_at", True),
        ("received_at", -1e300),
        ("received_at", {"at": 1}),
        ("otp_code", "é" * 32),  # letters of codes are ASCII
        ("otp_code", "A" * 33),
        ("otp_code", "--"),
        ("otp_code", "A!"),
        ("otp_code", ["1"]),
        ("provider", ["carrier"]),
        ("provider", None),
    ],
)
def test_an_optional_field_never_costs_the_sms(app, send, caplog, field, value):
    """What cannot be read counts as not given, and is logged."""
    before = utcnow()
    assert send(sms_text="Your code is 123456", **{field: value}) == 200
    [message] = all_of(app, Message)
    assert (message.otp_code, message.provider) == ("123456", "main-server")
    assert before <= message.received_at <= utcnow()
    assert (f"event=sms_field_ignored field={field}" in caplog.text) == (value is not None)


def test_what_is_longer_than_a_record_is_cut(app, send):
    assert send(provider="é" * 65, sms_text="x" * 40_001, webhook_id="i" * 300) == 200
    assert send(provider="é" * 64, sms_text="x" * 40_000, webhook_id="i" * 300) == 200
    cut, whole = all_of(app, Message)
    assert cut.provider == whole.provider == "é" * 64
    assert cut.sms_text == "x" * 39_994 + " [cut]"
    assert whole.sms_text == "x" * 40_000


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (1234, "1234"),
        (1234.0, "1234"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("whole \U0001f600", "whole \U0001f600"),
        ("", ""),
        (1.5, None),
        (True, None),
        (["1234"], None),
        ({"text": "1234"}, None),
    ],
)
def test_a_text_may_come_as_a_whole_number_and_with_half_a_character(app, send, sent, stored):
    assert send(sms_text=sent) == (400 if stored is None else 200)
    expected = [] if stored is None else [stored]
    assert [message.sms_text for message in all_of(app, Message)] == expected


@on_sqlite
@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (123456, "123456"),
        (" 123 456\n", "123456"),
        ("G-123456", "G-123456"),
        ("-1_2", "-1_2"),
        ("١٢٣٤", "1234"),
        ("12\uff13\uff14", "1234"),
    ],
)
def test_a_code_is_stored_as_people_type_it(app, send, sent, stored):
    assert send(otp_code=sent) == 200
    assert [message.otp_code for message in all_of(app, Message)] == [stored]


@pytest.fixture
def elsewhere(monkeypatch):
    """The server's clock is nine hours ahead of UTC."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "XYZ-9")
        time.tzset()
        yield
    time.tzset()


NOON = datetime(2024, 5, 17, 12, tzinfo=UTC)


@on_sqlite
@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("2024-05-17T12:00:00Z", NOON),
        ("2024-05-17T12:00:00", NOON),
        ("2024-05-17 14:00:00.250+02:00", NOON + timedelta(seconds=0.25)),
        (1715947200, NOON),
        (1715947200.25, NOON + timedelta(seconds=0.25)),
        ("1715947200", NOON),
        ("1715947200.25", NOON + timedelta(seconds=0.25)),
        (1715947200250, NOON + timedelta(seconds=0.25)),
        ("1715947200250", NOON + timedelta(seconds=0.25)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_the_spellings_of_a_time(app, send, elsewhere, sent, read):
    """Where none is named, the zone is UTC, and not the server's own."""
    assert send(received_at=sent) == 200
    assert [message.received_at for message in all_of(app, Message)] == [read]


@on_sqlite
def test_times_go_out_in_utc_with_a_z(client, make_user, make_provider, assign):
    user = make_user()
    assign(user.id, ago=timedelta(days=10_000))
    sent = "2024-05-17T14:00:00+02:00"
    client.post(make_provider(), json={"to": NUMBER, "text": "x", "received_at": sent})
    (message,) = client.get(f"/api/messages/{user.key}").json["data"]["messages"]
    assert message["received_at"] == "2024-05-17T12:00:00Z"
    assert message["phone_number"] == f"+{NUMBER}"
