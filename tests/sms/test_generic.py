"""The generic format: any vendor's JSON or form, wherever its fields are."""

import json
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.databases import on_sqlite
from tests.fixtures import NUMBER, ROOT
from tests.records import messages

DATA = Path(__file__).with_name("data")
# Held by another user
OTHER = "447400849540"
FORM = "application/x-www-form-urlencoded"
TEXT = "Your code is 493817"

pytestmark = on_sqlite


@pytest.fixture
def gateway(client, flask, make_user, assign, receiver):
    """Add a provider with these options; gives a function that posts to it."""
    for digits in (NUMBER, OTHER):
        assign(make_user(name=digits, webhook_url=receiver.url).id, digits)

    def add(options=""):
        command = ("providers", "add", "gw", "--format", "generic", *options.split(), "--json")
        path = flask(*command)["ingest_path"]

        def send(query="", method="POST", **sent):
            return client.open(path + query, method=method, **sent)

        return send

    return add


def stored(app):
    return [(message.digits, message.sms_text) for message in messages(app)]


# --- however it is sent -------------------------------------------------------------------


@pytest.mark.parametrize(
    "mime",
    ["application/json", "text/plain", "text/json", "text/plain; charset=utf-8", FORM, None,
     "multipart/form-data; boundary=x", "application/octet-stream"],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "\n ", "\ufeff"])
def test_a_json_object_is_json_whatever_it_is_called(app, gateway, mime, prefix):
    body = prefix + json.dumps({"to": NUMBER, "text": TEXT})
    assert gateway()(data=body.encode(), content_type=mime).status_code == 200
    assert stored(app) == [(NUMBER, TEXT)]


@pytest.mark.parametrize("text", ["Your code:\n493817", "a\r\nb", "a\tb", "a\x00b\x1f\x7fc"])
@pytest.mark.parametrize("mime", ["application/json", FORM])
def test_a_template_that_was_filled_with_any_text(app, gateway, text, mime):
    body = f'{{"to": "{NUMBER}", "text": "{text}"}}'
    assert gateway()(data=body, content_type=mime).status_code == 200
    [(_, kept)] = stored(app)
    assert kept == text


@pytest.mark.parametrize("charset", ["ISO-8859-1", "windows-1252"])
def test_json_in_a_charset_that_it_declares(app, gateway, charset):
    body = json.dumps({"to": NUMBER, "text": "Su código"}, ensure_ascii=False).encode(charset)
    sent = gateway()(data=body, content_type=f"application/json; charset={charset}")
    assert sent.status_code == 200
    assert stored(app) == [(NUMBER, "Su código")]


def test_a_lone_wrong_byte_does_not_cost_the_sms(app, gateway):
    body = b'{"to": "%s", "text": "\xff 493817"}' % NUMBER.encode()
    assert gateway()(data=body, content_type="application/json").status_code == 200
    assert stored(app) == [(NUMBER, "ÿ 493817")]


def test_it_may_be_a_get(app, gateway, receiver):
    send = gateway()
    query = "?" + urlencode({"to": f"+{NUMBER}", "text": TEXT, "messageId": "7", "from": "Bank"})
    for _ in range(2):
        answer = send(query, "GET", headers={"Content-Type": "application/json"})
        assert answer.json["data"]["otp_code"] == "493817"
    [message] = messages(app)
    assert (message.digits, message.sender) == (NUMBER, "Bank")
    assert len(receiver.received) == 1
    assert send("?text=x", "GET").status_code == 400
    assert send(query, "HEAD").status_code == 405


@pytest.mark.parametrize("form", ["json", "data"])
def test_what_the_body_lacks_may_be_in_the_url(app, gateway, form):
    send = gateway()
    assert send(f"?to={NUMBER}&from=Bank", **{form: {"text": TEXT}}).status_code == 200
    assert send(f"?to={OTHER}", **{form: {"to": NUMBER, "text": "B"}}).status_code == 200
    assert send(f"?phone_number={OTHER}", **{form: {"to": NUMBER, "text": "C"}}).status_code == 200
    assert send(f"?to={NUMBER}", **{form: {"phone_number": "", "text": "D"}}).status_code == 200
    assert send("?text=E", **{form: {"to": NUMBER}}).status_code == 200
    assert send("?text=E", **{form: {"to": NUMBER, "text": ""}}).status_code == 200
    assert stored(app) == [(NUMBER, text) for text in (TEXT, "B", "C", "D", "E", "")]
    assert messages(app)[0].sender == "Bank"


