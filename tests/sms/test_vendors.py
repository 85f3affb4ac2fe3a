"""The hosted gateways, held to their vendors' libraries: what these sign is accepted, and what is
accepted these verify."""

import base64
import copy
import hashlib
import hmac
import json
import math
import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from plivo.utils import signature_v3, validate_signature, validate_v3_signature
from sqlalchemy import select
from telnyx.lib.webhook_verification import WebhookVerificationError, verify_webhook_signature
from twilio.request_validator import RequestValidator
from vonage_http_client.auth import Auth

from service.database.engine import db
from service.database.models import Message
from service.sms.gateways import FORMATS
from service.sms.gateways.gateway import Options
from service.sms.incoming import Part
from tests.databases import on_sqlite
from tests.fixtures import NUMBER

pytestmark = on_sqlite

# In the shape that the vendors' pages show, each named in the format's module
BODIES = json.loads(Path(__file__).with_name("data").joinpath("vendor_bodies.json").read_text())
TEXT, SENDER, CODE = "Your code is 493817", "13125550001", "493817"
BASE = "https://sms.example.com"
TOKEN = "0123456789abcdef0123456789abcdef"


def body(name, **changes):
    found = copy.deepcopy(BODIES[name])
    if "timestamp" in found:  # of the moment of sending
        found["timestamp"] = str(int(time.time()))
    return found | changes


@pytest.fixture
def gateway(app, client, make_user, flask, assign, receiver, monkeypatch):
    """Add a provider of a format; post to it as its vendor does, and see what was stored.

    It has all the patience of the world: what it sends is delivered at once on slow machines too.
    """

    class Gateway:
        received = receiver.received

        def __init__(self, format, secret=None):
            monkeypatch.setitem(FORMATS, format, FORMATS[format]._replace(patience=math.inf))
            # Before the SMS of the bodies were received
            assign(make_user(webhook_url=receiver.url).id, ago=timedelta(days=10_000))
            given = ("--secret", secret) if secret else ()
            added = flask("providers", "add", "gw", "--format", format, *given, "--json")
            self.path = added["ingest_path"]

        def send(self, query="", method="POST", base=BASE, **kwargs):
            return client.open(f"{self.path}{query}", method=method, base_url=base, **kwargs)

        def stored(self):
            with app.app_context():
                rows = db.session.scalars(select(Message).order_by(Message.id))
                return [(m.digits, m.sender, m.sms_text, m.otp_code) for m in rows]

    return Gateway


def is_refused(answer, status=401, word="Invalid signature"):
    assert (answer.status_code, answer.json["status"]) == (status, "error")
    assert word in answer.json["message"]
    return True


# --- Telnyx -------------------------------------------------------------------------------

KEY = Ed25519PrivateKey.from_private_bytes(b"the private key of these tests!!")
PUBLIC_KEY = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()


def telnyx_event(**payload):
    event = body("telnyx")
    event["data"]["payload"] |= payload
    return event


def telnyx(event, age=0, key=KEY):
    data = json.dumps(event, ensure_ascii=False).encode()
    timestamp = str(int(time.time()) - age)
    signature = base64.b64encode(key.sign(f"{timestamp}|".encode() + data)).decode()
    headers = {"telnyx-signature-ed25519": signature, "telnyx-timestamp": timestamp}
    return {"data": data, "headers": headers, "content_type": "application/json"}


def telnyx_verifies(sent):
    try:
        verify_webhook_signature(sent["data"], sent["headers"], PUBLIC_KEY)
    except WebhookVerificationError:
        return False
    return True


@pytest.mark.parametrize("text", [TEXT, "رمز التحقق 493817", "Zeile 1\nCode: 493817\n🔑"])
@pytest.mark.parametrize("age", [0, 280, -280])
def test_telnyx_signs_what_is_stored(gateway, text, age):
    gw, sent = gateway("telnyx", PUBLIC_KEY), telnyx(telnyx_event(text=text), age)
    assert telnyx_verifies(sent)
    assert gw.send(**sent).status_code == 200
    assert gw.stored() == [(NUMBER, "+" + SENDER, text, CODE)]
    assert len(gw.received) == 1


