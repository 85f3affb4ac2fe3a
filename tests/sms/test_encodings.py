"""Forms, queries and JSON in the charset that a request declares, and in none."""

import base64
import hashlib
import hmac
import json
from urllib.parse import quote

import pytest

from tests.databases import on_sqlite
from tests.fixtures import NUMBER
from tests.records import messages

FORM = "application/x-www-form-urlencoded"
SPANISH = "Su código es 493817"


@pytest.fixture
def sent(app, client, make_provider):
    """Send a request to a new gateway; gives the text and the code that were stored."""

    def send(format="generic", query="", method="POST", **kwargs):
        answer = client.open(make_provider(format=format) + query, method=method, **kwargs)
        assert answer.status_code == 200, answer.data
        [message] = messages(app)
        assert message.digits == NUMBER
        return message.sms_text, message.otp_code

    return send


CHARSETS = [
    ("ISO-8859-1", SPANISH), ("ISO-8859-1", "Code “493817” €"), ("iso-8859-15", "Code 493817, 5 €"),
    ("windows-1252", "Code “493817” €"), ("windows-1251", "Код 493817"), ("koi8-r", "Код 493817"),
    ("windows-1255", "קוד 493817"), ("windows-1256", "رمز 493817"), ("iso-8859-7", "σε OTP 493817"),
    ("shift_jis", "コード 493817"), ("gb2312", "验证码 493817"), ("gb18030", "验证码 493817"),
    ("big5", "驗證碼 493817"), ("euc-kr", "인증번호 493817"), ("utf-8", "رمز 493817 🔑"),
    ("UTF-16BE", "رمز 493817 🔑"), ("utf-16le", "رمز 493817 🔑"), ("utf-16", SPANISH),
    ("utf-32be", SPANISH), ("UCS-2", "رمز 493817"), ("gsm-7", "Code_ 493817"),
]  # fmt: skip


SOME = [CHARSETS[0], *CHARSETS[7::4]]


def encoded(text, charset):
    if charset == "gsm-7":
        return text.replace("_", "\x11").encode()
    wide = {"UCS-2": "utf-16-be", "utf-16": "utf-16-be"}
    western = "cp1252" if charset == "ISO-8859-1" else charset
    return text.encode(wide.get(charset, western))


def form_of(data, **fields):
    return "&".join(f"{k}={quote(v)}" for k, v in ({"to": NUMBER, "text": data} | fields).items())


@on_sqlite
@pytest.mark.parametrize(("charset", "text"), CHARSETS)
def test_a_form_in_the_charset_that_it_declares(sent, charset, text):
    data, mime = form_of(encoded(text, charset)), f"{FORM}; charset={charset}"
    assert sent(data=data, content_type=mime) == (text, "493817")


@on_sqlite
@pytest.mark.parametrize(("charset", "text"), SOME)
@pytest.mark.parametrize("kind", ["query", "quoted", "_charset_"])
def test_a_query_and_other_ways_to_declare_a_charset(sent, charset, text, kind):
    data, mime = form_of(encoded(text, charset)), f"{FORM}; charset={charset}"
    if kind == "query":
        stored = sent(query=f"?{data}", content_type=mime)
    elif kind == "quoted":
        stored = sent(data=data, content_type=f'{FORM}; charset="{charset.lower()}"')
    else:
        stored = sent(data=f"{data}&_charset_={charset}", content_type=FORM)
    assert stored == (text, "493817")


@on_sqlite
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (SPANISH.encode(), SPANISH),
        (SPANISH.encode("latin-1"), SPANISH),
        ("Code “493817” €".encode("cp1252"), "Code “493817” €"),
        # Latin-1, where Windows-1252 has nothing
        (b"Code\x81\x9d 493817", "Code\x81\x9d 493817"),
        # Cut within its last character: UTF-8 still, since others before it are
        ("رمز 493817 رمز".encode()[:-1], "رمز 493817 رم\ufffd"),
        (b"Code 493817 caf\xe9", "Code 493817 café"),
        ("رمز 493817".encode("utf-16"), "رمز 493817"),
    ],
)
@pytest.mark.parametrize(
    "mime", [FORM, f"{FORM}; charset=klingon", f"{FORM}; charset=base64", f"{FORM}; charset=utf-7"]
)
def test_a_form_that_declares_no_charset_that_there_is(sent, data, text, mime):
    assert sent(data=form_of(data), content_type=mime) == (text, "493817")


@on_sqlite
def test_what_is_declared_is_not_guessed(sent):
    mime = f"{FORM}; charset=utf-8"
    text = "code \ufffd 493817"
    assert sent(data=form_of(b"code \xff 493817"), content_type=mime) == (text, "493817")


