"""Reads the user data of an SMS as phones and SMS centres write it: its header, and its text."""

import logging

from service.logs import event
from service.sms import charsets
from service.sms.incoming import Part

# SMPP v3.4, 5.2.19: the data_codings that are SMPP's own; all others are those of 3GPP TS 23.038
_LISTED = {
    3: "iso-8859-1",
    5: "shift_jis",
    6: "iso-8859-5",
    7: "iso-8859-8",
    8: "ucs-2",
    9: "shift_jis",  # pictograms
    10: "iso2022_jp",
    13: "euc_jp",
    14: "cp949",
}
# 3GPP TS 23.040, 9.2.3.24: the information elements whose length is fixed. Parts (8-bit and 16-bit
# reference), special message, ports (8 and 16 bits), SMSC control, national language (single and
# locking shift)
_LENGTHS = {0x00: 3, 0x08: 4, 0x01: 2, 0x04: 2, 0x05: 4, 0x06: 1, 0x24: 1, 0x25: 1}


def read(data: bytes, coding: int) -> tuple[str, Part | None]:
    """The text in `data`, and which part of a long SMS it is, if its header says so.

    `coding` is SMPP's data_coding. A header is not declared by all gateways, so it is recognized;
    no text begins as one does, with control characters that count what follows. The text of a part
    may begin or end with half a surrogate pair.
    """
    part, header, text = _split_header(data)
    if part and (joined := _joined_already(part, header, text)) is not None:
        part, text = None, joined
    return _decode(text, coding), part


def _decode(data: bytes, coding: int) -> str:
    """`data` as text; what cannot be read is logged, and stored as well as it can be."""
    if is_compressed(coding):
        event("sms_compressed", logging.WARNING, coding=coding)
    if is_ucs2(coding) and not data.startswith((b"\xfe\xff", b"\xff\xfe")):
        text = data[: len(data) & ~1].decode("utf-16-be", "surrogatepass")
        return text + "\ufffd" * (len(data) & 1)
    if is_ucs2(coding):
        return charsets.decode(data, "utf-16")
    charset = _LISTED.get(coding)
    return charsets.decode(data, charset) if charset else charsets.decode_default(data)


def is_ucs2(coding: int) -> bool:
    """Whether the text is in UCS-2 (3GPP TS 23.038, 4), whose groups are the upper four bits.

    00xx and 01xx (the latter deleted after reading) have the alphabet in bits 2 and 3; 1110 (a
    message waits) is in UCS-2 as a whole, and no other group has it. Those that the standard
    reserves are in the default alphabet.
    """
    if coding in _LISTED:
        return _LISTED[coding] == "ucs-2"
    group = coding >> 4
    return group == 0b1110 or (group < 0b1000 and coding & 0b1100 == 0b1000)


def is_compressed(coding: int) -> bool:
    """Whether the text is compressed (3GPP TS 23.042), which no phone does: bit 5 of 00xx, 01xx."""
    return coding < 0x80 and bool(coding & 0b100000)


def _split_header(data: bytes) -> tuple[Part | None, bytes, bytes]:
    """The part that the user data header tells, the header, and what follows it.

    The header is its length, then elements: an identifier, a length and a value each. `data` has
    one if elements fill the length to the byte, and one or more are known with their lengths.
    """
    end, at = (data[0] + 1 if data else 0), 1
    elements: dict[int, bytes] = {}
    while at + 2 <= end <= len(data):
        value = data[at + 2 : at + 2 + data[at + 1]]
        elements.setdefault(data[at], value)
        at += 2 + data[at + 1]
    known = [len(v) == _LENGTHS[id] for id, v in elements.items() if id in _LENGTHS]
    if at != end or not known or not all(known):
        return None, b"", data
    return _part(elements), data[:end], data[end:]


def _part(elements: dict[int, bytes]) -> Part | None:
    """As 9.2.3.24.1 and .8: an element that contradicts itself is as good as none."""
    for id in (0x00, 0x08):
        if value := elements.get(id):
            total, number = value[-2:]
            if 1 <= number <= total:
                # References of 8 and of 16 bits are counted apart
                return Part(f"{len(value) - 2}:{value[:-2].hex()}", total, number)
    return None


def _joined_already(part: Part, header: bytes, text: bytes) -> bytes | None:
    """The whole SMS, if a gateway joined its parts with their headers left in; else None."""
    pieces = []
    for number in range(2, part.total + 1):
        if part.number != 1 or not header.endswith(bytes([part.total, 1])):
            return None
        piece, found, text = text.partition(header[:-1] + bytes([number]))
        if not found:
            return None
        pieces.append(piece)
    return b"".join([*pieces, text])
