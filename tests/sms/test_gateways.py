"""The gateway formats, with requests as the real gateways send them."""

import base64
import hashlib
import hmac
import io
import itertools
import json
from urllib.parse import quote, urlencode

import pytest
from sqlalchemy import select
from standardwebhooks import Webhook

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Message
from tests.conftest import SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import NUMBER, android_envelope, new_secret

TEXTS = [
    "Your code is 123456",
    "رمز التحقق 123456",
    "Zeile 1\nCode: 123456\n🔑",
    "code 123456 " * 30,
]
TWILIO_TOKEN = "12345"  # that of the example in Twilio's documentation


@pytest.fixture
def add_provider(flask):
    """Add a provider as its operator does; gives its ingest path."""
    names = itertools.count()

    def add(format, **options):
        given = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = ("providers", "add", f"gw{next(names)}", "--format", format, *given, "--json")
        return flask(*command)["ingest_path"]

    return add


@pytest.fixture
def gateway(app, client, make_user, add_provider, assign, receiver):
    """Add a provider of a format; post to it, and see what was stored."""

    class Gateway:
        def __init__(self, format, **options):
            self.user = make_user(webhook_url=receiver.url)
            assign(self.user.id)
            self.path = add_provider(format, **options)

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
@on_sqlite
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
@on_sqlite
def test_kannel_with_names_that_only_gateways_have(gateway, method, charset, encoding):
    kannel = gateway("kannel")
    data = "Código 1234".encode(encoding)
    sent = {"data": data, "content_type": f"text/plain; charset={charset}"}
    query = f"&charset={charset}&text={quote(data)}"
    answer = kannel.send(KANNEL, **sent) if method == "POST" else kannel.send(KANNEL + query, "GET")
    assert answer.status_code == 200
    assert kannel.stored() == [(NUMBER, "Código 1234")]


@on_sqlite
@pytest.mark.parametrize("charset", [None, "utf-8", "%20Utf-8%20"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_kannel_without_a_charset_speaks_utf_8(gateway, method, charset):
    kannel, data = gateway("kannel"), TEXTS[1].encode()
    if method == "POST":
        sent = {"data": data, "content_type": "text/plain"}
        assert kannel.send(KANNEL + "&text=no&charset=utf-16", **sent).status_code == 200
    else:
        named = f"&charset={charset}" if charset else ""
        assert kannel.send(f"{KANNEL}&text={quote(data)}{named}", "GET").status_code == 200
    assert kannel.stored() == [(NUMBER, TEXTS[1])]


# 3GPP TS 23.038, 6.2.1, as Unicode's own mapping (GSM0338.TXT) has it
GSM = """
40 A3 24 A5 E8 E9 F9 EC F2 C7 0A D8 F8 0D C5 E5 394 5F 3A6 393 39B 3A9 3A0 3A8 3A3 398 39E 1B C6 E6
DF C9 20 21 22 23 A4 25 26 27 28 29 2A 2B 2C 2D 2E 2F 30 31 32 33 34 35 36 37 38 39 3A 3B 3C 3D 3E
3F A1 41 42 43 44 45 46 47 48 49 4A 4B 4C 4D 4E 4F 50 51 52 53 54 55 56 57 58 59 5A C4 D6 D1 DC A7
BF 61 62 63 64 65 66 67 68 69 6A 6B 6C 6D 6E 6F 70 71 72 73 74 75 76 77 78 79 7A E4 F6 F1 FC E0
"""
GSM_TABLE = [chr(int(code, 16)) for code in GSM.split()]


@on_sqlite
@pytest.mark.parametrize("charset", ["7-BIT", "GSM-7", "gsm"])
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (bytes(b for b in range(128) if b != 0x1B), "".join(c for c in GSM_TABLE if c != "\x1b")),
        (b"\x1b\n\x1b\x14\x1b(\x1b)\x1b/\x1b<\x1b=\x1b>\x1b@\x1be", "\f^{}\\[~]|€"),
        (b"1\x1bA2\x1b\x1b3\x80\xff\x1b", "1A23\ufffd\ufffd"),
    ],
)
def test_kannel_with_the_default_alphabet_of_gsm(gateway, charset, data, text):
    """All of it, its extension, and what belongs to neither."""
    kannel = gateway("kannel")
    mime = f"text/plain; charset={charset}"
    assert kannel.send(KANNEL, data=data, content_type=mime).status_code == 200
    assert kannel.stored() == [(NUMBER, text)]