def multipart(*parts):
    """A body, and its Content-Type; a part is (name, charset or None, bytes)."""
    lines = []
    for name, charset, data in parts:
        lines += [b"--line", f'Content-Disposition: form-data; name="{name}"'.encode()]
        if charset:
            lines += [f"Content-Type: text/plain; charset={charset}".encode()]
        lines += [b"", data]
    return b"\r\n".join([*lines, b"--line--", b""]), "multipart/form-data; boundary=line"


@on_sqlite
@pytest.mark.parametrize(("charset", "text"), SOME)
@pytest.mark.parametrize("declared", ["part", "_charset_", "whole"])
def test_a_multipart_form_whose_parts_have_charsets_of_their_own(sent, charset, text, declared):
    parts = [("to", "us-ascii", NUMBER.encode()), ("text", None, encoded(text, charset))]
    if declared == "part":
        parts[1] = ("text", charset, encoded(text, charset))
    elif declared == "_charset_":
        parts.insert(0, ("_charset_", None, charset.encode()))
    body, mime = multipart(*parts)
    if declared == "whole":
        mime += f"; charset={charset}"
    assert sent(data=body, content_type=mime) == (text, "493817")


@on_sqlite
def test_multipart_forms_with_files_and_line_ends(sent):
    text = f"{SPANISH}\r\n--linear\n"
    body, mime = multipart(
        ("to", None, NUMBER.encode()), ('file"; filename="x', None, b"\0" * 99),
        ("text", None, text.encode()),
    )  # fmt: skip
    assert sent(data=body, content_type=mime) == (text, "493817")


@on_sqlite
@pytest.mark.parametrize(
    ("body", "mime"),
    [
        (b"--line\r\nno header at all\r\n\r\n", "multipart/form-data; boundary=line"),
        (b"", "multipart/form-data"),
        (b"--line", "multipart/form-data; boundary=line"),
    ],
)
def test_a_broken_multipart_form_is_400(app, client, make_provider, body, mime):
    answer = client.post(make_provider(), data=body, content_type=mime)
    assert answer.status_code == 400
    assert messages(app) == []


@on_sqlite
@pytest.mark.parametrize(("charset", "text"), SOME)
def test_json_in_the_charset_that_it_declares(sent, charset, text):
    body = json.dumps({"to": NUMBER, "text": text}, ensure_ascii=False)
    mime = f"application/json; charset={charset}"
    assert sent(data=encoded(body, charset), content_type=mime) == (text, "493817")


@on_sqlite
@pytest.mark.parametrize("mime", ["application/json", "application/json; charset=utf-8"])
@pytest.mark.parametrize(
    "charset",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le"],
)
def test_json_in_every_unicode_encoding(sent, charset, mime):
    body = json.dumps({"to": NUMBER, "text": "رمز 493817 🔑"}, ensure_ascii=False)
    assert sent(data=body.encode(charset), content_type=mime) == ("رمز 493817 🔑", "493817")


@on_sqlite
def test_json_in_bytes_that_are_not_utf_8(sent):
    body = json.dumps({"to": NUMBER, "text": SPANISH}, ensure_ascii=False).encode("latin-1")
    assert sent(data=body, content_type="application/json") == (SPANISH, "493817")


@on_sqlite
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_kannel_without_a_charset(sent, method):
    data = SPANISH.encode("latin-1")
    query = f"?to={NUMBER}&id=1"
    if method == "POST":
        stored = sent("kannel", query, data=data, content_type="text/plain")
    else:
        stored = sent("kannel", f"{query}&text={quote(data)}", "GET")
    assert stored == (SPANISH, "493817")


@on_sqlite
@pytest.mark.parametrize("text", [SPANISH, "رمز 493817 🔑"])
@pytest.mark.parametrize("charset", ["", "; charset=utf-8"])
def test_twilio_signs_what_is_decoded(app, client, flask, text, charset):
    command = ("providers", "add", "tw", "--format", "twilio", "--secret", "token", "--json")
    path = flask(*command)["ingest_path"]
    form = {"Body": text, "MessageSid": "SM1", "To": f"+{NUMBER}"}
    signed = f"http://localhost{path}" + "".join(k + v for k, v in form.items())
    digest = hmac.new(b"token", signed.encode(), hashlib.sha1).digest()
    answer = client.post(
        path, data="&".join(f"{k}={quote(v)}" for k, v in form.items()),
        content_type=FORM + charset,
        headers={"X-Twilio-Signature": base64.b64encode(digest).decode()},
    )  # fmt: skip
    assert answer.status_code == 200
    [message] = messages(app)
    assert (message.sms_text, message.otp_code) == (text, "493817")
