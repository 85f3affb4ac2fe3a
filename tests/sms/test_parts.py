"""Long SMS in parts that their gateway does not join: they wait for each other, and are one SMS."""

import itertools
import threading
from datetime import timedelta

import pytest
from sqlalchemy import select

from service.api.schemas import IngestedSchema
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import SmsPart
from service.sms import gateways, ingestion
from service.sms.gateways.gateway import Gateway
from service.sms.incoming import Part, read
from tests.databases import on_mariadb, on_sqlite
from tests.fixtures import NUMBER
from tests.meanwhile import in_background, listening
from tests.records import change, messages


def header(reference, total, number):
    """An 8-bit reference, or a 16-bit one from 256 on."""
    if reference < 256:
        return bytes([5, 0, 3, reference, total, number])
    return bytes([6, 8, 4, *divmod(reference, 256), total, number])


@pytest.fixture
def phone(app, client, make_user, make_provider, assign, receiver):
    """A Jasmin that passes parts on as they are; the number's holder has a webhook."""

    class Phone:
        user = make_user(webhook_url=receiver.url)
        path = make_provider("jasmin", format="jasmin")
        ids = itertools.count(1)
        received = receiver.received

        def send(self, part, text, *, id=None, coding="0", charset="ascii", **fields):
            data = header(*part) + (text if isinstance(text, bytes) else text.encode(charset))
            form = {
                "id": f"id-{id or next(self.ids)}", "from": "AMZ", "to": NUMBER, "coding": coding,
                "binary": data.hex(),
            }  # fmt: skip
            answer = client.post(self.path, data=form | fields)
            assert (answer.status_code, answer.data) == (200, b"ACK/Jasmin")

        def stored(self):
            return [(m.sms_text, m.otp_code) for m in messages(app)]

        def waiting(self):
            with app.app_context():
                return db.session.scalars(select(SmsPart).where(SmsPart.sms != "")).all()

        def traces(self):
            with app.app_context():
                return db.session.scalars(select(SmsPart).where(SmsPart.sms == "")).all()

        def age(self, **time):
            """Let the parts have come that much earlier."""
            for row in self.waiting() + self.traces():
                change(app, SmsPart, row.id, created_at=row.created_at - timedelta(**time))

    assign(Phone.user.id)
    return Phone()


WORDS = ["Your code", " is 493", "817. Do not share it."]
WHOLE = ("".join(WORDS), "493817")


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
@pytest.mark.parametrize("reference", [7, 300])
def test_parts_in_any_order_are_one_sms(app, phone, order, reference):
    for number in order:
        assert phone.stored() == []
        phone.send((reference, 3, number), WORDS[number - 1])
    assert phone.stored() == [WHOLE]
    assert len(phone.received) == 1
    assert phone.waiting() == []
    assert [m.sender for m in messages(app)] == ["AMZ"]


@on_sqlite
def test_it_was_received_when_its_first_part_was(app, phone):
    phone.send((7, 2, 2), "is 493817")
    phone.age(minutes=3)
    phone.send((7, 2, 1), "Your code ")
    [message] = messages(app)
    assert timedelta(minutes=2) < message.created_at - message.received_at < timedelta(minutes=4)
    assert message.user_id == phone.user.id


def test_a_part_that_its_gateway_repeats_makes_no_other_sms(phone):
    """Before the SMS is complete, and after that: the answer to its last part may be lost."""
    for number in (1, 1, 2, 3, 3, 1, 2):
        phone.send((7, 3, number), WORDS[number - 1], id=number)
    assert phone.stored() == [WHOLE]
    phone.age(hours=23)
    phone.send((7, 3, 3), WORDS[2], id=3)
    assert phone.waiting() == []
    assert len(phone.received) == 1


@on_sqlite
def test_all_parts_again_after_days_are_still_the_same_sms(app, flask, phone):
    for _ in range(2):
        for number in (1, 2, 3):
            phone.send((7, 3, number), WORDS[number - 1], id=number)
        phone.age(hours=25)
        flask("webhooks", "deliver")
        assert phone.waiting() == phone.traces() == []
    assert phone.stored() == [WHOLE]
    assert len(phone.received) == 1


def test_a_repeat_completes_what_a_crash_left(app, client, phone, monkeypatch):
    """The parts are stored, the call that would have joined them is dead."""
    phone.send((7, 2, 1), "Your code is 493")
    with monkeypatch.context() as patch:
        patch.setattr(ingestion, "transact", lambda *_: 1 / 0)
        with pytest.raises(AssertionError):
            phone.send((7, 2, 2), "817", id=2)
    assert len(phone.waiting()) == 2
    phone.send((7, 2, 2), "817", id=2)
    assert phone.stored() == [("Your code is 493817", "493817")]
    assert phone.waiting() == []


