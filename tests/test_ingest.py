"""POST /api/ingest/{ingest_key}, and the webhook that it fires."""

import io
import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select
from standardwebhooks import Webhook

from service.models import (
    Delivery,
    Message,
    PhoneNumber,
    SystemSummary,
    UserSummary,
    db,
    transact,
    utcnow,
)
from service.webhooks import new_secret, sign
from tests.conftest import SYSTEM_KEY
from tests.fixtures import NUMBER
from tests.peers import raw_server

SMS = {"phone_number": f"+{NUMBER}", "sms_text": "Your code is 123456"}


def messages(app):
    with app.app_context():
        return db.session.scalars(select(Message).order_by(Message.id)).all()


def totals(app, model, *names):
    with app.app_context():
        return tuple(
            db.session.execute(
                select(*(func.coalesce(func.sum(getattr(model, n)), 0) for n in names))
            ).one()
        )


def test_stores_the_sms_and_posts_the_exact_signed_payload(
    app, client, make_user, make_provider, assign, receiver
):
    user = make_user(webhook_url=receiver.url)
    assign(user.id)
    text = 'Your code is 123456 ✓ مرحبا\n"quoted"'
    response = client.post(make_provider("gw-1"), json=SMS | {"sms_text": text})
    assert response.status_code == 200
    assert response.json == {
        "status": "success",
        "data": {
            "id": 1, "matched": True, "duplicate": False, "otp_code": "123456",
            "webhook": "delivered",
        },
    }  # fmt: skip
    [(headers, body)] = receiver.received
    data = {"phone_number": f"+{NUMBER}", "otp_code": "123456", "provider": "gw-1"}
    expected = {"event": "otp_received", "data": data | {"sms_text": text}}
    assert body == json.dumps(expected, ensure_ascii=False, separators=(",", ":")).encode()
    assert headers["Content-Type"] == "application/json"
    assert Webhook(user.secret).verify(body, dict(headers.items())) == expected
    counts = ("sms", "otps", "webhooks_delivered")
    assert totals(app, UserSummary, *counts) == totals(app, SystemSummary, *counts) == (1, 1, 1)


@pytest.mark.parametrize(
    ("sms", "code", "rule"),
    [
        ({"text": "Your code is 123456"}, "123456", "keyword-before"),
        ({"text": "see you", "otp_code": "9"}, "9", "given"),
        ({"text": "see you", "otp_code": "12 34 ٥٦"}, "123456", "given"),
        ({"text": "Your code is 123456", "otp_code": ""}, "123456", "keyword-before"),
        ({"text": "see you at 18:30"}, None, None),
    ],
)
def test_the_record_says_which_rule_decided(app, client, make_provider, sms, code, rule):
    assert client.post(make_provider("gw-1"), json={"to": NUMBER} | sms).status_code == 200
    [message] = messages(app)
    assert (message.otp_code, message.otp_rule) == (code, rule)


def test_the_published_signature_vector():
    """https://github.com/standard-webhooks/standard-webhooks (the reference libraries' tests)."""
    signature = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330, b'{"test": 2432232314}',
    )  # fmt: skip
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "call",
    [
        {"json": {"to": NUMBER, "text": "code 123456"}},
        {"json": {"to": int(NUMBER), "message": "code 123456", "id": 7}},
        {"json": {"phone_number": f"00{NUMBER}", "body": "code 123456", "message_id": "a"}},
        {"data": {"to": f"+{NUMBER}", "sms_text": "code 123456"}},
        {"query_string": {"to": f"+{NUMBER}", "text": "code 123456"}},
        {"json": {"to": NUMBER, "text": "no digits here", "otp_code": "123456"}},
    ],
)
def test_generic_takes_json_form_and_query(client, make_user, make_provider, assign, call):
    assign(make_user().id)
    data = client.post(make_provider(), **call).json["data"]
    assert (data["matched"], data["otp_code"], data["webhook"]) == (True, "123456", "none")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"sms_text": "hi"}, "phone_number"),
        ({"phone_number": "+12025550123"}, "sms_text"),
        (SMS | {"phone_number": "abc"}, "phone_number"),
        (SMS | {"phone_number": "12"}, "phone_number"),
        (SMS | {"phone_number": "١٢٣٤٥٦٧"}, "phone_number"),
        (SMS | {"phone_number": {"a": 1}}, "phone_number"),
        (SMS | {"sms_text": ["x"]}, "sms_text"),
        (SMS | {"id": "x" * 256}, "message_id"),
        (SMS | {"otp_code": "1 2;3"}, "otp_code"),
        (SMS | {"otp_code": "1" * 33}, "otp_code"),
        (SMS | {"otp_code": "---"}, "otp_code"),
        (SMS | {"received_at": "yesterday"}, "received_at"),
        (SMS | {"received_at": "999999999999"}, "received_at"),
    ],
)
def test_malformed_is_400_names_the_field_and_stores_nothing(
    app, client, make_provider, fields, field
):
    response = client.post(make_provider(), json=fields)
    assert response.status_code == 400
    assert list(response.json["errors"]) == [field]
    assert field in response.json["message"]
    assert messages(app) == []
    assert totals(app, SystemSummary, "sms") == (0,)