@pytest.mark.parametrize(
    "body", [b"{", b'{"to": 1', b"1", b'"x"', b"null", b"[]", b"[1]", b"[[]]", b"[" * 100_000]
)
@pytest.mark.parametrize("mime", ["application/json", "text/plain"])
def test_what_is_no_sms_is_refused(app, gateway, body, mime):
    answer = gateway()(data=body, content_type=mime)
    assert (answer.status_code, answer.json["status"]) == (400, "error")
    assert stored(app) == []


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [("sender", "Bank", "Bank"), ("from", 447, "447"), ("from", [], None)],
)
def test_the_sender_is_kept(app, gateway, name, value, kept):
    assert gateway()(json={"to": NUMBER, "text": TEXT, name: value}).status_code == 200
    assert [message.sender for message in messages(app)] == [kept]


@pytest.mark.parametrize("name", ["id", "message_id", "messageId"])
def test_the_id_has_several_names(app, gateway, name):
    send = gateway()
    for id in (1, 2, "2"):
        assert send(json={"to": NUMBER, "text": TEXT, name: id}).status_code == 200
    assert len(messages(app)) == 2


# --- a list -------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["", "--field sms=a.results"])
def test_each_sms_of_a_list_is_answered(app, gateway, receiver, option):
    sms = [
        {"to": NUMBER, "text": TEXT},
        {"to": "12025550199", "text": "hi"},
        {"to": NUMBER, "text": TEXT},
    ]
    answer = gateway(option)(json={"a": {"results": sms}} if option else sms)
    assert answer.status_code == 200
    assert [
        (data["id"], data["matched"], data["duplicate"], data["webhook"])
        for data in answer.json["data"]
    ] == [
        (1, True, False, "delivered"),
        (2, False, False, "none"),
        (1, True, True, "delivered"),
    ]
    assert len(stored(app)) == 2
    assert len(receiver.received) == 1


def test_nothing_of_a_list_is_stored_if_any_is_wrong(app, gateway):
    send, good = gateway(), {"to": NUMBER, "text": TEXT}
    answer = send(json=[good, {"to": "x", "text": "hi"}, {"to": NUMBER}])
    assert answer.status_code == 400
    assert answer.json["errors"].keys() == {"1.phone_number", "2.sms_text"}
    assert "1.phone_number" in answer.json["message"]
    assert send(json=[good, "x"]).status_code == 400
    assert stored(app) == []


@pytest.mark.parametrize("mapped", ["", " --field sms_text=text --field message_id=id"])
def test_a_lists_recipient_and_not_its_id_or_text_may_be_around_it(app, gateway, mapped):
    send = gateway("--field sms=messages" + mapped)
    batch = {"id": 9, "to": NUMBER, "text": "2 messages", "otp_code": "1"}
    assert send(json=batch | {"messages": [{"text": "A"}, {"text": "B"}]}).status_code == 200
    assert stored(app) == [(NUMBER, "A"), (NUMBER, "B")]
    assert {message.otp_code for message in messages(app)} == {None}
    assert "0.sms_text" in send(json=batch | {"messages": [{"no": "text"}]}).json["errors"]
    # The same SMS in another batch
    assert send(json=batch | {"id": 10, "messages": [{"text": "A"}]}).json["data"][0]["duplicate"]


@pytest.mark.parametrize("found", [None, [], "x", 1, [1], ["x"]])
def test_without_its_list_there_is_no_sms(app, gateway, found):
    answer = gateway("--field sms=a.b")(json={"a": {"b": found}, "to": NUMBER, "text": TEXT})
    assert answer.status_code == 400
    assert answer.json["errors"] == {"sms": ["there is no list of objects at a.b"]}
    assert stored(app) == []


def test_where_the_list_is_an_object_there_is_one_sms(gateway):
    sms = {"to": NUMBER, "text": TEXT}
    assert gateway("--field sms=a")(json={"a": sms}).json["data"]["otp_code"] == "493817"


# --- wherever its fields are --------------------------------------------------------------