def test_telnyx_other_signatures_are_refused(gateway):
    gw, good = gateway("telnyx", PUBLIC_KEY), telnyx(body("telnyx"))
    another = Ed25519PrivateKey.generate()
    signature = good["headers"]["telnyx-signature-ed25519"]
    earlier = str(int(good["headers"]["telnyx-timestamp"]) - 1)
    forged = [
        telnyx(body("telnyx"), key=another),
        telnyx(body("telnyx"), age=320),
        telnyx(body("telnyx"), age=-320),
        good | {"data": good["data"].replace(b"493817", b"493818")},
    ]
    for changed in (
        {"telnyx-timestamp": earlier}, {"telnyx-timestamp": "é"},
        {"telnyx-timestamp": ""}, {"telnyx-signature-ed25519": signature[:-4]},
        {"telnyx-signature-ed25519": "é"}, {"telnyx-signature-ed25519": ""},
    ):  # fmt: skip
        forged.append(good | {"headers": good["headers"] | changed})
    for name in good["headers"]:
        forged.append(good | {"headers": {k: v for k, v in good["headers"].items() if k != name}})
    for sent in forged:
        assert is_refused(gw.send(**sent))
        assert not telnyx_verifies(sent)
    assert gw.stored() == []


def test_telnyx_a_clock_that_is_wrong_is_in_the_log(gateway, caplog):
    """Only where the signature is good: others cannot write such a line."""
    gw, old = gateway("telnyx", PUBLIC_KEY), telnyx(body("telnyx"), age=4000)
    old["headers"]["telnyx-signature-ed25519"] = "AAAA"
    gw.send(**old)
    assert "signature_out_of_time" not in caplog.text
    gw.send(**telnyx(body("telnyx"), age=4000))
    assert "event=signature_out_of_time format=telnyx seconds=400" in caplog.text
    for timestamp in ("9" * 400, "9" * 5000):
        headers = telnyx(body("telnyx"))["headers"] | {"telnyx-timestamp": timestamp}
        signed = KEY.sign(f"{timestamp}|".encode())
        headers["telnyx-signature-ed25519"] = base64.b64encode(signed).decode()
        assert is_refused(gw.send(data=b"", headers=headers))


def test_telnyx_an_sms_is_told_by_its_own_id(gateway):
    """Another event (a repeat) of the same SMS has another `data.id`."""
    gw = gateway("telnyx")
    repeat = body("telnyx")
    repeat["data"]["id"] = "another event"
    answers = [gw.send(json=event).json["data"] for event in (body("telnyx"), repeat)]
    assert [answer["duplicate"] for answer in answers] == [False, True]
    other = gw.send(json=telnyx_event(id="another SMS")).json["data"]
    assert (other["duplicate"], len(gw.stored()), len(gw.received)) == (False, 2, 2)


@pytest.mark.parametrize("kind", ["message.sent", "message.finalized", "call.initiated"])
def test_telnyx_other_events_are_a_success_and_nothing_is_stored(gateway, caplog, kind):
    gw, event = gateway("telnyx", PUBLIC_KEY), body("telnyx")
    event["data"]["event_type"] = kind
    answer = gw.send(**telnyx(event))
    assert (answer.status_code, answer.json) == (200, {"status": "success", "data": []})
    assert gw.stored() == []
    assert "event=gateway_event_ignored format=telnyx" in caplog.text
    assert is_refused(gw.send(json=event))


def test_telnyx_a_group_message_is_for_each_of_its_numbers(gateway):
    gw = gateway("telnyx")
    to = [{"phone_number": "+442071838750"}, {"phone_number": f"+{NUMBER}"}]
    answer = gw.send(json=telnyx_event(to=to)).json["data"]
    assert [sms["matched"] for sms in answer] == [False, True]
    assert [digits for digits, *_ in gw.stored()] == ["442071838750", NUMBER]


def test_telnyx_the_time_is_the_sms_centres(gateway, app):
    gateway("telnyx").send(json=body("telnyx"))
    with app.app_context():
        at = db.session.scalar(select(Message.received_at))
    assert at.isoformat() == "2024-11-26T09:30:00.503000+00:00"


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"to": []}, "phone_number"), ({"to": None}, "phone_number"),
        ({"to": ["x"]}, "phone_number"), ({"to": [{"phone_number": "AMZ"}]}, "phone_number"),
        ({"to": {"phone_number": NUMBER}}, "phone_number"), ({"text": None}, "sms_text"),
        ({"text": {}}, "sms_text"), ({"to": 5}, "phone_number"),
    ],
)  # fmt: skip
def test_telnyx_malformed_events_name_the_field(gateway, payload, field):
    gw = gateway("telnyx")
    answer = gw.send(json=telnyx_event(**payload))
    assert is_refused(answer, 400, field)
    assert list(answer.json["errors"]) == [field]
    assert gw.stored() == []


