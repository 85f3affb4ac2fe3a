"""POST /api/ingest/{ingest_key}, and the webhook that it fires."""

import io
import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, event, func, select
from standardwebhooks import Webhook

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Delivery, Message, PhoneNumber, SystemSummary, User, UserSummary
from service.database.writing import transact
from service.keys import seal
from service.webhooks.signing import sign
from tests.conftest import SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import NUMBER, SMS, new_secret
from tests.peers import raw_server
from tests.records import change, messages, totals

DAY = timedelta(days=1)


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
    ],
)
@on_sqlite
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
@on_sqlite
def test_malformed_json_is_400(client, make_provider, body):
    response = client.post(make_provider(), data=body, content_type="application/json")
    assert (response.status_code, response.json["status"]) == (400, "error")


@on_sqlite
def test_a_huge_body_is_413(client, make_provider):
    response = client.post(make_provider(), json=SMS | {"sms_text": "x" * 300_000})
    assert (response.status_code, response.json["status"]) == (413, "error")


@pytest.mark.parametrize("format", ["kannel", "generic", "twilio"])
@on_sqlite
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


def test_an_sms_counts_as_an_otp_only_with_a_code_and_a_duplicate_not_at_all(
    app, client, make_user, make_provider, assign
):
    assign(make_user().id)
    path = make_provider()
    for to in (NUMBER, "12025550199"):
        for text in ("Your code is 123456", "Hello", "Hello"):
            client.post(path, json={"to": to, "text": text})
    assert totals(app, UserSummary, "sms", "otps") == (2, 1)
    assert totals(app, SystemSummary, "sms", "otps", "unmatched") == (4, 2, 2)


def test_a_numbers_first_sms_is_noted_once(app, client, make_user, make_provider, assign):
    """A code or not: numbers that never got an SMS show misuse."""
    row, other = assign(make_user().id), assign(make_user().id, "12025550199")
    path = make_provider()
    for n in range(2):
        assert client.post(path, json=SMS | {"sms_text": f"Hello {n}"}).status_code == 200
    with app.app_context():
        first, second = db.session.scalars(select(Message).order_by(Message.id)).all()
        assert db.session.get(PhoneNumber, row).first_sms_at == first.received_at
        assert second.received_at > first.received_at
        assert db.session.get(PhoneNumber, other).first_sms_at is None


def test_half_a_surrogate_pair_is_stored_not_refused(app, client, make_provider):
    body = '{"to": "12025550123", "text": "half \\ud83d pair \\ud83d\\ude00"}'
    response = client.post(make_provider(), data=body, content_type="application/json")
    assert response.status_code == 200
    assert messages(app)[0].sms_text == "half \ufffd pair 😀"


def test_without_a_webhook_url_there_is_nothing_to_deliver(
    app, client, make_user, make_provider, assign
):
    """Nor later, when the user has set one."""
    assign(make_user().id)
    assert client.post(make_provider(), json=SMS).json["data"]["webhook"] == "none"
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(Delivery)) == 0


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
    again = client.post(path, json=SMS | {"id": "m1"}).json["data"]
    assert again == first | {"duplicate": True}
    assert len(receiver.received) == 1
    # Ids start again when a phone is set up anew
    for other in ({"sms_text": "another 999999"}, {"phone_number": f"{NUMBER}0"}):
        assert not client.post(path, json=SMS | {"id": "m1"} | other).json["data"]["duplicate"]
    assert not client.post(path, json=SMS | {"id": "M1"}).json["data"]["duplicate"]
    other = make_provider("gw-2")
    assert not client.post(other, json=SMS | {"id": "m1"}).json["data"]["duplicate"]


def test_with_an_id_it_is_a_duplicate_for_ever(app, client, make_provider):
    path = make_provider()
    first = client.post(path, json=SMS | {"id": "m1"}).json["data"]
    change(app, Message, first["id"], created_at=utcnow() - timedelta(days=400))
    for _ in range(2):
        again = client.post(path, json=SMS | {"id": "m1"}).json["data"]
        assert again == first | {"duplicate": True}


def test_without_an_id_another_text_or_number_or_provider_is_another_sms(client, make_provider):
    path = make_provider()
    for fields in ({}, {"sms_text": "Other"}, {"phone_number": f"{NUMBER}0"}):
        assert not client.post(path, json=SMS | fields).json["data"]["duplicate"]
    assert not client.post(make_provider("gw-2"), json=SMS).json["data"]["duplicate"]


