"""Jasmin: real requests of it, byte by byte, and its codings and headers."""

import itertools
import json
from pathlib import Path
from urllib.parse import quote_from_bytes

import pytest

from tests.databases import on_sqlite
from tests.fixtures import NUMBER
from tests.records import messages

# What Jasmin 0.11.1 sent (RabbitMQ, Redis, and an SMSC that sent it deliver_sm): the bytes of the
# requests; and the text and the code that were in the SMS
CASES = json.loads((Path(__file__).parent / "data/jasmin_requests.json").read_text())
FORM = "application/x-www-form-urlencoded"
ARABIC = "رمز 100003"
# ò, @ and _ are control characters in the default alphabet of GSM
GSM, GSM_BYTES = "Còdice_@: 493817", b"C\x08dice\x11\x00: 493817"
WESTERN = "Su código es 493817"


@on_sqlite
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_real_requests(app, client, make_provider, case):
    path = make_provider(format="jasmin")
    for request in case["requests"]:
        answer = client.open(
            path, method=request["method"], query_string=request["query"],
            headers=request["headers"], data=bytes.fromhex(request["body"]),
        )  # fmt: skip
        assert (answer.status_code, answer.data) == (200, b"ACK/Jasmin")
    stored = [(m.digits, m.sender, m.sms_text, m.otp_code) for m in messages(app)]
    assert stored == [(NUMBER, "AMZ", case["text"], case["code"])]


@pytest.fixture
def text_of(app, client, make_provider):
    """Send an SMS as Jasmin does; gives its stored text."""
    path, ids = make_provider(format="jasmin"), itertools.count()

    def send(data, coding, method="POST"):
        """`coding` is a byte, or the value itself as percent-encoded bytes."""
        value = coding if isinstance(coding, bytes) else bytes([coding])
        fields = {"id": b"%d" % next(ids), "to": NUMBER.encode(), "binary": data.hex().encode()}
        pairs = (f"{k}={quote_from_bytes(v)}" for k, v in (fields | {"coding": value}).items())
        form = "&".join(pairs)
        sent = {"data": form} if method == "POST" else {"query_string": form}
        answer = client.open(path, method=method, content_type=FORM, **sent)
        assert (answer.status_code, answer.data) == (200, b"ACK/Jasmin")
        return messages(app)[-1].sms_text

    return send


@on_sqlite
def test_every_data_coding(text_of):
    """3GPP TS 23.038, section 4, and SMPP v3.4, 5.2.19. One that says that the text is
    compressed may be wrong about that; what it says of the alphabet counts."""
    ucs2 = {8, 11, *range(0xE0, 0xF0)}
    ucs2 |= {group << 4 | low for group in range(1, 8) for low in range(8, 12)}
    digits = set(b"0123456789")
    listed = {3, 5, 6, 7, 9, 10, 13, 14}
    for coding in set(range(256)) - digits - listed:
        if coding in ucs2:
            assert text_of(ARABIC.encode("utf-16-be"), coding) == ARABIC, coding
        else:
            assert text_of(GSM_BYTES, coding) == GSM, coding
            assert text_of(WESTERN.encode("latin-1"), coding) == WESTERN, coding


@on_sqlite
@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize(
    ("coding", "text", "charset"),
    [
        (3, WESTERN, "latin-1"),
        (5, "コード 1234", "shift_jis"),
        (6, "Код 1234", "iso-8859-5"),
        (7, "קוד 1234", "iso-8859-8"),
        (8, ARABIC, "utf-16-be"),
        (9, "コード 1234", "shift_jis"),
        (10, "コード 1234", "iso2022_jp"),
        (13, "コード 1234", "euc_jp"),
        (14, "인증번호 1234", "cp949"),
    ],
)
def test_the_codings_of_smpp_as_a_byte_and_as_digits(text_of, coding, text, charset, method):
    data = text.encode(charset)
    for value in (coding, b"%d" % coding, b"%02d" % coding):
        assert text_of(data, value, method) == text


@on_sqlite
@pytest.mark.parametrize(
    ("coding", "text", "data"),
    [
        (b"24", ARABIC, ARABIC.encode("utf-16-be")),
        (b"225", ARABIC, ARABIC.encode("utf-16-be")),
        (b"245", WESTERN, WESTERN.encode("latin-1")),
        (b"240", GSM, GSM_BYTES),
        (b"", GSM, GSM_BYTES),
        # No coding that there is
        (b"256", GSM, GSM_BYTES),
        (b"UCS2", GSM, GSM_BYTES),
        (b" 8", GSM, GSM_BYTES),
    ],
)
def test_codings_in_digits_and_no_codings(text_of, coding, text, data):
    assert text_of(data, coding) == text