@on_sqlite
@pytest.mark.parametrize(
    ("charset", "data", "text"),
    [
        ("utf-8", b"code \xff1234", "code \ufffd1234"),
        ("utf16", "code ✓".encode("utf-16-be"), "code ✓"),
        ("utf-16", b"\xfe\xff" + "code ✓".encode("utf-16-be"), "code ✓"),
        ("utf-16", b"\xff\xfe" + "code ✓".encode("utf-16-le"), "code ✓"),
        ("ucs2", "code ✓".encode("utf-16-be"), "code ✓"),
        ("utf-16-le", "code ✓".encode("utf-16-le"), "code ✓"),
    ],
)
def test_kannel_byte_orders_and_bytes_that_are_not_of_the_charset(gateway, charset, data, text):
    kannel = gateway("kannel")
    mime = f"text/plain; charset={charset}"
    assert kannel.send(KANNEL, data=data, content_type=mime).status_code == 200
    assert kannel.stored() == [(NUMBER, text)]


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


@on_sqlite
def test_kannel_malformed(gateway):
    kannel = gateway("kannel")
    post = {"data": b"code 123456", "content_type": "text/plain"}
    assert refused(kannel.send("?from=AMZ&id=1", **post), 400, "phone_number")
    assert refused(kannel.send("?to=me&id=1", **post), 400, "phone_number")
    assert refused(kannel.send(KANNEL, "GET"), 400, "sms_text")
    names = ("punycode", "idna", "unicode_escape", "raw_unicode_escape")  # notations
    for charset in ("klingon", *names, "base64", "a\0b"):
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
        ("コード 1234", "5", "コード 1234".encode("shift_jis")),
        ("Код 1234", "6", "Код 1234".encode("iso-8859-5")),
        ("קוד 1234", "7", "קוד 1234".encode("iso-8859-8")),
        # Tabs and line ends do not make it GSM, nor anything else what is not ASCII
        ("a_b\tc\r\n@1234", "0", b"a_b\tc\r\n@1234"),
        ("código\x02_1234", "0", "código\x02_1234".encode()),
        ("Δ_$1234", "0", b"\x10\x11\x021234"),
    ],
)
@on_sqlite
def test_jasmin_reads_every_coding_from_binary(gateway, text, coding, data):
    jasmin = gateway("jasmin")
    form = jasmin_form("", coding, "ascii") | {"content": data, "binary": data.hex()}
    assert jasmin.send(data=form).data == b"ACK/Jasmin"
    assert jasmin.stored() == [(NUMBER, text)]


@on_sqlite
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"content": "Hello 1234", "coding": "8"}, "Hello 1234"),
        ({"content": "no", "binary": b"Hello".hex(), "coding": "99"}, "Hello"),
        ({"content": "no", "binary": b"Hello".hex()}, "Hello"),
        ({"content": "", "binary": "", "coding": "8"}, ""),
        ({"coding": "0"}, None),
    ],
)
def test_jasmin_reads_content_only_when_there_is_no_binary(gateway, fields, text):
    jasmin = gateway("jasmin")
    answer = jasmin.send(data={"to": NUMBER, "id": "1"} | fields)
    if text is None:
        assert refused(answer, 400, "sms_text")
    else:
        assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    assert [stored for _, stored in jasmin.stored()] == ([] if text is None else [text])


