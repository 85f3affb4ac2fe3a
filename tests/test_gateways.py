"""The gateway formats, with requests as the real gateways send them."""

import base64
import hashlib
import hmac
import json
from urllib.parse import quote, urlencode

import pytest
from sqlalchemy import select

from service.models import Message, db
from service.secretbox import seal
from tests.fixtures import NUMBER

TEXTS = [
    "Your code is 123456",
    "رمز التحقق 123456",
    "Zeile 1\nCode: 123456\n🔑",
    "code 123456 " * 30,
]
TWILIO_TOKEN = "12345"  # that of the example in Twilio's documentation
PHONE_SECRET = "signing-key"


@pytest.fixture
def gateway(app, client, make_user, make_provider, assign, receiver):
    """Add a provider of a format; post to it, and see what was stored."""

    class Gateway:
        def __init__(self, format, secret=None, number=None):
            self.user = make_user(webhook_url=receiver.url)
            assign(self.user.id)
            with app.app_context():
                sealed = secret and seal(secret)
            self.path = make_provider(format=format, secret=sealed, number=number)

        def send(self, query="", method="POST", **kwargs):
            return client.open(f"{self.path}{query}", method=method, **kwargs)

        def stored(self):
            with app.app_context():
                return [(m.digits, m.sms_text) for m in db.session.scalars(select(Message))]

        received = receiver.received

    return Gateway


def refused(response, status, word):
    assert response.status_code == status
    assert word in response.json["message"]
    return True


# --- Kannel -------------------------------------------------------------------------------

KANNEL = f"?from=AMZ&to=%2B{NUMBER}&id=d1ab-22&smsc=test"


@pytest.mark.parametrize("charset", ["UTF-8", "UTF-16BE", "utf-16"])
@pytest.mark.parametrize("text", TEXTS)
def test_kannel_posts_the_text_in_the_charset_it_declares(gateway, text, charset):
    kannel = gateway("kannel")
    answer = kannel.send(
        KANNEL, data=text.encode(charset), content_type=f"text/plain; charset={charset}"
    )
    assert (answer.status_code, answer.data, answer.mimetype) == (200, b"", "text/plain")
    assert kannel.stored() == [(NUMBER, text)]
    assert len(kannel.received) == 1


@pytest.mark.parametrize("charset", ["ISO-8859-1", "WINDOWS-1252"])
def test_kannel_with_one_byte_charsets(gateway, charset):
    kannel = gateway("kannel")
    data, mime = "Código 1234".encode(charset), f"text/plain; charset={charset}"
    assert kannel.send(KANNEL, data=data, content_type=mime).status_code == 200
    assert kannel.stored() == [(NUMBER, "Código 1234")]


@pytest.mark.parametrize("charset", ["utf-8", "utf-16be"])
def test_kannel_by_get(gateway, charset):
    kannel = gateway("kannel")
    text = f"&charset={charset}&text={quote(TEXTS[1].encode(charset))}"
    assert kannel.send(KANNEL + text, "GET").status_code == 200
    assert kannel.stored() == [(NUMBER, TEXTS[1])]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("charset", "encoding"),
    [("8-BIT", "latin-1"), ("UTF16-BE", "utf-16-be"), ("ucs-2", "utf-16-be"), ("", "utf-8"),
     ("UTF-16", "utf-16-be"), ("binary", "latin-1")],
)  # fmt: skip
def test_kannel_with_names_that_only_gateways_have(gateway, method, charset, encoding):
    kannel = gateway("kannel")
    data = "Código 1234".encode(encoding)
    sent = {"data": data, "content_type": f"text/plain; charset={charset}"}
    query = f"&charset={charset}&text={quote(data)}"
    answer = kannel.send(KANNEL, **sent) if method == "POST" else kannel.send(KANNEL + query, "GET")
    assert answer.status_code == 200
    assert kannel.stored() == [(NUMBER, "Código 1234")]


def test_kannel_retries_with_the_same_id_are_duplicates(gateway):
    kannel = gateway("kannel")
    for _ in range(3):
        assert (
            kannel.send(KANNEL, data=b"code 123456", content_type="text/plain").status_code == 200
        )
    assert len(kannel.stored()) == len(kannel.received) == 1