@pytest.mark.parametrize(
    "event", [[], {}, {"data": []}, {"data": {}}, {"data": {"event_type": "message.received"}},
              {"data": {"event_type": 1, "payload": {}}}],
)  # fmt: skip
def test_telnyx_what_is_no_event_is_refused(gateway, event):
    gw = gateway("telnyx")
    assert is_refused(gw.send(json=event), 400, "")
    assert gw.stored() == []


def test_telnyx_optional_fields_never_cost_the_sms(gateway):
    gw = gateway("telnyx")
    for sender in (None, "x", {"phone_number": None}, {"phone_number": []}):
        event = telnyx_event(**{"from": sender}, received_at="yesterday", id=None)
        assert gw.send(json=event).status_code == 200
    assert gw.stored() == [(NUMBER, None, TEXT, CODE)]


# --- Vonage -------------------------------------------------------------------------------

VONAGE_SECRET = "abcdefg123456789"
VONAGE_METHODS = ["md5", "sha1", "sha256", "sha512"]


def vonage_library(method):
    return Auth(api_key="abcd1234", signature_secret=VONAGE_SECRET, signature_method=method)


def vonage_signed(method, **changes):
    params = body("vonage", **changes)
    return params | {"sig": vonage_library(method).sign_params(dict(params))}


def test_vonage_an_old_signature_is_taken_only_for_what_is_stored(gateway):
    gw = gateway("vonage", f"sha256:{VONAGE_SECRET}")
    old = str(int(time.time()) - 310)
    assert is_refused(gw.send(json=vonage_signed("sha256", timestamp=old)))
    assert gw.send(json=vonage_signed("sha256")).status_code == 200
    assert gw.send(json=vonage_signed("sha256", timestamp=old)).json["data"]["duplicate"] is True
    assert is_refused(gw.send(json=vonage_signed("sha256", messageId="other", timestamp=old)))
    without_id = vonage_signed("sha256", messageId="")
    assert is_refused(gw.send(json=without_id), 400, "message_id")
    assert len(gw.stored()) == 1


def test_telnyx_an_old_signature_is_taken_for_what_is_stored(gateway):
    gw = gateway("telnyx", PUBLIC_KEY)
    assert gw.send(**telnyx(body("telnyx"))).status_code == 200
    assert gw.send(**telnyx(body("telnyx"), age=4000)).json["data"]["duplicate"] is True
    assert len(gw.stored()) == 1


def md5_hash(params):
    """As Vonage's page on signatures describes it; the library knows only the HMAC methods."""
    text = "".join(
        f"&{k}={str(v).replace('&', '_').replace('=', '_')}" for k, v in sorted(params.items())
    )
    return hashlib.md5(f"{text}{VONAGE_SECRET}".encode()).hexdigest()


SENDINGS = {
    "POST-JSON": lambda params: {"json": params},
    "POST": lambda params: {"data": params},
    "GET": lambda params: {"query": "?" + urlencode(params), "method": "GET"},
    "JSON without its type": lambda params: {
        "data": json.dumps(params), "content_type": "text/plain"
    },
    "JSON by a form's type": lambda params: {
        "data": json.dumps(params), "content_type": "application/x-www-form-urlencoded"
    },
}  # fmt: skip