@on_sqlite
def test_only_parts_of_one_sms_are_joined(phone):
    """Same reference, number of parts, sender, and recipient."""
    phone.send((7, 2, 1), "one ")
    phone.send((7 + 256, 2, 2), "16-bit reference")
    phone.send((8, 2, 2), "other reference")
    phone.send((7, 3, 2), "other total")
    phone.send((7, 2, 2), "other sender", **{"from": "BANK"})
    phone.send((7, 2, 2), "other recipient", to="447400849540")
    assert phone.stored() == []
    phone.send((7, 2, 2), "SMS")
    assert phone.stored() == [("one SMS", None)]


@on_sqlite
def test_providers_have_references_of_their_own(phone, make_provider):
    phone.send((7, 2, 1), "one ")
    phone.path = make_provider("other", format="jasmin")
    phone.send((7, 2, 2), "SMS")
    assert phone.stored() == []


@pytest.mark.parametrize("by", ["worker", "next part"])
def test_what_is_incomplete_after_ten_minutes_is_stored_as_it_is(app, flask, phone, by):
    """And its webhook is the worker's: nobody's call waits for somebody else's receiver."""
    phone.send((7, 4, 1), "Your code is 493817.")
    phone.send((7, 4, 3), "2026")
    phone.age(minutes=9)
    flask("webhooks", "deliver")
    assert phone.stored() == []
    phone.age(minutes=1)
    if by == "next part":
        phone.send((8, 2, 1), "another")
        assert phone.received == []
    flask("webhooks", "deliver")
    # The gap between them is seen, so that no two numbers run into one
    assert phone.stored() == [("Your code is 493817.…2026", "493817")]
    assert len(phone.received) == 1
    [message] = messages(app)
    assert message.provider == "jasmin"
    assert message.created_at - message.received_at > timedelta(minutes=9)


@on_sqlite
def test_a_part_that_comes_too_late_waits_anew(flask, phone):
    phone.send((7, 2, 1), "Your code ")
    phone.age(minutes=11)
    phone.send((7, 2, 2), "is 493817", id=2)
    phone.send((7, 2, 1), "Your code ", id=1)  # repeated
    assert phone.stored() == [("Your code ", None)]
    assert [row.number for row in phone.waiting()] == [2]


@on_sqlite
def test_what_waited_is_nobodys_if_the_number_changed_hands(app, flask, phone, make_user, assign):
    phone.send((7, 2, 1), "Your code is 493817")
    phone.age(minutes=10)
    assign(make_user().id, ago=timedelta(minutes=5))
    flask("webhooks", "deliver")
    [message] = messages(app)
    assert (message.user_id, message.unmatched) == (None, "assignment_changed")


@on_sqlite
def test_a_reference_that_starts_again_keeps_both_sms(phone):
    """A sender whose references are few: what waits is not the new SMS's."""
    phone.send((0, 2, 1), "Old code: 111111 ")
    phone.send((0, 2, 1), "New code: 493817 ")
    phone.send((0, 2, 2), "Do not share it.")
    assert phone.stored() == [
        ("Old code: 111111 ", "111111"), ("New code: 493817 Do not share it.", "493817"),
    ]  # fmt: skip


@on_sqlite
def test_a_second_sms_with_the_same_reference_and_beginning_is_another(phone):
    for code in ("493817", "562094"):
        phone.send((0, 2, 1), "Dear customer, your code is ")
        phone.send((0, 2, 2), code)
    assert [code for _, code in phone.stored()] == ["493817", "562094"]
    assert len(phone.received) == 2


@on_sqlite
def test_a_character_cut_in_two_becomes_whole(phone):
    data = "رمز 100003 🔑 شكرا".encode("utf-16-be")
    at = data.index("🔑".encode("utf-16-be")) + 2
    phone.send((7, 2, 2), data[at:], coding="8")
    phone.send((7, 2, 1), data[:at], coding="8")
    assert phone.stored() == [("رمز 100003 🔑 شكرا", "100003")]


@on_sqlite
def test_half_a_character_that_stays_alone_is_replaced(flask, phone):
    phone.send((7, 2, 1), "رمز 100003 🔑".encode("utf-16-be")[:-2], coding="8")
    phone.age(minutes=10)
    flask("webhooks", "deliver")
    assert phone.stored() == [("رمز 100003 \ufffd", "100003")]


@on_sqlite
@pytest.mark.parametrize("part", [(7, 1, 1), (7, 0, 0), (7, 2, 0), (7, 2, 3)])
def test_a_part_of_one_or_of_none_is_a_whole_sms(phone, part):
    """3GPP TS 23.040, 9.2.3.24.1: a header that contradicts itself is ignored."""
    phone.send(part, "Your code is 493817")
    assert phone.stored() == [("Your code is 493817", "493817")]


@on_sqlite
def test_very_many_parts_are_cut_like_any_long_text(phone):
    for number in range(1, 256):
        phone.send((7, 255, number), "x" * 200)
    [(text, _)] = phone.stored()
    assert len(text) == 40_000
    assert text.endswith(" [cut]")