def test_a_form_leaves_what_it_does_not_know_empty(app, client, make_provider):
    form = {"to": NUMBER, "text": "", "id": "", "otp_code": "", "received_at": ""}
    assert client.post(make_provider(), data=form).status_code == 200
    [message] = messages(app)
    assert (message.sms_text, message.otp_code) == ("", None)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff"])
def test_malformed_json_is_400(client, make_provider, body):
    response = client.post(make_provider(), data=body, content_type="application/json")
    assert (response.status_code, response.json["status"]) == (400, "error")


def test_a_huge_body_is_413(client, make_provider):
    response = client.post(make_provider(), json=SMS | {"sms_text": "x" * 300_000})
    assert (response.status_code, response.json["status"]) == (413, "error")


@pytest.mark.parametrize("format", ["kannel", "generic", "twilio"])
def test_a_huge_body_that_does_not_tell_its_length_is_413_too(app, client, make_provider, format):
    """Nothing is stored of an SMS whose rest was cut off."""
    body = b"to=12025550123&text=code+123456" + b"y" * 300_000
    response = client.post(
        make_provider(format=format) + f"?to={NUMBER}",
        input_stream=io.BytesIO(body),
        content_type="application/x-www-form-urlencoded",
        environ_overrides={"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"},
    )
    assert (response.status_code, response.json["status"]) == (413, "error")
    assert messages(app) == []


@pytest.mark.parametrize("key", ["nobody", "%00", "é"])
def test_wrong_key_is_401(app, client, make_user, key):
    response = client.post(f"/api/ingest/{key}", json=SMS)
    assert (response.status_code, response.json["message"]) == (401, "Invalid ingest_key")
    assert client.post(f"/api/ingest/{make_user().key}", json=SMS).status_code == 401
    assert messages(app) == []


def test_a_disabled_provider_is_401(client, make_provider):
    assert client.post(make_provider(active=False), json=SMS).status_code == 401


def test_unknown_number_is_stored_as_unmatched(app, client, make_provider):
    data = client.post(make_provider(), json=SMS).json["data"]
    assert (data["matched"], data["webhook"]) == (False, "none")
    assert [(m.user_id, m.sms_text) for m in messages(app)] == [(None, SMS["sms_text"])]
    assert totals(app, SystemSummary, "sms", "unmatched") == (1, 1)


def test_half_a_surrogate_pair_is_stored_not_refused(app, client, make_provider):
    body = '{"to": "12025550123", "text": "half \\ud83d pair \\ud83d\\ude00"}'
    response = client.post(make_provider(), data=body, content_type="application/json")
    assert response.status_code == 200
    assert messages(app)[0].sms_text == "half \ufffd pair 😀"


def test_without_a_code_it_is_stored_and_fires_no_webhook(
    client, make_user, make_provider, assign, receiver
):
    assign(make_user(webhook_url=receiver.url).id)
    data = client.post(make_provider(), json=SMS | {"sms_text": "Hello"}).json["data"]
    assert (data["matched"], data["otp_code"], data["webhook"]) == (True, None, "none")
    assert receiver.received == []


# --- duplicates ---------------------------------------------------------------------------