def test_jasmin_parts_of_a_long_message_are_all_stored(gateway):
    jasmin = gateway("jasmin")
    for n in (1, 2, 1):  # the last is a retry
        form = jasmin_form("the same part", "0", "ascii", id=f"uuid-{n}")
        assert jasmin.send(data=form).data == b"ACK/Jasmin"
    assert len(jasmin.stored()) == 2


@on_sqlite
def test_jasmin_malformed(gateway):
    jasmin = gateway("jasmin")
    form = jasmin_form("x", "8", "utf-16-be")
    answer = jasmin.send(data=form | {"binary": "no hex"})
    assert refused(answer, 400, "binary")
    assert answer.json["errors"] == {"binary": ["must be hex"]}
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


@on_sqlite
@pytest.mark.parametrize("proxies", [0, 1])
def test_twilio_behind_a_proxy_that_tells_its_name(make_app, add_provider, proxies):
    """And when none is trusted, a caller does not choose which URL was signed."""
    path = add_provider("twilio", secret=TWILIO_TOKEN)
    client = make_app(TRUSTED_PROXIES=proxies).test_client()
    headers = {
        "X-Twilio-Signature": twilio_signature(f"https://sms.example.com{path}", TWILIO_FORM),
        "X-Forwarded-Host": "sms.example.com", "X-Forwarded-Proto": "https",
    }  # fmt: skip
    answer = client.post(path, data=TWILIO_FORM, headers=headers)
    assert answer.status_code == (200 if proxies else 401)


@on_sqlite
def test_twilio_signs_each_value_of_a_parameter_once(gateway):
    """As its own libraries do: sorted, and what is there twice counted once."""
    twilio = gateway("twilio", secret=TWILIO_TOKEN)
    fields = {**TWILIO_FORM, "MediaUrl": ["b", "a", "b"]}
    text = "".join(k + fields[k] for k in sorted(TWILIO_FORM) if k < "MediaUrl")
    text += "MediaUrlaMediaUrlb"
    text += "".join(k + fields[k] for k in sorted(TWILIO_FORM) if k > "MediaUrl")
    signature = twilio_signature(f"http://localhost{twilio.path}{text}", {})
    headers = {"X-Twilio-Signature": signature}
    assert twilio.send(data=fields, headers=headers).status_code == 200
    assert twilio.stored() == [(NUMBER, TEXTS[2])]


@pytest.mark.parametrize(
    ("host", "signed"),
    [
        ("x.example:8443", "https://x.example"),
        ("x.example", "https://x.example:443"),
        ("x.example", "http://x.example:80"),
        ("x.example:8443", "https://x.example:8443"),
    ],
)
@on_sqlite
def test_twilio_may_sign_the_url_with_or_without_the_port(gateway, host, signed):
    """As its own libraries allow for."""
    twilio = gateway("twilio", secret=TWILIO_TOKEN)
    signature = twilio_signature(f"{signed}{twilio.path}", TWILIO_FORM)
    headers = {"X-Twilio-Signature": signature, "Host": host}
    assert twilio.send(data=TWILIO_FORM, headers=headers).status_code == 200
    headers["Host"] = "y.example"
    assert twilio.send(data=TWILIO_FORM, headers=headers).status_code == 401


@on_sqlite
def test_twilio_without_a_secret_takes_all_and_no_get(gateway):
    twilio = gateway("twilio")
    assert twilio.send(data=TWILIO_FORM).status_code == 200
    assert twilio.send("?" + urlencode(TWILIO_FORM), "GET").status_code == 405
    assert refused(twilio.send(data={"To": NUMBER}), 400, "sms_text")
    # Only what is signed counts: the query is part of the URL, and no field
    assert refused(twilio.send("?" + urlencode(TWILIO_FORM), data={}), 400, "phone_number")


