"""Decodes the bytes of an SMS, in the charsets that gateways use."""

import codecs

# 3GPP TS 23.038, 6.2.1: the default alphabet, and its extension after an escape
_GSM = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM_ESCAPED = dict(zip("\nΛ()/<=>¡e", "\f^{}\\[~]|€", strict=True))

# Names that Python does not know: Kannel's %C (gw/urltrans.c), older gateways' UCS-2
_NAMES = {
    "": "utf-8",
    "7-bit": "gsm",
    "gsm-7": "gsm",
    "8-bit": "latin-1",
    "binary": "latin-1",
    "ucs-2": "utf-16-be",
    "ucs2": "utf-16-be",
    "utf16-be": "utf-16-be",
}
# Encodings of text, not charsets; decoding one of them takes quadratic time
_NO_CHARSETS = {"punycode", "idna", "unicode-escape", "raw-unicode-escape"}


def decode(data: bytes, charset: str) -> str:
    """`data` as text, with invalid bytes as U+FFFD; raises LookupError or ValueError for an unknown
    charset."""
    name = charset.strip().lower()
    name = _NAMES.get(name, name)
    if name == "gsm":
        return _decode_gsm(data)
    if name in ("utf-16", "utf16") and not data.startswith((codecs.BOM_LE, codecs.BOM_BE)):
        name = "utf-16-be"  # RFC 2781, 4.3; Python would use the machine's byte order
    if codecs.lookup(name).name in _NO_CHARSETS:
        raise LookupError(name)
    return data.decode(name, "replace")


def decode_default(data: bytes) -> str:
    """`data` in SMPP's "SMSC default alphabet", which each SMSC defines for itself.

    UTF-8 (which includes ASCII), else Latin-1; but unpacked GSM 03.38 if it is ASCII with control
    characters.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
    controls = any(char < " " and char not in "\t\n\r" for char in text)
    return _decode_gsm(data) if controls and text.isascii() else text


def _decode_gsm(data: bytes) -> str:
    first, *rest = "".join(_GSM[byte] if byte < 128 else "\ufffd" for byte in data).split("\x1b")
    return first + "".join(_GSM_ESCAPED.get(s[0], s[0]) + s[1:] if s else "" for s in rest)