@pytest.mark.parametrize("method", VONAGE_METHODS)
@pytest.mark.parametrize("sending", SENDINGS)
@pytest.mark.parametrize("text", [TEXT, "a&b=c 493817 رمز\n🔑"])
def test_vonage_signs_what_is_stored(gateway, method, sending, text):
    gw = gateway("vonage", f"{method}:{VONAGE_SECRET}")
    params = vonage_signed(method, text=text)
    assert vonage_library(method).check_signature(dict(params))
    assert gw.send(**SENDINGS[sending](params)).status_code == 200
    assert gw.stored() == [(NUMBER, SENDER, text, CODE)]
    assert gw.send(**SENDINGS[sending](params | {"sig": params["sig"].upper()})).status_code == 200
    for changes in (
        {"text": "code 493818"}, {"to": "12025550124"}, {"sig": ""}, {"sig": "é"}, {"more": "1"},
        {"sig": md5_hash(body("vonage", text=text))}, {"timestamp": str(int(time.time()) + 100)},
    ):  # fmt: skip
        forged = params | changes
        assert is_refused(gw.send(**SENDINGS[sending](forged)))
        assert changes == {"sig": "é"} or not vonage_library(method).check_signature(dict(forged))
    for name in ("sig", "nonce"):
        missing = {k: v for k, v in params.items() if k != name}
        assert is_refused(gw.send(**SENDINGS[sending](missing)))
    assert len(gw.stored()) == len(gw.received) == 1


@pytest.mark.parametrize("prefix", ["", "md5hash:", "MD5HASH:"])
def test_vonage_signs_by_md5_hash_unless_told_otherwise(gateway, prefix):
    gw, params = gateway("vonage", prefix + VONAGE_SECRET), body("vonage", text="a&b=c 493817")
    assert gw.send(json=params | {"sig": md5_hash(params)}).status_code == 200
    assert is_refused(gw.send(json=vonage_signed("md5")))
    assert is_refused(gw.send(json=params | {"sig": md5_hash(params)[:-1]}))
    assert is_refused(gw.send(json=params))
    half = params | {"text": "\ud83d", "sig": "x"}
    assert is_refused(gw.send(data=json.dumps(half)))
    assert len(gw.stored()) == 1


@pytest.mark.parametrize("name", ["sha256hmac", "SHA256"])
def test_vonage_methods_may_be_named_as_its_libraries_do(gateway, name):
    gw = gateway("vonage", f"{name}:{VONAGE_SECRET}")
    assert gw.send(json=vonage_signed("sha256")).status_code == 200


def test_vonage_a_text_is_an_sms_whatever_is_beside_it(gateway):
    """Also something nested, which Vonage's parameters never are: it is neither read nor signed."""
    gw = gateway("vonage", f"sha256:{VONAGE_SECRET}")
    params = vonage_signed("sha256", status="delivered", **{"err-code": "0"}) | {"more": [{}]}
    assert gw.send(json=params).status_code == 200
    assert gw.stored() == [(NUMBER, SENDER, TEXT, CODE)]


def test_vonage_numbers_in_json_are_signed_as_they_are_written(gateway):
    gw = gateway("vonage", f"sha256:{VONAGE_SECRET}")
    params = vonage_signed("sha256", timestamp=int(time.time()), to=int(NUMBER))
    assert gw.send(json=params).status_code == 200
    assert gw.stored() == [(NUMBER, SENDER, TEXT, CODE)]


def test_vonage_signed_parameters_cannot_be_hidden_in_another(gateway):
    """`&messageId=x&msisdn=y` is also the one parameter `messageId=x&msisdn`: an SMS without an id,
    whose repeats nobody could tell."""
    gw, params = gateway("vonage", f"sha256:{VONAGE_SECRET}"), vonage_signed("sha256")
    name = f"messageId={params.pop('messageId')}&msisdn"
    params[name] = params.pop("msisdn")
    assert vonage_library("sha256").check_signature(dict(params))
    assert is_refused(gw.send(json=params))
    half = vonage_signed("sha256") | {"text": "\ud83d 493817"}
    assert is_refused(gw.send(data=json.dumps(half), content_type="application/json"))
    assert is_refused(gw.send(data=json.dumps(half | {"sig": "\ud83d"})))
    deep = '{"sig":"x","a":' + "[" * 900 + "]" * 900 + "}"
    assert is_refused(gw.send(data=deep, content_type="application/json"))


@pytest.mark.parametrize("sending", ["POST-JSON", "POST", "GET"])
def test_vonage_delivery_reports_are_a_success_and_nothing_is_stored(gateway, caplog, sending):
    gw = gateway("vonage")
    answer = gw.send(**SENDINGS[sending](body("vonage report")))
    assert (answer.status_code, answer.json) == (200, {"status": "success", "data": []})
    assert gw.stored() == []
    assert "event=delivery_report_ignored format=vonage" in caplog.text