# --- JSON ---------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize("format", ["generic", "main-server", "android-sms-gateway"])
def test_json_that_is_nested_too_deeply_is_malformed(client, make_provider, format):
    sent = {"data": b"[" * 100_000, "content_type": "application/json"}
    assert refused(client.post(make_provider(format=format), **sent), 400, "JSON")


# A body that does not tell its length, as servers hand it on
CHUNKED = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}


# --- generic ------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ({"phone_number": NUMBER, "to": "99999", "sms_text": "A", "text": "B"}, (NUMBER, "A")),
        ({"to": NUMBER, "phone_number": None, "text": "B", "message": "C"}, (NUMBER, "B")),
        ({"to": NUMBER, "sms_text": None, "message": "C", "body": "D"}, (NUMBER, "C")),
        ({"to": NUMBER, "sms_text": "", "body": "D"}, (NUMBER, "")),
        ({"to": NUMBER, "body": "D", "id": None, "otp_code": None, "from": 1}, (NUMBER, "D")),
    ],
)
def test_generic_takes_the_first_name_that_has_a_value(gateway, sent, stored):
    generic = gateway("generic")
    assert generic.send(json=sent).status_code == 200
    assert generic.stored() == [stored]


@on_sqlite
@pytest.mark.parametrize(
    ("ids", "stored"),
    [
        (({"id": "1"}, {"id": "2"}, {"id": "1"}), 2),
        (({"message_id": "1"}, {"message_id": "2"}, {"message_id": "3"}, {"id": "3"}), 3),
        (({"id": "1", "message_id": "x"}, {"id": "2", "message_id": "x"}), 2),
        (({"id": ""}, {}, {"message_id": ""}), 1),
    ],
)
@pytest.mark.parametrize("form", ["json", "data"])
def test_generic_tells_sms_apart_by_their_id(gateway, form, ids, stored):
    generic, sms = gateway("generic"), {"to": NUMBER, "text": "code 123456"}
    for id in ids:
        assert generic.send(**{form: sms | id}).status_code == 200
    assert len(generic.stored()) == stored


@on_sqlite
def test_every_field_that_is_wrong_is_named(client, make_provider):
    answer = client.post(make_provider(), json={"otp_code": "1;2", "to": "x"})
    assert answer.json["message"] == "Invalid phone_number, sms_text"
    assert answer.json["errors"].keys() == {"phone_number", "sms_text"}


@on_sqlite
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("told", [True, False])
def test_a_body_may_have_256_kilobytes(gateway, told, extra):
    """One that does not tell its length may be cut at that, so it must have fewer."""
    generic, limit = gateway("generic"), 256 * 1024
    body = json.dumps({"to": NUMBER, "text": "code 123456"}).encode()
    body = body.ljust(limit - (not told) + extra)
    sent = {"input_stream": io.BytesIO(body), "content_type": "application/json"}
    if told:
        sent["headers"] = {"Content-Length": len(body)}
    else:
        sent["environ_overrides"] = CHUNKED
    answer = generic.send(**sent)
    assert (answer.status_code, len(generic.stored())) == ((413, 0) if extra else (200, 1))
    if extra:
        assert answer.json["status"] == "error"


@on_sqlite
@pytest.mark.parametrize("format", ["generic", "jasmin"])
def test_a_form_that_does_not_tell_its_length_is_read(gateway, format):
    generic = gateway(format)
    fields = {"to": NUMBER, "text": "code 123456", "content": "code 123456"}
    answer = generic.send(
        input_stream=io.BytesIO(urlencode(fields).encode()),
        content_type="application/x-www-form-urlencoded",
        environ_overrides=CHUNKED,
    )
    assert answer.status_code == 200
    assert generic.stored() == [(NUMBER, "code 123456")]


# --- another deployment as a gateway ------------------------------------------------------