def test_without_an_id_the_same_text_for_the_next_holder_is_another_sms(
    app, client, make_user, make_provider, assign
):
    """Within the 10 minutes; and it is a duplicate for them as well, the second time."""
    path, ann, bob = make_provider(), make_user(), make_user(name="Bob")
    for holder in (None, ann, bob):
        if holder:
            assign(holder.id, ago=timedelta(minutes=1) if holder is ann else timedelta(0))
        first = client.post(path, json=SMS).json["data"]
        assert not first["duplicate"]
        assert client.post(path, json=SMS).json["data"] == first | {"duplicate": True}
    assert [message.user_id for message in messages(app)] == [None, ann.id, bob.id]


@pytest.mark.parametrize("id", [{"id": "m1"}, {}])
def test_an_insert_that_breaks_another_rule_is_an_error_once(app, client, make_provider, id):
    """Not taken for a duplicate, whose first one would be looked for without end."""
    path = make_provider()
    null = "UPDATE messages SET digits = NULL WHERE id = NEW.id"
    with app.app_context():
        if db.engine.dialect.name == "sqlite":
            fail = f"CREATE TRIGGER fails AFTER INSERT ON messages BEGIN {null}; END"
        else:
            fail = "CREATE TRIGGER fails BEFORE INSERT ON messages FOR EACH ROW"
            fail += " SIGNAL SQLSTATE '23000' SET MYSQL_ERRNO = 1452"
        with db.engine.begin() as connection:
            connection.exec_driver_sql(fail)
        try:
            assert client.post(path, json=SMS | id).status_code == 500
        finally:
            with db.engine.begin() as connection:
                connection.exec_driver_sql("DROP TRIGGER fails")
    assert client.post(path, json=SMS | id).status_code == 200


def test_without_an_id_the_same_text_within_10_minutes_is_a_duplicate(app, client, make_provider):
    path = make_provider()
    first = client.post(path, json=SMS).json["data"]
    assert client.post(path, json=SMS).json["data"] == first | {"duplicate": True}
    inside = utcnow() - timedelta(minutes=9, seconds=30)
    change(app, Message, first["id"], created_at=inside)
    assert client.post(path, json=SMS).json["data"] == first | {"duplicate": True}
    outside = utcnow() - timedelta(minutes=10, milliseconds=1)
    change(app, Message, first["id"], created_at=outside)
    third = client.post(path, json=SMS).json["data"]
    assert not third["duplicate"]
    assert client.post(path, json=SMS).json["data"] == third | {"duplicate": True}


@pytest.mark.parametrize("state", ["pending", "delivered", "dead"])
def test_a_duplicate_tells_what_became_of_the_first_ones_webhook(
    app, client, make_user, make_provider, assign, receiver, state
):
    assign(make_user(webhook_url=receiver.url).id)
    receiver.answers = [500]
    path = make_provider()
    assert client.post(path, json=SMS).json["data"]["webhook"] == "pending"
    change(app, Delivery, 1, state=state)
    data = client.post(path, json=SMS).json["data"]
    assert data["duplicate"]
    assert data["webhook"] == ("none" if state == "dead" else state)
    assert len(receiver.received) == 1


@pytest.mark.parametrize("kind", ["with an id", "without one", "after 10 minutes"])
def test_one_sms_at_once_from_8_threads_is_stored_once(
    app, client, make_user, make_provider, assign, receiver, kind
):
    path, answers = make_provider(), []
    if kind == "after 10 minutes":  # all of them find the old one in their way
        old = client.post(path, json=SMS).json["data"]["id"]
        change(app, Message, old, created_at=utcnow() - timedelta(minutes=11))
    assign(make_user(webhook_url=receiver.url).id)
    before, id = len(messages(app)), {"id": "m1"} if kind == "with an id" else {}
    together = threading.Barrier(8)

    def call():
        together.wait()
        answers.append(app.test_client().post(path, json=SMS | id).json["data"])

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a["duplicate"] for a in answers) == [False] + [True] * 7
    assert len({a["id"] for a in answers}) == 1
    assert len(messages(app)) - before == len(receiver.received) == 1


def test_an_sms_whose_first_one_is_purged_at_that_moment_is_stored(app, client, make_provider):
    """It was refused as a duplicate of what is there no more when that is looked at."""
    path, refused = make_provider(), threading.Event()
    client.post(path, json=SMS | {"id": "m1"})
    with app.app_context():
        engine = db.engine

    @event.listens_for(engine, "handle_error")
    def note(_context):
        refused.set()

    @event.listens_for(engine, "checkin")
    def purge(*_):
        if refused.is_set():
            refused.clear()
            with engine.begin() as connection:
                connection.execute(delete(Message))

    second = client.post(path, json=SMS | {"id": "m1"}).json["data"]
    assert not second["duplicate"]
    assert [message.id for message in messages(app)] == [second["id"]]