@pytest.mark.parametrize(
    ("data", "text"),
    [(TEXT.encode().hex(), TEXT), ("Código".encode().hex().upper(), "Código"), ("", "")],
)
def test_vonage_binary_sms_are_read_from_their_bytes(gateway, data, text):
    gw = gateway("vonage")
    assert gw.send(json=body("vonage", type="binary", data=data, udh="060504158A0000")).status_code
    assert [stored for _, _, stored, _ in gw.stored()] == [text]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"type": "binary", "data": "no hex"}, "data"), ({"type": "binary", "data": None}, "data"),
        ({"to": "VONAGE"}, "phone_number"), ({"to": None}, "phone_number"),
        ({"text": None}, "sms_text"), ({"text": ["a"]}, "sms_text"),
    ],
)  # fmt: skip
def test_vonage_malformed_sms_name_the_field(gateway, changes, field):
    gw = gateway("vonage")
    answer = gw.send(json=body("vonage", **changes))
    assert is_refused(answer, 400, field)
    assert list(answer.json["errors"]) == [field]
    assert gw.stored() == []


@pytest.mark.parametrize("at", ["2024-11-26 09:30:00", "2024-11-26 09:30:00 +0000",
                                "2024-11-26T09:30:00.000+00:00"])  # fmt: skip
@pytest.mark.parametrize("sending", ["POST-JSON", "GET"])
def test_vonage_the_time_is_read_in_all_its_notations(gateway, app, at, sending):
    gateway("vonage").send(**SENDINGS[sending](body("vonage", **{"message-timestamp": at})))
    with app.app_context():
        stored = db.session.scalar(select(Message.received_at))
    assert stored.isoformat() == "2024-11-26T09:30:00+00:00"


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({}, Part("108", 2, 2)),
        ({"concat-part": 1, "concat-total": 2, "concat-ref": 65535, "concat": True},
         Part("65535", 2, 1)),
        ({"concat": "false"}, None), ({"concat-total": "1", "concat-part": "1"}, None),
        ({"concat-part": "3"}, None), ({"concat-part": "0"}, None), ({"concat-total": "256"}, None),
        ({"concat-ref": ""}, None), ({"concat-ref": "1" * 10}, None), ({"concat-part": "٢"}, None),
        ({"concat-total": "9" * 5000}, None), ({"concat-part": "-1"}, None),
        ({"concat-part": None}, None),
    ],
)  # fmt: skip
def test_vonage_tells_which_part_of_a_long_sms_it_is(gateway, app, changes, part):
    """What cannot be one never costs the SMS."""
    params = body("vonage part", **changes)
    with app.test_request_context("/", method="POST", json=params) as context:
        sms = FORMATS["vonage"].parse(context.request, Options())
    assert (sms.part, sms.sms_text, sms.sender) == (part, params["text"], SENDER)


# --- Plivo --------------------------------------------------------------------------------


def plivo_v3(url, params, nonce="05429567804466091622", token=TOKEN, header="X-Plivo-Signature-V3"):
    """What Plivo's library expects for a POST."""
    signed = signature_v3.construct_post_url(url, dict(params)).decode()
    signature = signature_v3.get_signature_v3(token.encode(), signed, nonce.encode()).decode()
    return {header: signature, "X-Plivo-Signature-V3-Nonce": nonce}


def plivo_verifies(url, params, headers, header="X-Plivo-Signature-V3"):
    nonce = headers["X-Plivo-Signature-V3-Nonce"]
    return validate_v3_signature("POST", url, nonce, TOKEN, headers[header], dict(params))