def test_parts_that_come_at_the_same_time_are_joined_once(app, phone):
    """Each by a call of its own, some of them twice."""
    count, errors = 12, []

    def send(number, together):
        client = app.test_client()
        for reference in range(count):
            form = {
                "id": f"{reference}-{number}", "from": "AMZ", "to": NUMBER,
                "binary": (header(reference, 2, number) + b"493 " * number).hex(),
            }  # fmt: skip
            together.wait()
            answer = client.post(phone.path, data=form)
            if answer.status_code != 200:
                errors.append(answer.data)

    together = threading.Barrier(3)
    threads = [threading.Thread(target=send, args=(n, together)) for n in (1, 2, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert phone.stored() == [("493 493 493 ", None)] * count
    assert phone.waiting() == []


@on_mariadb  # SQLite has one writer
def test_a_part_whose_repeat_is_joined_at_the_same_moment_does_not_wait(app, phone):
    """Between its two questions, whether it waits already and whether it was joined."""
    joined = []

    def post(number):
        form = {"id": f"7-{number}", "from": "AMZ", "to": NUMBER}
        form["binary"] = (header(7, 2, number) + b"493 ").hex()
        return app.test_client().post(phone.path, data=form).status_code

    def meanwhile(_connection, _cursor, statement, *_):
        if "sms_parts.number = " in statement and not joined:
            joined.append(200)
            joined.append(in_background(lambda: post(2))())

    assert post(1) == 200
    with listening(app, after_cursor_execute=meanwhile):
        assert post(2) == 200
    assert joined == [200, 200]
    assert [text for text, _ in phone.stored()] == ["493 493 "]
    assert phone.waiting() == []


def test_parts_joined_while_the_worker_gives_them_up_are_one_sms(flask, phone, monkeypatch):
    phone.send((7, 2, 1), "Your code is 493")
    phone.age(minutes=10)
    ingest = ingestion.ingest

    def after_the_last_part(*args):
        monkeypatch.setattr(ingestion, "ingest", ingest)
        phone.age(minutes=-10)
        call = threading.Thread(target=phone.send, args=((7, 2, 2), "817"))
        call.start()
        call.join()
        return ingest(*args)

    monkeypatch.setattr(ingestion, "ingest", after_the_last_part)
    flask("webhooks", "deliver")
    assert phone.stored() == [("Your code is 493817", "493817")]
    assert len(phone.received) == 1


@pytest.fixture
def plain(client, make_provider, monkeypatch):
    """A gateway that tells the parts in JSON, perhaps without ids, and hears our JSON."""

    def parse(request, options):
        body = request.get_json()
        part = Part(*body.pop("part"))
        return read(body)._replace(part=part)

    monkeypatch.setitem(gateways.FORMATS, "plain", Gateway(parse, ""))
    path = make_provider("plain", format="plain")

    def send(part, text, **fields):
        sms = {"phone_number": NUMBER, "sms_text": text, "part": part} | fields
        return client.post(path, json=sms).json["data"]

    return send


@on_sqlite
def test_the_answer_says_that_a_part_waits(plain):
    first = plain(("a", 2, 1), "Your code is 493", message_id="x")
    assert first == {
        "id": None, "matched": False, "duplicate": False, "otp_code": None, "webhook": "none",
        "part": True,
    }  # fmt: skip
    assert IngestedSchema().validate(first) == {}
    last = plain(("a", 2, 2), "817", message_id="y")
    assert (last["id"], last["otp_code"], "part" in last) == (1, "493817", False)
    repeated = plain(("a", 2, 2), "817", message_id="y")
    assert repeated == first | {"duplicate": True}
    assert plain(("a", 1, 1), "code 123456")["id"] == 2


@on_sqlite
def test_without_ids_the_same_text_is_a_repeat_for_ten_minutes(app, plain, phone):
    for code in ("493817", "493817"):
        plain(("a", 2, 1), "Your code is ")
        plain(("a", 2, 2), code)
    assert len(messages(app)) == 1
    phone.age(minutes=10)
    [message] = messages(app)
    change(app, type(message), message.id, created_at=utcnow() - timedelta(minutes=10))
    plain(("a", 2, 1), "Your code is ")
    plain(("a", 2, 2), "493817")
    assert len(messages(app)) == 2


@on_sqlite
def test_what_the_parts_tell_is_the_smss(app, plain):
    """The first time, and the code that one of them was given with."""
    plain(("a", 2, 2), "there", received_at="2026-11-20T10:00:05Z", otp_code="123456")
    plain(("a", 2, 1), "see you ", received_at="2026-11-20T10:00:07Z")
    [message] = messages(app)
    assert (message.sms_text, message.otp_code) == ("see you there", "123456")
    assert message.received_at.isoformat() == "2026-11-20T10:00:05+00:00"