@on_sqlite
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xfe\xff" + ARABIC.encode("utf-16-be"), ARABIC),
        (b"\xff\xfe" + ARABIC.encode("utf-16-le"), ARABIC),
        (ARABIC.encode("utf-16-be") + b"\x06", ARABIC + "\ufffd"),
        (ARABIC.encode("utf-16-be") + b"\xd8\x3d", ARABIC + "\ufffd"),
        ("🔑 1234".encode("utf-16-be"), "🔑 1234"),
        (b"a", "\ufffd"),
    ],
)
def test_ucs2_with_byte_orders_and_broken_ends(text_of, data, text):
    assert text_of(data, 8) == text


@on_sqlite
def test_a_compressed_text_is_stored_as_it_is_and_logged(text_of, caplog):
    for coding in (0x20, 0x2A, 0x61, b"35"):
        text_of(b"\x91\x92\x93", coding)
        assert "event=sms_compressed" in caplog.text
        caplog.clear()
    text_of(b"\x91\x92\x93", 0xA0)  # bit 5 of a reserved group says nothing
    assert "sms_compressed" not in caplog.text


@on_sqlite
@pytest.mark.parametrize(
    "header",
    [
        "05 0003 0D0101",  # the only part
        "06 0504 23F4138A",  # ports of 16 bits
        "04 0402 0102",  # ports of 8 bits
        "03 2401 01",  # a national language
        "04 0102 0001",  # a special message
        "0B 0003 070101 0804 012C0101",  # two elements
        "08 F003 0A0B0C 2401 01",  # one that nobody knows, and one that is known
    ],
)
def test_a_header_is_no_text(text_of, header):
    data = bytes.fromhex(header)
    data = bytes([len(data) - 1]) + data[1:]
    assert text_of(data + b"Your code is 123456", 0) == "Your code is 123456"
    assert text_of(data + ARABIC.encode("utf-16-be"), 8) == ARABIC


@on_sqlite
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x05\x00\x03\x07", "é@¥ì"),  # more is announced than there is
        (b"\x04\x00\x03\x07\x02 1234", "è@¥ì$ 1234"),  # an element that is cut off
        (b"\x03\x00\x01a 1234", "¥@£a 1234"),  # a known element of another length
        (b"\x02\x70\x00 1234", "$p@ 1234"),  # an unknown element only
        (b"\x00", "@"),
        (b"gi\x7f 1234", "già 1234"),
    ],
)
def test_what_is_no_header_is_text(text_of, data, text):
    assert text_of(data, 0) == text


@on_sqlite
@pytest.mark.parametrize(
    "text",
    [
        "ء١٢٣ 1234",
        "إ1 2 3 4 5",
        "Ѐ 123456",
        "Код: 123456",
        "קוד 123456",
        "ওটিপি 123456",
        "รหัส 123456",
    ],
)
def test_no_script_of_ucs2_begins_as_a_header_does(text_of, text):
    """The upper bytes are small numbers, as lengths are."""
    assert text_of(text.encode("utf-16-be"), 8) == text


@on_sqlite
def test_parts_joined_with_their_headers_left_in(text_of):
    parts = [ARABIC[:4], ARABIC[4:7], ARABIC[7:]]
    heads = [bytes([6, 8, 4, 1, 44, 3, number]) for number in (1, 2, 3)]
    data = b"".join(h + p.encode("utf-16-be") for h, p in zip(heads, parts, strict=True))
    assert text_of(data, 8) == ARABIC


@on_sqlite
def test_content_counts_only_without_binary(app, client, make_provider):
    path = make_provider(format="jasmin")
    form = f"to={NUMBER}&id=1&coding=%00&content=Su+c%F3digo+es+493817"
    assert client.post(path, data=form, content_type=FORM).status_code == 200
    [message] = messages(app)
    assert (message.sms_text, message.otp_code) == (WESTERN, "493817")


@on_sqlite
@pytest.mark.parametrize("coding", [b"\x08", b"8"])
def test_a_multipart_form(app, client, make_provider, coding):
    fields = {"to": NUMBER, "id": "1", "binary": ARABIC.encode("utf-16-be").hex()}
    parts = [
        f'--line\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'
        for k, v in (fields | {"coding": coding.decode()}).items()
    ]
    sent = {
        "data": "".join(parts) + "--line--",
        "content_type": "multipart/form-data; boundary=line",
    }
    assert client.post(make_provider(format="jasmin"), **sent).status_code == 200
    assert [(m.sms_text, m.otp_code) for m in messages(app)] == [(ARABIC, "100003")]