def test_kannel_an_empty_sms_is_an_sms(gateway):
    kannel = gateway("kannel")
    assert kannel.send(KANNEL, data=b"", content_type="text/plain").status_code == 200
    assert kannel.send(KANNEL.replace("id=", "id=2") + "&text=", "GET").status_code == 200
    assert kannel.stored() == [(NUMBER, "")] * 2


def test_kannel_malformed(gateway):
    kannel = gateway("kannel")
    post = {"data": b"code 123456", "content_type": "text/plain"}
    assert refused(kannel.send("?from=AMZ&id=1", **post), 400, "phone_number")
    assert refused(kannel.send("?to=me&id=1", **post), 400, "phone_number")
    assert refused(kannel.send(KANNEL, "GET"), 400, "sms_text")
    for charset in ("klingon", "punycode", "unicode_escape", "base64", "a\0b"):
        odd = {"data": b"x", "content_type": f'text/plain; charset="{charset}"'}
        assert refused(kannel.send(KANNEL, **odd), 400, "charset")
    assert refused(kannel.send(KANNEL + "&text=x&charset=klingon", "GET"), 400, "charset")
    assert kannel.stored() == []


# --- Jasmin -------------------------------------------------------------------------------


def jasmin_form(text, coding, charset, id="uuid-1"):
    data = text.encode(charset)
    return {
        "from": "AMZ", "to": NUMBER, "content": data.decode("latin-1"), "id": id, "coding": coding,
        "binary": data.hex(), "origin-connector": "smpp_01", "priority": "0", "validity": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "coding", "charset"),
    [(TEXTS[0], "0", "ascii"), (TEXTS[1], "8", "utf-16-be"), ("Código 1234", "3", "latin-1")],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_jasmin_reads_ucs2_from_binary(gateway, method, text, coding, charset):
    jasmin = gateway("jasmin")
    form = jasmin_form(text, coding, charset)
    sent = {"data": form} if method == "POST" else {"query": "?" + urlencode(form)}
    answer = jasmin.send(method=method, **sent)
    assert (answer.status_code, answer.data) == (200, b"ACK/Jasmin")
    assert jasmin.stored() == [(NUMBER, text)]


# ò, @ and what follows an escape are not where ASCII has them
GSM_BYTES = b"C\x08digo: 1234 \x00shop \x1b(\x1be\x1b)"


@pytest.mark.parametrize(
    ("text", "coding", "data"),
    [
        ("Su código 1234", "0", "Su código 1234".encode("latin-1")),
        ("Su código 1234", "1", "Su código 1234".encode()),
        ("Còdigo: 1234 @shop {€}", "0", GSM_BYTES),
        ("a_b@c $1234", "", b"a_b@c $1234"),
        ("인증번호 1234", "14", "인증번호 1234".encode("cp949")),
        ("コード 1234", "10", "コード 1234".encode("iso2022_jp")),
    ],
)
def test_jasmin_reads_every_coding_from_binary(gateway, text, coding, data):
    jasmin = gateway("jasmin")
    form = jasmin_form("", coding, "ascii") | {"content": data, "binary": data.hex()}
    assert jasmin.send(data=form).data == b"ACK/Jasmin"
    assert jasmin.stored() == [(NUMBER, text)]


def test_jasmin_parts_of_a_long_message_are_all_stored(gateway):
    jasmin = gateway("jasmin")
    for n in (1, 2, 1):  # the last is a retry
        form = jasmin_form("the same part", "0", "ascii", id=f"uuid-{n}")
        assert jasmin.send(data=form).data == b"ACK/Jasmin"
    assert len(jasmin.stored()) == 2


def test_jasmin_malformed(gateway):
    jasmin = gateway("jasmin")
    form = jasmin_form("x", "8", "utf-16-be")
    assert refused(jasmin.send(data=form | {"binary": "no hex"}), 400, "binary")
    assert refused(jasmin.send(data=form | {"to": ""}), 400, "phone_number")
    assert jasmin.stored() == []


# --- Twilio -------------------------------------------------------------------------------

TWILIO_FORM = {"From": "+14158675310", "To": f"+{NUMBER}", "Body": TEXTS[2], "MessageSid": "SM1"}


