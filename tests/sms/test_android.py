"""The Android app SMS Gateway: whose an SMS is on a phone with one SIM or two, and its identity."""

import hashlib
import hmac
import json
import time
from datetime import timedelta

import pytest

from service.database.columns import utcnow
from service.database.models import Message
from tests.databases import on_sqlite
from tests.fixtures import NUMBER, android_envelope
from tests.records import change, messages

SECRET = "signing-key"
# Of another SIM
OTHER = "447400849540"

pytestmark = on_sqlite


@pytest.fixture
def phone(app, client, flask, make_user, assign, receiver):
    """Add a phone with these options; gives a function that posts its events."""
    for digits in (NUMBER, OTHER):
        assign(make_user(name=digits, webhook_url=receiver.url).id, digits, timedelta(days=9999))

    def add(*options):
        command = ("providers", "add", "phone", "--format", "android-sms-gateway", *options)
        path = flask(*command, "--json")["ingest_path"]
        return lambda event=None, **sent: client.post(path, **(sent or {"json": event}))

    return add


def signed(body, secret=SECRET, timestamp=None, age=0):
    data = json.dumps(body).encode()
    timestamp = str(int(time.time()) - age) if timestamp is None else timestamp
    signature = hmac.new(secret.encode(), data + timestamp.encode(), hashlib.sha256).hexdigest()
    headers = {"X-Signature": signature, "X-Timestamp": timestamp}
    return {"data": data, "headers": headers, "content_type": "application/json"}


def refused(response, status, word):
    return response.status_code == status and word in response.json["message"]


def test_it_is_signed(app, phone):
    send = phone("--secret", SECRET)
    assert send(**signed(android_envelope())).status_code == 200
    [message] = messages(app)
    assert (message.digits, message.sender) == (NUMBER, "AMZ")
    assert message.received_at.isoformat() == "2026-11-24T03:00:00+00:00"
    assert refused(send(**signed(android_envelope(), secret="another")), 401, "signature")
    assert refused(send(android_envelope()), 401, "signature")
    for header in ("X-Signature", "X-Timestamp"):  # both are looked at
        for wrong in ("1732435201", "é"):
            sent = signed(android_envelope())
            sent["headers"][header] = wrong
            assert refused(send(**sent), 401, "signature")
    sent = signed(android_envelope(), timestamp="")
    del sent["headers"]["X-Timestamp"]
    assert refused(send(**sent), 401, "signature")
    assert len(messages(app)) == 1


def test_an_old_signature_is_taken_only_for_what_is_stored(app, phone, caplog):
    """Whoever has overheard a request cannot bring another SMS in by it, nor the same one anew."""
    send = phone("--secret", SECRET)
    assert send(**signed(android_envelope(), age=290)).json["data"]["duplicate"] is False
    assert send(**signed(android_envelope(), age=4000)).json["data"]["duplicate"] is True
    for age in (310, -310, 10**6):
        assert refused(
            send(**signed(android_envelope(messageId="other"), age=age)), 401, "signature"
        )
    assert "event=signature_out_of_time format=android-sms-gateway seconds=31" in caplog.text
    assert len(messages(app)) == 1


def test_a_signed_sms_has_an_id(app, phone):
    send = phone("--secret", SECRET)
    for envelope in (android_envelope(messageId=None), android_envelope(receivedAt=None)):
        answer = send(**signed(envelope))
        assert answer.status_code == 400 and list(answer.json["errors"]) == ["message_id"]
    assert messages(app) == []