@on_sqlite
def test_a_main_server_may_be_a_provider_with_a_name_and_a_secret_of_its_own(
    app, gateway, make_app
):
    secret = new_secret()
    main = gateway("main-server", secret=secret)
    data = {"phone_number": f"+{NUMBER}", "sms_text": "A 123456", "provider": "carrier"}
    body = json.dumps({"event": "otp_received", "data": data})

    def post(key):
        now = utcnow()
        headers = {"webhook-id": "m", "webhook-timestamp": str(int(now.timestamp()))}
        headers["webhook-signature"] = Webhook(key).sign("m", now, body)
        # Many a client says nothing of JSON
        return main.send(data=body, headers=headers, content_type="text/plain")

    assert refused(main.send(data=body), 401, "Invalid signature")
    assert refused(post(new_secret()), 401, "Invalid signature")
    assert main.stored() == []
    answer = post(secret)
    assert (answer.status_code, answer.json["data"]["matched"]) == (200, True)
    with app.app_context():
        assert db.session.scalars(select(Message.provider)).all() == ["gw0"]


# --- all of them --------------------------------------------------------------------------

SUCCESS = {
    "kannel": ({"query": KANNEL, "content_type": "text/plain"}, "data"),
    "jasmin": ({"data": jasmin_form("x", "0", "ascii")}, "content"),
    "twilio": ({"data": TWILIO_FORM}, "Body"),
    "android-sms-gateway": ({"json": android_envelope()}, "message"),
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


@on_sqlite
@pytest.mark.parametrize(
    ("field", "id"),
    [
        ("kannel", None),
        ("jasmin", ("data", "id")),
        ("twilio", ("data", "MessageSid")),
        ("android-sms-gateway", ("json", "id")),
    ],
)
def test_the_same_text_with_another_id_is_another_sms(gateway, field, id):
    sender, (sent, _) = gateway(field), SUCCESS[field]
    sent = json.loads(json.dumps(sent))
    for n in (1, 2, 2):
        if id:
            sent[id[0]][id[1]] = f"id {n}"
            sent.get("json", {}).get("payload", {})["messageId"] = f"message {n}"
        else:
            sent["query"] = KANNEL.replace("id=", f"id={n}")
        assert sender.send(**sent).status_code == 200
    assert len(sender.stored()) == 2


@on_sqlite
@pytest.mark.parametrize("format", ["android-sms-gateway", "main-server", "generic"])
def test_json_counts_as_json_without_a_content_type(gateway, format):
    sender = gateway(format)
    data = {"phone_number": NUMBER, "sms_text": TEXTS[1]}
    body = {
        "android-sms-gateway": android_envelope(message=TEXTS[1]), "generic": data,
        "main-server": {"event": "otp_received", "data": data},
    }[format]  # fmt: skip
    form = "application/x-www-form-urlencoded"
    for mime in (
        "application/vnd.x+json",
        "application/json; charset=utf-8",
        None,
        "text/plain",
        form,
    ):
        assert sender.send(data=json.dumps(body), content_type=mime).status_code == 200
    assert sender.stored() == [(NUMBER, TEXTS[1])]


@on_sqlite
@pytest.mark.parametrize("format", [*SUCCESS, "generic", "main-server", None])
def test_only_the_methods_that_a_gateway_uses_take_an_sms(client, add_provider, app, format):
    """Of None the system key, which is the main server's. The others are told what they may use."""
    path = add_provider(format) if format else f"/api/ingest/{SYSTEM_KEY}"
    path += KANNEL + "&text=code+123456&content=code+123456"
    gets = format in ("kannel", "jasmin", "generic")
    for method in ("HEAD", "PUT", "DELETE", "PATCH") + (() if gets else ("GET",)):
        answer = client.open(path, method=method)
        assert answer.status_code == 405
        if method in ("HEAD", "GET"):  # those that the path has, though not for this gateway
            allowed = set(answer.headers["Allow"].split(", "))
            assert allowed == ({"GET", "POST"} if gets else {"POST"})
        else:
            assert "POST" in answer.headers["Allow"]
    with app.app_context():
        assert db.session.scalar(select(Message)) is None