DEEP = "--field sms_text=data.payload.text --field phone_number=data.payload.to.0.phone_number"


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (DEEP, {"data": {"payload": {"text": TEXT, "to": [{"phone_number": f"+{NUMBER}"}]}}}),
        # The rest keep their names: beside the text, or around it
        ("--field sms_text=msg", {"to": NUMBER, "msg": TEXT}),
        ("--field sms_text=a.b", {"a": {"b": TEXT, "to": NUMBER}, "to": OTHER}),
        ("--field sms_text=a.b", {"a": {"b": TEXT}, "to": NUMBER}),
        # A field that is mapped has no other name
        (
            "--field sms_text=msg --field phone_number=dst",
            {"to": OTHER, "dst": NUMBER, "msg": TEXT},
        ),
        ("--field sms_text=msg", {"to": NUMBER, "text": "no", "msg": TEXT}),
        # A name with dots, an index as a name, JSON within JSON
        ("--field sms_text=sms.text", {"to": NUMBER, "sms.text": TEXT}),
        ("--field sms_text=a.0", {"to": NUMBER, "a": {"0": TEXT}}),
        (
            "--field sms_text=Message.messageBody --field phone_number=Message.destinationNumber",
            {"Message": json.dumps({"messageBody": TEXT, "destinationNumber": f"+{NUMBER}"})},
        ),
    ],
)  # fmt: skip
def test_a_field_is_where_the_operator_says(app, gateway, options, body):
    assert gateway(options)(json=body).status_code == 200
    assert stored(app) == [(NUMBER, TEXT)]


@pytest.mark.parametrize("how", ["json", "data", "query_string"])
def test_all_fields_may_be_mapped(app, gateway, how):
    names = {
        "phone_number": "dst", "sms_text": "msg", "message_id": "key", "otp_code": "pin",
        "received_at": "at", "sender": "src",
    }  # fmt: skip
    send = gateway(" ".join(f"--field {name}={path}" for name, path in names.items()))
    sent = {"dst": NUMBER, "msg": "hi", "key": "k", "pin": "77", "at": "1600000000", "src": "B"}
    for text in ("hi", "hi", "ho"):
        assert send(**{how: sent | {"msg": text}}).status_code == 200
    first, second = messages(app)
    assert (first.digits, first.otp_code, first.sender) == (NUMBER, "77", "B")
    assert first.received_at.timestamp() == 1_600_000_000
    assert second.sms_text == "ho"


@pytest.mark.parametrize(
    "payload",
    [None, {}, [], "x", {"to": []}, {"to": {}}, {"to": [{}]}, {"to": [None]}, {"to": [[]]},
     {"to": [{"phone_number": {}}]}, {"to": [{"phone_number": None}]}],
)  # fmt: skip
def test_a_path_that_leads_nowhere_is_a_field_that_is_missing(app, gateway, payload):
    answer = gateway(DEEP)(json={"data": {"payload": payload}, "to": NUMBER, "text": TEXT})
    assert answer.status_code == 400
    assert answer.json["errors"].keys() == {"phone_number", "sms_text"}
    assert stored(app) == []


def test_the_url_tells_what_a_mapped_body_lacks(app, gateway):
    assert (
        gateway(DEEP)(f"?to={NUMBER}", json={"data": {"payload": {"text": TEXT}}}).status_code
        == 200
    )
    assert stored(app) == [(NUMBER, TEXT)]


def test_an_events_id_is_not_the_sms_s(app, gateway, receiver):
    send = gateway("--field sms_text=data.content --field phone_number=data.owner")
    for id in ("event 1", "event 2"):
        data = {"owner": f"+{NUMBER}", "content": TEXT}
        assert send(json={"id": id, "data": data}).status_code == 200
    assert len(messages(app)) == len(receiver.received) == 1


# --- whose it is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "told", "digits"),
    [
        ([NUMBER], {}, NUMBER),
        ([NUMBER], {"to": None}, NUMBER),
        ([NUMBER], {"to": ""}, NUMBER),
        ([NUMBER], {"to": " "}, NUMBER),
        ([NUMBER], {"sim": 1}, NUMBER),
        ([NUMBER], {"simNumber": "SIM1"}, NUMBER),
        ([NUMBER], {"sim": "SIM1_Operator_188"}, NUMBER),
        ([NUMBER], {"sim": ""}, NUMBER),
        ([NUMBER], {"sim": "undetected"}, NUMBER),
        ([NUMBER], {"to": NUMBER[1:]}, NUMBER),
        # A recipient that is told wins
        ([NUMBER], {"to": OTHER}, OTHER),
        ([NUMBER], {"to": int(OTHER)}, OTHER),
        ([NUMBER], {"to": f"+{OTHER}", "sim": 1}, OTHER),
        # Another SIM's is its number's, or nobody's
        ([NUMBER], {"sim": 2}, ""),
        ([NUMBER], {"to": "SIM2"}, ""),
        ([NUMBER], {"to": "Ann"}, ""),
        ([NUMBER], {"to": "07400849540"}, ""),
        ([NUMBER], {"sim": "1&1"}, ""),
        ([NUMBER], {"sim": "SIM2", "to": "Ann"}, ""),
        ([NUMBER, f"2={OTHER}"], {"sim": 2}, OTHER),
        ([NUMBER, f"2={OTHER}"], {"sim": "sim2", "to": "Ann"}, OTHER),
        ([NUMBER, f"2={OTHER}"], {"to": "07400849540"}, OTHER),
        ([NUMBER, f"2={OTHER}"], {}, ""),
        ([f"2={OTHER}"], {"sim": 1}, ""),
    ],
)
@pytest.mark.parametrize("form", ["json", "data"])
def test_the_number_of_the_gateway_or_of_its_sim(app, gateway, numbers, told, digits, form):
    if form == "data" and None in told.values():
        return
    send = gateway(" ".join(f"--number {number}" for number in numbers))
    assert send(**{form: {"text": TEXT} | told}).json["data"]["matched"] is bool(digits)
    [message] = messages(app)
    assert message.digits == digits
    assert message.unmatched == (None if digits else "unknown_recipient")