def test_same_provider_and_id_is_a_duplicate(client, make_user, make_provider, assign, receiver):
    assign(make_user(webhook_url=receiver.url).id)
    path = make_provider()
    first = client.post(path, json=SMS | {"id": "m1"}).json["data"]
    again = client.post(path, json=SMS | {"id": "m1", "sms_text": "another 999999"}).json["data"]
    assert again == first | {"duplicate": True}
    assert len(receiver.received) == 1
    assert not client.post(path, json=SMS | {"id": "M1"}).json["data"]["duplicate"]
    other = make_provider("gw-2")
    assert not client.post(other, json=SMS | {"id": "m1"}).json["data"]["duplicate"]


def test_without_an_id_the_same_text_within_10_minutes_is_a_duplicate(app, client, make_provider):
    path = make_provider()
    first = client.post(path, json=SMS).json["data"]
    assert client.post(path, json=SMS).json["data"] == first | {"duplicate": True}
    assert not client.post(path, json=SMS | {"sms_text": "Other"}).json["data"]["duplicate"]
    with app.app_context():
        old = utcnow() - timedelta(minutes=10, seconds=1)
        transact(lambda: setattr(db.session.get(Message, first["id"]), "created_at", old))
    third = client.post(path, json=SMS).json["data"]
    assert not third["duplicate"]
    assert client.post(path, json=SMS).json["data"] == third | {"duplicate": True}


@pytest.mark.parametrize("id", [{"id": "m1"}, {}])
def test_one_sms_at_once_from_8_threads_is_stored_once(
    app, make_user, make_provider, assign, receiver, id
):
    assign(make_user(webhook_url=receiver.url).id)
    path, answers = make_provider(), []

    def call():
        answers.append(app.test_client().post(path, json=SMS | id).json["data"])

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a["duplicate"] for a in answers) == [False] + [True] * 7
    assert len(messages(app)) == len(receiver.received) == 1


# --- whose it is --------------------------------------------------------------------------


def test_a_late_sms_goes_to_who_held_the_number_when_it_was_received(
    app, client, make_user, make_provider, assign
):
    ann, bob = make_user(), make_user(name="Bob")
    assign(ann.id, ago=timedelta(hours=2))
    assign(bob.id, ago=timedelta(hours=1))
    path, now = make_provider(), datetime.now(UTC)
    for n, (ago, expected) in enumerate(
        [(0.5, bob.id), (1.5, ann.id), (2.5, None), (-5, bob.id)]  # the last: a clock ahead
    ):
        received_at = (now - timedelta(hours=ago)).isoformat()
        client.post(path, json=SMS | {"id": n, "received_at": received_at})
        assert messages(app)[-1].user_id == expected
    unix = str((now - timedelta(hours=1.5)).timestamp())
    client.post(path, json=SMS | {"id": "unix", "received_at": unix})
    assert messages(app)[-1].user_id == ann.id


@pytest.mark.parametrize(
    ("received_at", "holder"),
    [
        ("2026-11-20T10:00:00Z", "Bob"),
        ("2026-11-20T10:00:00.000+00:00", "Bob"),
        (int(datetime(2026, 11, 20, 10, tzinfo=UTC).timestamp()), "Bob"),
        ("2026-11-20T10:00:00.500Z", "Ann"),
        ("2026-11-20T09:59:59Z", "Ann"),
    ],
)
def test_a_time_in_whole_seconds_means_that_second(
    app, client, make_user, make_provider, assign, received_at, holder
):
    """SMS centres tell no fractions: in the second of the assignment is not before it."""
    users = {"Ann": make_user(), "Bob": make_user(name="Bob")}
    bobs = datetime(2026, 11, 20, 10, 0, 0, 700_000, UTC)
    assign(users["Ann"].id, ago=utcnow() - bobs + timedelta(hours=1))
    row = assign(users["Bob"].id)
    with app.app_context():
        transact(lambda: setattr(db.session.get(PhoneNumber, row), "assigned_at", bobs))
    client.post(make_provider(), json=SMS | {"received_at": received_at})
    [message] = messages(app)
    assert message.user_id == users[holder].id
    assert message.received_at.microsecond in (0, 500_000)  # kept as it was told