@on_sqlite
def test_the_log_tells_stored_from_duplicate_and_whether_there_was_a_code(
    client, make_user, make_provider, assign, caplog
):
    user = make_user()
    assign(user.id)
    path = make_provider("gw-1")
    for text in ("Your code is 123456", "Hello", "Hello"):
        client.post(path, json=SMS | {"sms_text": text})
    of = f"user_id={user.id} provider=gw-1"
    assert [line for line in caplog.messages if line.startswith("event=sms_")] == [
        f"event=sms_stored message_id=1 {of} otp=True",
        f"event=sms_stored message_id=2 {of} otp=False",
        f"event=sms_duplicate message_id=2 {of} otp=False",
    ]


# --- whose it is --------------------------------------------------------------------------


@pytest.mark.parametrize("teller", ["main server", "gateway"])
@pytest.mark.parametrize(
    ("before", "early", "by_main_server", "by_gateway"),
    # `before`: who held the number until Bob got it; "-": nobody holds it now either. `early`: for
    # how many seconds before Bob's assignment the SMS was received
    [
        ("-", None, "unknown_number", "unknown_number"),
        ("-", 60, "unknown_number", "unknown_number"),
        (None, None, "Bob", "Bob"),
        (None, -0.5, "Bob", "Bob"),
        (None, 1.5, "assignment_changed", "Bob"),
        (None, 119, "assignment_changed", "Bob"),
        (None, 121, "assignment_changed", "assignment_changed"),
        ("Ann", None, "Bob", "Bob"),
        ("Ann", -0.5, "Bob", "Bob"),
        ("Ann", 1.5, "Ann", "assignment_changed"),
        ("Ann", 1800, "Ann", "assignment_changed"),
        ("Ann", 7200, "assignment_changed", "assignment_changed"),
        ("Bob", 1.5, "Bob", "Bob"),
        ("Bob", 1800, "Bob", "assignment_changed"),
    ],
)
def test_whose_an_sms_is(
    app, client, make_user, make_provider, assign, teller, before, early, by_main_server, by_gateway
):
    """The holder's at arrival; where it was received before that assignment, the main server's time
    tells whose, and a gateway's clock, which is foreign, gives nobody another one's code."""
    users = {name: make_user(name=name) for name in ("Ann", "Bob")}
    bobs = utcnow() - timedelta(seconds=1)
    if before in users:
        assign(users[before].id, ago=timedelta(hours=1))
    if before != "-":
        row = assign(users["Bob"].id)
        change(app, PhoneNumber, row, assigned_at=bobs)
    at = bobs - timedelta(seconds=early or 0)
    at += timedelta(microseconds=not at.microsecond)  # else it would mean the whole second
    told = SMS | ({} if early is None else {"received_at": at.isoformat()})
    if teller == "gateway":
        data = client.post(make_provider(), json=told).json["data"]
    else:
        body = {"event": "otp_received", "data": told}
        data = client.post(f"/api/ingest/{SYSTEM_KEY}", json=body).json["data"]
    [message] = messages(app)
    names = {user.id: name for name, user in users.items()}
    whose = names.get(message.user_id, message.unmatched)
    assert whose == (by_gateway if teller == "gateway" else by_main_server)
    assert data["matched"] == (whose in users)
    assert (message.unmatched is None) == data["matched"]


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
        transact(lambda tx: setattr(db.session.get(PhoneNumber, row), "assigned_at", bobs))
    path = make_provider(format="main-server")
    body = {"event": "otp_received", "data": SMS | {"received_at": received_at}}
    client.post(path, json=body)
    [message] = messages(app)
    assert message.user_id == users[holder].id
    assert message.received_at.microsecond in (0, 500_000)  # kept as it was told


def test_a_time_to_come_is_stored_as_now(app, client, make_user, make_provider, assign):
    """A gateway's clock may be ahead; a user is never told of an SMS of tomorrow."""
    row, path = assign(make_user().id), make_provider()
    ahead = (utcnow() + DAY).isoformat()
    asked = utcnow()
    client.post(path, json=SMS | {"received_at": ahead})
    [message] = messages(app)
    assert asked <= message.received_at <= message.created_at <= utcnow()
    with app.app_context():
        assert db.session.get(PhoneNumber, row).first_sms_at == message.received_at


def test_without_a_time_it_was_received_now(app, client, make_provider):
    asked = utcnow()
    client.post(make_provider(), json=SMS)
    assert asked <= messages(app)[0].received_at <= utcnow()