def twilio_signature(url, form, token=TWILIO_TOKEN):
    text = url + "".join(k + form[k] for k in sorted(form))
    return base64.b64encode(hmac.new(token.encode(), text.encode(), hashlib.sha1).digest()).decode()


def test_twilio_signature_is_that_of_its_documentation():
    """https://www.twilio.com/docs/usage/security: the example there."""
    form = {
        "CallSid": "CA1234567890ABCDE", "Caller": "+14158675309", "Digits": "1234",
        "From": "+14158675309", "To": "+18005551212",
    }  # fmt: skip
    url = "https://mycompany.com/myapp.php?foo=1&bar=2"
    assert twilio_signature(url, form) == "RSOYDt4T1cUTdK1PDd93/VVr8B8="


@pytest.mark.parametrize(
    ("base", "query"),
    [("http://localhost", ""), ("https://localhost", ""), ("https://localhost", "?a=1%20b&c=")],
)
def test_twilio_signature_is_checked_also_behind_a_tls_proxy(gateway, base, query):
    twilio = gateway("twilio", secret=TWILIO_TOKEN)
    signature = twilio_signature(f"{base}{twilio.path}{query}", TWILIO_FORM)
    headers = {"X-Twilio-Signature": signature}
    answer = twilio.send(query, data=TWILIO_FORM, headers=headers)
    assert (answer.status_code, answer.data, answer.mimetype) == (200, b"<Response/>", "text/xml")
    assert twilio.stored() == [(NUMBER, TEXTS[2])]
    changed = TWILIO_FORM | {"Body": "code 999999", "MessageSid": "SM2"}
    for data, signed in (
        (changed, headers),
        (TWILIO_FORM, {}),
        (TWILIO_FORM, {"X-Twilio-Signature": "é"}),
    ):
        assert refused(twilio.send(query, data=data, headers=signed), 401, "Invalid signature")
    assert len(twilio.stored()) == 1


def test_twilio_behind_a_proxy_that_tells_its_name(make_app, make_provider):
    with make_app().app_context():
        path = make_provider(format="twilio", secret=seal(TWILIO_TOKEN))
    client = make_app(TRUSTED_PROXIES=1).test_client()
    headers = {
        "X-Twilio-Signature": twilio_signature(f"https://sms.example.com{path}", TWILIO_FORM),
        "X-Forwarded-Host": "sms.example.com", "X-Forwarded-Proto": "https",
    }  # fmt: skip
    assert client.post(path, data=TWILIO_FORM, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "signed"),
    [
        ("x.example:8443", "https://x.example"),
        ("x.example", "https://x.example:443"),
        ("x.example", "http://x.example:80"),
        ("x.example:8443", "https://x.example:8443"),
    ],
)
def test_twilio_may_sign_the_url_with_or_without_the_port(gateway, host, signed):
    """As its own libraries allow for."""
    twilio = gateway("twilio", secret=TWILIO_TOKEN)
    signature = twilio_signature(f"{signed}{twilio.path}", TWILIO_FORM)
    headers = {"X-Twilio-Signature": signature, "Host": host}
    assert twilio.send(data=TWILIO_FORM, headers=headers).status_code == 200
    headers["Host"] = "y.example"
    assert twilio.send(data=TWILIO_FORM, headers=headers).status_code == 401


def test_twilio_without_a_secret_takes_all_and_no_get(gateway):
    twilio = gateway("twilio")
    assert twilio.send(data=TWILIO_FORM).status_code == 200
    assert twilio.send("?" + urlencode(TWILIO_FORM), "GET").status_code == 405
    assert refused(twilio.send(data={"To": NUMBER}), 400, "sms_text")


# --- android-sms-gateway ------------------------------------------------------------------


def envelope(**payload):
    default = {
        "messageId": "abc123", "message": TEXTS[1], "sender": "AMZ", "recipient": f"+{NUMBER}",
        "simNumber": 1, "receivedAt": "2026-11-24T10:00:00.000+07:00",
    }  # fmt: skip
    return {
        "deviceId": "ffffffffceb0b1db0000018e937c815b", "event": "sms:received", "id": "Ey6ECgOk",
        "payload": default | payload, "webhookId": "LreFUt-Z3sSq0JufY9uWB",
    }  # fmt: skip