def test_matching_is_exact(app, client, make_user, make_provider, assign):
    assign(make_user().id)
    for number in (NUMBER[1:], NUMBER + "0", "0" + NUMBER):
        data = client.post(make_provider(f"gw{number}"), json=SMS | {"phone_number": number})
        assert data.json["data"]["matched"] is False


# --- the main server ----------------------------------------------------------------------


def envelope(**data):
    return {"event": "otp_received", "data": SMS | {"provider": "carrier"} | data}


def test_main_server_posts_under_the_system_key(app, client, make_user, assign, receiver):
    assign(make_user(webhook_url=receiver.url).id)
    call = {"json": envelope(otp_code="AB-12"), "headers": {"webhook-id": "msg_1"}}
    first = client.post(f"/api/ingest/{SYSTEM_KEY}", **call).json["data"]
    assert (first["otp_code"], first["webhook"]) == ("AB-12", "delivered")
    again = client.post(
        "/api/ingest", json=call["json"], headers={"webhook-id": "msg_1", "X-API-Key": SYSTEM_KEY}
    )
    assert again.json["data"] == first | {"duplicate": True}
    assert json.loads(receiver.received[0][1])["data"]["provider"] == "carrier"


@pytest.mark.parametrize("body", [{}, {"event": "x", "data": SMS}, {"event": "otp_received"}])
def test_main_server_body_that_is_not_otp_received_is_400(client, body):
    assert client.post(f"/api/ingest/{SYSTEM_KEY}", json=body).status_code == 400


def test_main_server_signature_is_required_when_there_is_a_secret(app, make_app):
    secret = new_secret()
    client = make_app(MAIN_SERVER_WEBHOOK_SECRET=secret).test_client()
    body, path = json.dumps(envelope()).encode(), f"/api/ingest/{SYSTEM_KEY}"

    def post(moment=None, key=secret, **changes):
        moment = moment or datetime.now(UTC)
        headers = {
            "webhook-id": "m", "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": "v1,b2xk " + Webhook(key).sign("m", moment, body.decode()),
        }  # fmt: skip
        return client.post(path, data=body, headers=headers | changes)

    wrong = [
        client.post(path, data=body),
        post(key=new_secret()),
        post(datetime.now(UTC) - timedelta(minutes=6)),
        post(datetime.now(UTC) + timedelta(minutes=6)),
        post(**{"webhook-id": "other"}),
        post(**{"webhook-timestamp": "x"}),
        post(**{"webhook-signature": "v1,é"}),
    ]
    assert [(r.status_code, r.json["message"]) for r in wrong] == [(401, "Invalid signature")] * 7
    assert messages(app) == []
    assert post().status_code == 200


# --- receivers that fail ------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 400, 404, 500])
def test_an_answer_that_is_not_2xx_leaves_the_delivery_pending(
    app, client, make_user, make_provider, assign, receiver, status
):
    assign(make_user(webhook_url=receiver.url).id)
    receiver.answers = [status]
    assert client.post(make_provider(), json=SMS).json["data"]["webhook"] == "pending"
    with app.app_context():
        delivery = db.session.scalar(select(Delivery))
        assert (delivery.state, delivery.last_result, delivery.attempts) == (
            "pending",
            str(status),
            1,
        )
        assert delivery.next_attempt_at > utcnow()
    assert totals(app, UserSummary, "otps", "webhooks_delivered") == (1, 0)


def test_a_dead_receiver_loses_nothing(app, client, make_user, make_provider, assign):
    assign(make_user(webhook_url="http://127.0.0.1:1/hook").id)
    assert client.post(make_provider(), json=SMS).json["data"]["webhook"] == "pending"
    assert len(messages(app)) == 1


def test_a_receiver_that_never_answers_costs_webhook_timeout(
    make_app, make_user, make_provider, assign
):
    def silence(connection, stopped):
        stopped.wait()

    app = make_app(WEBHOOK_TIMEOUT=0.3)
    with raw_server(silence) as url:
        assign(make_user(webhook_url=f"{url}/hook").id)
        response = app.test_client().post(make_provider(), json=SMS)
        assert response.json["data"]["webhook"] == "pending"
    with app.app_context():
        assert db.session.scalar(select(Delivery.last_result)) == "timeout"