@pytest.mark.parametrize("query", ["", "?b=2&a=1", "?a=b%20c+d&e=", "?z=1&z=0&y"])
@pytest.mark.parametrize("text", [TEXT, "a&b=c 493817 رمز\n🔑"])
def test_plivo_signs_what_is_stored(gateway, query, text):
    gw, params = gateway("plivo", TOKEN), body("plivo", Text=text)
    headers = plivo_v3(BASE + gw.path + query, params)
    assert plivo_verifies(BASE + gw.path + query, params, headers)
    answer = gw.send(query, data=params, headers=headers)
    assert (answer.status_code, answer.data, answer.mimetype) == (200, b"<Response/>", "text/xml")
    assert gw.stored() == [(NUMBER, SENDER, text, CODE)]
    for changes in ({"Text": "code 493818"}, {"To": "12025550124"}, {"More": "1"}):
        forged = params | changes
        assert is_refused(gw.send(query, data=forged, headers=headers))
        assert not plivo_verifies(BASE + gw.path + query, forged, headers)
    for name in headers:
        missing = {k: v for k, v in headers.items() if k != name}
        assert is_refused(gw.send(query, data=params, headers=missing))
        assert is_refused(gw.send(query, data=params, headers=headers | {name: "é"}))
    assert is_refused(gw.send(query + "&x=1" if query else "?x=1", data=params, headers=headers))
    assert len(gw.stored()) == 1


def test_plivo_signs_each_value_of_a_parameter(gateway):
    gw, params = gateway("plivo", TOKEN), body("plivo", Media=["b", "a", "b"])
    headers = plivo_v3(BASE + gw.path, params)
    assert gw.send(data=params, headers=headers).status_code == 200
    headers = plivo_v3(BASE + gw.path, params | {"Media": ["a", "b"]})
    assert is_refused(gw.send(data=params, headers=headers))


@pytest.mark.parametrize("signed", ["https://sms.example.com", "https://sms.example.com:443"])
@pytest.mark.parametrize("base", ["http://sms.example.com", "https://sms.example.com:443"])
def test_plivo_behind_a_proxy_that_ends_tls(gateway, base, signed):
    gw, params = gateway("plivo", TOKEN), body("plivo")
    headers = plivo_v3(signed + gw.path, params)
    assert gw.send(base=base, data=params, headers=headers).status_code == 200
    assert is_refused(gw.send(base="http://other.example.com", data=params, headers=headers))


def test_plivo_the_main_accounts_signature_and_one_of_several_count(gateway):
    """A subaccount's SMS is signed with both tokens, and while one is replaced with old and new."""
    gw, params = gateway("plivo", TOKEN), body("plivo")
    url, main = BASE + gw.path, "X-Plivo-Signature-Ma-V3"
    assert gw.send(data=params, headers=plivo_v3(url, params, header=main)).status_code == 200
    other, ours = plivo_v3(url, params, token="other"), plivo_v3(url, params)
    both = other["X-Plivo-Signature-V3"] + "," + ours["X-Plivo-Signature-V3"]
    headers = ours | {"X-Plivo-Signature-V3": both}
    assert plivo_verifies(url, params, headers)
    assert gw.send(data=params, headers=headers).status_code == 200
    sub = other | {main: ours["X-Plivo-Signature-V3"]}
    assert gw.send(data=params, headers=sub).status_code == 200
    assert is_refused(gw.send(data=params, headers=other | {main: ",,"}))
    assert is_refused(
        gw.send(data=params, headers=plivo_v3(url, params, token="other", header=main))
    )


def test_plivo_version_2_counts_where_no_version_3_was_sent(gateway):
    """Plivo's pages on messaging describe it; a wrong version 3 is no reason to look at it."""
    gw, params = gateway("plivo", TOKEN), body("plivo")
    url, nonce = f"{BASE}{gw.path}", "05429567804466091622"
    digest = hmac.digest(TOKEN.encode(), f"{url}{nonce}".encode(), "sha256")
    mac = base64.b64encode(digest).decode()
    assert validate_signature(url + "?a=1", nonce, mac, TOKEN)
    for header in ("X-Plivo-Signature-V2", "X-Plivo-Signature-Ma-V2"):
        headers = {header: mac, "X-Plivo-Signature-V2-Nonce": nonce}
        assert gw.send("?a=1", data=params, headers=headers).status_code == 200
        assert is_refused(gw.send(data=params, headers=headers | {header: mac.swapcase()}))
        assert is_refused(gw.send(data=params, headers={header: mac}))
        for wrong in ("X-Plivo-Signature-V3", "X-Plivo-Signature-Ma-V3"):
            assert is_refused(gw.send(data=params, headers=headers | {wrong: "AAAA"}))
    assert len(gw.stored()) == 1