@pytest.mark.parametrize(
    ("numbers", "sim", "recipient", "digits"),
    [
        # A recipient in international form is what the phone means
        ((), 1, f"+{NUMBER}", NUMBER),
        ((OTHER,), 1, f"+{NUMBER}", NUMBER),
        ((OTHER,), 2, f"00{NUMBER}", NUMBER),
        ((), None, f"\u202a+{NUMBER}\u202c", NUMBER),
        # The number of SIM 1, or of a phone that does not tell its SIM
        ((NUMBER,), 1, None, NUMBER),
        ((NUMBER,), 1, "", NUMBER),
        ((NUMBER,), 1, "Unknown", NUMBER),
        ((NUMBER,), 1, NUMBER[1:], NUMBER),
        ((NUMBER,), "1", None, NUMBER),
        ((NUMBER,), None, None, NUMBER),
        ((NUMBER,), None, " ", NUMBER),
        ((NUMBER,), None, NUMBER[1:], NUMBER),
        ((NUMBER,), None, "SIM1", NUMBER),
        # Another SIM's is nobody's, or whoever's it is
        ((NUMBER,), 2, None, ""),
        ((NUMBER,), 2, "", ""),
        ((NUMBER,), 2, "Unknown", ""),
        ((NUMBER,), 2, "07400849540", ""),
        ((NUMBER,), None, "SIM2", ""),
        ((NUMBER,), None, "07400849540", ""),
        ((NUMBER,), None, "Work", ""),
        ((NUMBER,), "Work", None, ""),
        ((NUMBER,), 11, None, ""),
        ((NUMBER,), 0, None, ""),
        ((f"1={NUMBER}",), None, None, ""),
        ((NUMBER, f"2={OTHER}"), 2, None, OTHER),
        ((f"2={OTHER}", NUMBER), 1, None, NUMBER),
        ((NUMBER, f"SIM2={OTHER}"), 2, NUMBER, OTHER),
        ((NUMBER, f"2={OTHER}"), 3, None, ""),
        ((NUMBER, f"2={OTHER}"), None, None, ""),
        ((NUMBER, f"2={OTHER}"), None, "SIM 2", OTHER),
        ((NUMBER, f"2={OTHER}"), None, "07400849540", OTHER),
        ((NUMBER, f"2={OTHER}"), None, "Unknown", ""),
        # Of two numbers that end alike, either may be meant; and an end says little
        ((NUMBER, f"2=4{NUMBER}"), None, NUMBER[1:], ""),
        ((NUMBER, f"2={OTHER}"), None, "9540", ""),
        # The same digits are another number in another country
        ((), 1, NUMBER[1:], ""),
        ((), 1, NUMBER, ""),
        ((), 1, None, ""),
        ((), None, "+", ""),
        ((), None, 12025550123, ""),
    ],
)
def test_it_goes_to_whom_it_certainly_came_for_or_to_nobody(
    app, phone, receiver, numbers, sim, recipient, digits
):
    send = phone(*(word for number in numbers for word in ("--number", number)))
    answer = send(android_envelope(simNumber=sim, recipient=recipient))
    assert answer.status_code == 200
    [message] = messages(app)
    assert message.digits == digits
    assert answer.json["data"]["matched"] is bool(digits)
    assert message.unmatched == (None if digits else "unknown_recipient")
    assert len(receiver.received) == bool(digits)


def test_an_sms_that_is_told_in_two_events_is_one(app, phone, receiver):
    send = phone()
    moment = "2026-11-24T03:00:00Z"  # the same, in another zone
    for id, changes in (("event 1", {}), ("event 2", {}), ("event 3", {"receivedAt": moment})):
        assert send(android_envelope(**changes) | {"id": id}).status_code == 200
    assert len(messages(app)) == len(receiver.received) == 1


@pytest.mark.parametrize(
    "changes", [{"messageId": "other"}, {"receivedAt": "2026-11-24T10:00:00.001+07:00"}]
)
def test_an_sms_with_the_same_text_is_another_by_its_id_or_its_time(app, phone, changes):
    """The id is made of the content, so that a second SMS with the same text may have it too."""
    send = phone()
    for payload in ({}, changes, changes):
        assert send(android_envelope(**payload)).status_code == 200
    assert len(messages(app)) == 2


@pytest.mark.parametrize("missing", ["messageId", "receivedAt"])
def test_without_its_id_or_its_time_the_text_names_it(app, phone, missing):
    send = phone()
    for text in ("code 1234", "code 1234", "code 5678"):
        assert send(android_envelope(message=text, **{missing: None})).status_code == 200
    assert len(messages(app)) == 2
    change(app, Message, 1, created_at=utcnow() - timedelta(minutes=11))
    assert send(android_envelope(message="code 1234", **{missing: None})).status_code == 200
    assert len(messages(app)) == 3


def test_a_time_that_cannot_be_read_still_names_it(app, phone):
    send = phone()
    for moment in ("soon", "soon", "later"):
        assert send(android_envelope(receivedAt=moment)).status_code == 200
    assert len(messages(app)) == 2


def test_the_sender_of_earlier_versions(app, phone):
    event = android_envelope()
    event["payload"]["phoneNumber"] = event["payload"].pop("sender")
    assert phone()(event).status_code == 200
    assert [message.sender for message in messages(app)] == ["AMZ"]


def test_what_is_malformed(app, phone):
    send = phone()
    assert refused(send(android_envelope() | {"event": "sms:sent"}), 400, "event")
    assert refused(send(android_envelope() | {"payload": []}), 400, "payload")
    assert refused(send(android_envelope(message=None)), 400, "sms_text")
    assert refused(send(data=b"[", content_type="application/json"), 400, "JSON")
    assert messages(app) == []