def signed(body, secret=PHONE_SECRET, timestamp="1732435200"):
    data = json.dumps(body).encode()
    signature = hmac.new(secret.encode(), data + timestamp.encode(), hashlib.sha256).hexdigest()
    headers = {"X-Signature": signature, "X-Timestamp": timestamp}
    return {"data": data, "headers": headers, "content_type": "application/json"}


def test_android_sms_gateway_is_signed_and_deduplicated_on_the_envelope(gateway, app):
    phone = gateway("android-sms-gateway", secret=PHONE_SECRET)
    for _ in range(2):
        assert phone.send(**signed(envelope())).status_code == 200
    assert phone.stored() == [(NUMBER, TEXTS[1])]
    assert refused(phone.send(**signed(envelope(), secret="another")), 401, "signature")
    assert refused(phone.send(json=envelope()), 401, "signature")
    with app.app_context():
        assert db.session.scalar(select(Message.received_at)).isoformat() == (
            "2026-11-24T03:00:00+00:00"
        )


@pytest.mark.parametrize("recipient", [None, "", NUMBER[1:], "Unknown", f"+{NUMBER}"])
def test_android_sms_gateway_with_a_phone_that_does_not_know_its_number(gateway, recipient):
    phone = gateway("android-sms-gateway", number=NUMBER)
    assert phone.send(json=envelope(recipient=recipient)).status_code == 200
    assert phone.stored() == [(NUMBER, TEXTS[1])]


def test_android_sms_gateway_with_two_sims(gateway):
    """What the phone says in international form is what it means."""
    phone = gateway("android-sms-gateway", number="447400849540")
    assert phone.send(json=envelope(recipient=f"+{NUMBER}")).status_code == 200
    assert phone.stored() == [(NUMBER, TEXTS[1])]


def test_android_sms_gateway_malformed(gateway):
    phone = gateway("android-sms-gateway")
    assert refused(phone.send(json=envelope(recipient=None)), 400, "--number")
    assert refused(phone.send(json=envelope() | {"event": "sms:sent"}), 400, "event")
    assert refused(phone.send(json=envelope() | {"payload": []}), 400, "payload")
    assert refused(phone.send(json=envelope(message=None)), 400, "sms_text")
    assert refused(phone.send(data=b"[", content_type="application/json"), 400, "JSON")
    assert phone.stored() == []


@pytest.mark.parametrize("format", ["generic", "main-server", "android-sms-gateway"])
def test_json_that_is_nested_too_deeply_is_malformed(client, make_provider, format):
    sent = {"data": b"[" * 100_000, "content_type": "application/json"}
    assert refused(client.post(make_provider(format=format), **sent), 400, "JSON")


# --- all of them --------------------------------------------------------------------------

SUCCESS = {
    "kannel": ({"query": KANNEL, "content_type": "text/plain"}, "data"),
    "jasmin": ({"data": jasmin_form("x", "0", "ascii")}, "content"),
    "twilio": ({"data": TWILIO_FORM}, "Body"),
    "android-sms-gateway": ({"json": envelope()}, "message"),
}


@pytest.mark.parametrize("format", SUCCESS)
def test_no_otp_unknown_number_and_duplicate_are_successes(client, make_provider, app, format):
    sent, field = SUCCESS[format]
    sent = json.loads(json.dumps(sent))
    holder = sent.get("json", {}).get("payload") or sent.get("data") or sent
    holder[field] = "no code in this one"
    path = make_provider(format=format) + sent.pop("query", "")
    answers = [client.post(path, **sent) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].data == answers[1].data or format == "android-sms-gateway"
    with app.app_context():
        (message,) = db.session.scalars(select(Message))
        assert (message.user_id, message.otp_code) == (None, None)


@pytest.mark.parametrize("format", SUCCESS)
def test_head_and_put_take_nothing_in(client, make_provider, app, format):
    path = make_provider(format=format) + KANNEL + "&text=code+123456&content=code+123456"
    for method in ("HEAD", "PUT", "DELETE"):
        assert client.open(path, method=method).status_code == 405
    with app.app_context():
        assert db.session.scalar(select(Message)) is None