def test_plivo_delivery_reports_are_a_success_and_nothing_is_stored(gateway, caplog):
    gw, params = gateway("plivo", TOKEN), body("plivo report")
    answer = gw.send(data=params, headers=plivo_v3(BASE + gw.path, params))
    assert (answer.status_code, answer.data) == (200, b"<Response/>")
    assert gw.stored() == []
    assert "event=delivery_report_ignored format=plivo" in caplog.text
    assert is_refused(gw.send(data=params))


def test_plivo_a_picture_message_has_its_text_elsewhere(gateway):
    gw, params = gateway("plivo"), body("plivo", Type="mms", Body=TEXT)
    del params["Text"]
    assert gw.send(data=params).status_code == 200
    assert gw.stored() == [(NUMBER, SENDER, TEXT, CODE)]


def test_plivo_malformed_sms_name_the_field_and_get_is_no_way(gateway):
    gw = gateway("plivo")
    for name, field in (("To", "phone_number"), ("Text", "sms_text")):
        answer = gw.send(data={k: v for k, v in body("plivo").items() if k != name})
        assert is_refused(answer, 400, field)
    assert is_refused(gw.send(data=body("plivo", To="PLIVO")), 400, "phone_number")
    assert gw.send("?" + urlencode(body("plivo")), method="GET").status_code == 405
    assert gw.stored() == []


# --- Twilio -------------------------------------------------------------------------------

TWILIO = RequestValidator(TOKEN)
SETTINGS = "X-Twilio-Webhooks-Signature-Settings"


@pytest.mark.parametrize("query", ["", "?foo=1&bar=2", "?b=a%20b+c&a='&c=%C3%A9&d", "?é=1"])
@pytest.mark.parametrize("signed", ["", ":443", ":8443"])
@pytest.mark.parametrize("algorithm", [None, "HMAC_SHA1", "HMAC_SHA256"])
def test_twilio_signs_what_is_stored(gateway, query, signed, algorithm):
    gw, params = gateway("twilio", TOKEN), body("twilio", Body="a&b=c 493817 رمز\n🔑 ")
    url = f"{BASE}{signed}{gw.path}{query}"
    headers = {"X-Twilio-Signature": TWILIO.compute_signature(url, params, algorithm)}
    if algorithm:
        headers[SETTINGS] = f"key=webhooks_sharedkey_1, algorithm={algorithm}"
    base = BASE + (":8443" if signed == ":8443" else "")
    assert TWILIO.validate(url, params, headers["X-Twilio-Signature"], algorithm)
    assert gw.send(query, base=base, data=params, headers=headers).status_code == 200
    assert gw.stored() == [(NUMBER, "+" + SENDER, params["Body"], CODE)]
    for changes in ({"Body": "code 493818"}, {"To": "+12025550124"}, {"More": "1"}):
        forged = params | changes
        assert is_refused(gw.send(query, base=base, data=forged, headers=headers))
        assert not TWILIO.validate(url, forged, headers["X-Twilio-Signature"], algorithm)
    for wrong in ("HMAC_MD5", "HMAC_SHA256" if algorithm != "HMAC_SHA256" else "HMAC_SHA1"):
        other = headers | {SETTINGS: f"key=k,algorithm={wrong}"}
        assert is_refused(gw.send(query, base=base, data=params, headers=other))
        assert not TWILIO.validate(url, params, headers["X-Twilio-Signature"], wrong)
    assert len(gw.stored()) == 1


@pytest.mark.parametrize("settings", ["", "key=k", "key=k, Algorithm=x", "key=k,algorithm= ",
                                      "algorithm=, algorithm = hmac_sha1 ,x"])  # fmt: skip
def test_twilio_signs_by_sha_1_unless_its_header_names_another(gateway, settings):
    gw, params = gateway("twilio", TOKEN), body("twilio")
    headers = {"X-Twilio-Signature": TWILIO.compute_signature(BASE + gw.path, params)}
    assert gw.send(data=params, headers=headers | {SETTINGS: settings}).status_code == 200


@pytest.mark.parametrize("values", [["b", "a", "b"], ["", ""], ["é", "e", "🔑"]])
def test_twilio_repeated_parameters_and_odd_names(gateway, client, values):
    gw, seen = gateway("twilio", TOKEN), []
    params = body("twilio", **{"MediaUrl": values, "a b&c=é": "x", "Z": "", "z": "1"})

    class Validator(RequestValidator):
        """Given the form as a Flask application gets it."""

        def get_values(self, params, name):
            value = params[name]
            seen.append(name)
            return value if isinstance(value, list) else [value]

    signature = Validator(TOKEN).compute_signature(BASE + gw.path, params)
    assert gw.send(data=params, headers={"X-Twilio-Signature": signature}).status_code == 200
    assert "MediaUrl" in seen


