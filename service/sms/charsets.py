"""Decodes the bytes of an SMS, in the charsets that gateways use."""

import codecs
import re

# 3GPP TS 23.038, 6.2.1: the default alphabet, and its extension after an escape
_GSM = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM_ESCAPED = dict(zip("\nΛ()/<=>¡e", "\f^{}\\[~]|€", strict=True))

# Names that Python does not know: Kannel's %C (gw/urltrans.c), older gateways' UCS-2
_NAMES = {
    "7-bit": "gsm",
    "gsm-7": "gsm",
    "8-bit": "latin-1",
    "binary": "latin-1",
    "ucs-2": "utf-16-be",
    "ucs2": "utf-16-be",
    "utf16-be": "utf-16-be",
}
# Encodings of text, not charsets: decoding one of them takes quadratic time. And UTF-7, in which
# quotes can be hidden in words, while the bytes are signed without the charset
_NO_CHARSETS = {"utf-7", "punycode", "idna", "unicode-escape", "raw-unicode-escape"}
# What programs call by one of these names is Windows-1252 (WHATWG Encoding, 4.2)
_WESTERN = {"iso8859-1", "cp1252"}


def decode(data: bytes, charset: str) -> str:
    """`data` as text, with invalid bytes as U+FFFD; raises LookupError or ValueError for an unknown
    charset."""
    name = charset.strip().lower()
    name = _NAMES.get(name, name)
    if name == "gsm":
        return _decode_gsm(data)
    if name in ("utf-16", "utf16") and not data.startswith((codecs.BOM_LE, codecs.BOM_BE)):
        name = "utf-16-be"  # RFC 2781, 4.3; Python would use the machine's byte order
    known = codecs.lookup(name).name
    if known in _NO_CHARSETS:
        raise LookupError(name)
    return _decode_western(data) if known in _WESTERN else data.decode(name, "replace")


def guess(data: bytes) -> str:
    """`data` in an unknown charset: UTF-8 (which includes ASCII), else Windows-1252.

    A text that was cut within its last character is UTF-8 still, if it has others that are not
    ASCII: "caf\xe9" alone is not.
    """
    if data.startswith((codecs.BOM_LE, codecs.BOM_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        is_cut = e.reason == "unexpected end of data" and not data[: e.start].isascii()
    return data.decode("utf-8", "replace") if is_cut else _decode_western(data)


def decode_default(data: bytes) -> str:
    """`data` in SMPP's "SMSC default alphabet", which each SMSC defines for itself.

    UTF-8 or Windows-1252; but unpacked GSM 03.38 if it is ASCII with control characters.
    """
    controls = any((byte < 0x20 and byte not in b"\t\n\r") or byte == 0x7F for byte in data)
    return _decode_gsm(data) if controls and data.isascii() else guess(data)


def _decode_western(data: bytes) -> str:
    """Windows-1252, with the five bytes that it leaves undefined as in Latin-1."""
    text = data.decode("latin-1")
    # Latin-1 has control characters there, which no SMS contains
    return re.sub(
        "[\x80-\x9f]", lambda c: bytes([ord(c[0])]).decode("cp1252", "ignore") or c[0], text
    )


def _decode_gsm(data: bytes) -> str:
    first, *rest = "".join(_GSM[byte] if byte < 128 else "\ufffd" for byte in data).split("\x1b")
    return first + "".join(_GSM_ESCAPED.get(s[0], s[0]) + s[1:] if s else "" for s in rest)