def test_a_number_that_was_never_granted_is_nobodys(app, client, make_user, make_provider, assign):
    for state in ("requested", "unknown"):
        row = assign(make_user().id)
        change(app, PhoneNumber, row, state=state)
    assert client.post(make_provider(), json=SMS).json["data"]["matched"] is False


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


def test_the_main_servers_webhook_id_tells_its_sms_apart(app, client):
    """The same text under a new id is another SMS; a message_id in the body is no id."""

    def post(**headers):
        body = envelope(message_id="same", sms_text="Your code is 123456")
        answer = client.post(f"/api/ingest/{SYSTEM_KEY}", json=body, headers=headers)
        return answer.json["data"]["duplicate"]

    ids = ({"webhook-id": "1"}, {"webhook-id": "2"}, {"webhook-id": "1"}, {}, {"webhook-id": ""})
    assert [post(**headers) for headers in ids] == [False, False, True, False, True]
    other = client.post(f"/api/ingest/{SYSTEM_KEY}", json=envelope(message_id="same", sms_text="B"))
    assert not other.json["data"]["duplicate"]


def test_an_id_of_a_provider_is_not_one_of_the_main_servers(client, make_provider):
    """Not even when the main server gives its provider the same name."""
    own = make_provider("gw", format="main-server")
    call = {"json": envelope(provider="gw"), "headers": {"webhook-id": "1"}}
    for path in (own, f"/api/ingest/{SYSTEM_KEY}"):
        assert not client.post(path, **call).json["data"]["duplicate"]


def test_what_the_main_server_tells_of_an_sms_is_kept(app, client, make_user, assign):
    """Its time, and the name of its provider where it gives one."""
    assign(make_user().id, ago=timedelta(days=9000))
    at = "2026-01-02T03:04:05.678000+00:00"
    for provider in ("carrier", None):
        body = envelope(received_at=at, provider=provider, sms_text=f"{provider} 123456")
        assert client.post(f"/api/ingest/{SYSTEM_KEY}", json=body).status_code == 200
    found = [(m.provider, m.received_at.isoformat()) for m in messages(app)]
    assert found == [("carrier", at), ("main-server", at)]


@on_sqlite
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"event": "x", "data": SMS},
        {"event": "otp_received"},
        {"event": "otp_received", "data": []},
        {"event": "otp_received", "data": "x"},
        {"data": SMS},
    ],
)
def test_main_server_body_that_is_not_otp_received_is_400(client, body):
    assert client.post(f"/api/ingest/{SYSTEM_KEY}", json=body).status_code == 400


@on_sqlite
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
    # The same again is a duplicate, however late it comes
    assert post(datetime.now(UTC) - timedelta(minutes=6)).json["data"]["duplicate"] is True
    assert len(messages(app)) == 1


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


@pytest.mark.parametrize(
    ("columns", "webhook", "state", "result"),
    [
        ({"webhook_disabled_at": utcnow()}, "none", "dead", "disabled"),
        ({"active": False}, "none", "dead", "user_inactive"),
        ({"approved": False}, "none", "dead", "user_inactive"),
        ({"webhook_open_until": utcnow() + DAY}, "pending", "pending", "circuit_open"),
        ({"webhook_open_until": utcnow()}, "delivered", "delivered", "200"),
    ],
)
def test_an_endpoint_that_nothing_is_to_be_sent_to_is_not_called(
    app, client, make_user, make_provider, assign, receiver, caplog, columns, webhook, state, result
):
    """And the log tells of no try that was not made."""
    assign(make_user(webhook_url=receiver.url, **columns).id)
    receiver.answers = [200]
    assert client.post(make_provider(), json=SMS).json["data"]["webhook"] == webhook
    sent = state == "delivered"
    assert len(receiver.received) == caplog.text.count("event=webhook_tried") == sent
    with app.app_context():
        row = db.session.scalar(select(Delivery))
        assert (row.state, row.last_result, row.attempts) == (state, result, sent)


def test_an_error_that_nobody_foresaw_in_the_sending_does_not_cost_the_sms(
    app, client, make_user, make_provider, assign, receiver
):
    """It is stored, so it is answered 200: here with a secret that cannot sign."""
    user = make_user(webhook_url=receiver.url)
    assign(user.id)
    with app.app_context():
        broken = seal("whsec_x")  # no base64
    change(app, User, user.id, webhook_secret=broken)
    answer = client.post(make_provider(), json=SMS)
    assert (answer.status_code, answer.json["data"]["webhook"]) == (200, "pending")
    assert len(messages(app)) == 1


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