def test_twilio_bytes_that_are_no_text_in_the_url_are_refused(gateway):
    gw = gateway("twilio", TOKEN)
    for format_query in ("\xff", "%FF"):
        odd = {"QUERY_STRING": format_query}
        answer = gw.send(data=body("twilio"), environ_overrides=odd)
        assert is_refused(answer)


def test_twilio_behind_a_proxy_that_ends_tls(gateway):
    gw, params = gateway("twilio", TOKEN), body("twilio")
    headers = {"X-Twilio-Signature": TWILIO.compute_signature(BASE + gw.path, params)}
    assert gw.send(base="http://sms.example.com", data=params, headers=headers).status_code == 200
    for base in ("http://other.example.com", "http://sms.example.com.evil.example"):
        assert is_refused(gw.send(base=base, data=params, headers=headers))


# --- all of them --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "secret", "sentence"),
    [
        ("telnyx", "KEY0123456789", "32 bytes in base64"),
        ("telnyx", PUBLIC_KEY[:-4], "32 bytes in base64"),
        ("telnyx", PUBLIC_KEY + "AAAA", "32 bytes in base64"),
        ("telnyx", PUBLIC_KEY + "\n", "32 bytes in base64"),
        ("telnyx", "", "32 bytes in base64"),
        ("vonage", "sha3:abc", "md5hash, md5, sha1, sha256, sha512"),
        ("vonage", "sha256:", "signature secret"),
        ("vonage", "abc def", "signature secret"),
        ("vonage", "", "signature secret"),
        ("plivo", "", "auth token"),
        ("plivo", "abc ", "auth token"),
        ("plivo", "é", "auth token"),
    ],
)
def test_a_secret_that_cannot_be_one_is_refused(flask, format, secret, sentence):
    add = ("providers", "add", "gw", "--format", format, "--secret", secret)
    assert sentence in " ".join(flask(*add, exit_code=2).split())
    assert flask("providers", "list", "--json") == []


def test_how_long_the_gateways_wait_is_known(app):
    waits = {name: gateway.patience for name, gateway in FORMATS.items()}
    assert waits | {
        "telnyx": 2, "plivo": 8, "vonage": 15, "twilio": 15, "jasmin": 30,
        "android-sms-gateway": 30, "kannel": 240,
    } == waits  # fmt: skip


@pytest.mark.parametrize(
    ("format", "sent"),
    [("telnyx", {"json": BODIES["telnyx"]}), ("vonage", {"json": BODIES["vonage"]}),
     ("plivo", {"data": BODIES["plivo"]}), ("twilio", {"data": BODIES["twilio"]})],
)  # fmt: skip
def test_without_a_secret_all_is_taken_and_repeats_are_told(gateway, format, sent):
    gw = gateway(format)
    assert [gw.send(**sent).status_code for _ in range(3)] == [200] * 3
    assert len(gw.stored()) == len(gw.received) == 1


@pytest.mark.parametrize("format", ["telnyx", "vonage", "plivo", "twilio"])
def test_the_steps_name_the_address_once(flask, format):
    """Where they say what to do with it, they must not contain the word that it replaces."""
    steps = flask("providers", "add", "gw", "--format", format).partition("\n\n")[2]
    assert steps.count("https://YOUR-SERVICE/api/ingest/ing_") == 1
    assert steps.splitlines()[-1].startswith("  https://")


@pytest.mark.parametrize("format", ["plivo", "twilio"])
@pytest.mark.parametrize("host", ["", "é", "a b", "[::1", "[::1]:80", "x:y:z", "x:", ":80", "@"])
def test_no_host_is_an_error_of_ours(gateway, client, format, host):
    gw = gateway(format, TOKEN)
    headers = {"Host": host, "X-Plivo-Signature-V3": "AAAA", "X-Twilio-Signature": "AAAA"}
    answer = client.post(gw.path, data=BODIES[format], headers=headers)
    assert answer.status_code in (400, 401)