def test_without_a_number_of_its_own_the_recipient_is_required(app, gateway):
    send = gateway()
    for told in ({}, {"to": ""}, {"to": "SIM1"}, {"sim": 1}):
        assert "phone_number" in send(json={"text": TEXT} | told).json["errors"]
    assert stored(app) == []


# --- what it answers ----------------------------------------------------------------------


def test_an_empty_answer_tells_no_code(app, gateway):
    send = gateway("--reply empty")
    for body in ({"to": NUMBER, "text": TEXT}, [{"to": NUMBER, "text": TEXT}]):
        answer = send(json=body)
        assert (answer.status_code, answer.data) == (200, b"")
    assert stored(app) == [(NUMBER, TEXT)]
    assert send(json={"text": TEXT}).status_code == 400


# --- recipes: docs/gateways.md ------------------------------------------------------------

RECIPES = {
    line.split()[3]: line.partition("--format generic ")[2]
    for line in (ROOT / "docs/gateways.md").read_text().splitlines()
    if line.startswith("flask providers add ")
}


@pytest.mark.parametrize(
    ("vendor", "body", "stored"),
    [
        ("infobip", "infobip.json", ("385921004026", "QUIZ Correct answer is Paris", "385916242493",
                                     "2016-10-06T09:28:39.220000+00:00")),
        ("bandwidth", "bandwidth.json", ("12345678902", "Hey, check this out!", "+12345678901",
                                         "2016-09-14T18:20:16+00:00")),
        ("messagebird", "messagebird.form", ("3197010240001", "Hello!", "31612345678",
                                             "2016-05-03T14:26:57+00:00")),
        ("textbee", "textbee.json", (OTHER, "Hello!", "+1234567890", "2025-01-15T10:30:00+00:00")),
        ("smsforwarder", "smsforwarder.form", (OTHER, "123456", "15888888888", None)),
    ],
)  # fmt: skip
def test_the_recipes_read_what_the_vendors_document(app, gateway, vendor, body, stored):
    send, data = gateway(RECIPES[vendor]), (DATA / body).read_bytes()
    mime = "application/json" if body.endswith("json") else FORM
    for _ in range(2):  # sent again, it is the same SMS
        assert send(data=data, content_type=mime).status_code == 200
    [message] = messages(app)
    assert (message.digits, message.sms_text, message.sender) == stored[:3]
    if stored[3]:
        assert message.received_at.isoformat() == stored[3]
    else:
        assert message.received_at == message.created_at


def test_the_recipe_for_a_phone_that_sends_a_get(app, gateway):
    send = gateway(RECIPES["smsforwarder"])
    assert send("?from=15888888888&content=123456", "GET").status_code == 200
    assert stored(app) == [(OTHER, "123456")]


@pytest.mark.parametrize(
    ("sim", "digits"), [("SIM1_China Mobile_", OTHER), ("SIM2_x_1", NUMBER), ("SIM3", ""), ("", "")]
)
def test_the_recipe_for_a_phone_with_two_sims(app, gateway, sim, digits):
    # The app fills the text into its template
    body = f'{{"from":"15888888888","content":"code\n493817","sim":"{sim}"}}'
    send = gateway(RECIPES["smsforwarder2"])
    assert send(data=body, content_type="application/json").status_code == 200
    assert stored(app) == [(digits, "code\n493817")]
