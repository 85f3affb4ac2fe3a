"""Which number an SMS came to, where the gateway may not tell it."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError

from service.fields import phone_digits

# The SIM of a number that was given without one: SIM 1, or the only one
BARE = ""
# The SIM of a name that tells none; no number has it
UNREADABLE = "?"
# A shorter local number could be the end of a foreign one by chance
MIN_LOCAL = 6
# What apps send for a SIM that they do not know; -1 is Android's INVALID_SIM_SLOT_INDEX
_NOT_TOLD = ("", "-1", "null", "unknown", "undetected")
# 2, SIM2, and SmsForwarder's SIM2_OPERATOR_NUMBER
_SLOT = re.compile(r"(?:sim[ _-]?)?0*([0-9]{1,2})(?:_.*)?", re.IGNORECASE | re.DOTALL)


def parse_number(text: str) -> tuple[str, str]:
    """(SIM, digits) of `NUMBER` or `SIM=NUMBER`; the SIM is BARE where none is named.

    Raises ValidationError, with a sentence.
    """
    sim, equals, number = text.rpartition("=")
    slot = _SLOT.fullmatch(sim.strip())
    if equals and (not slot or "_" in sim):
        raise ValidationError(f"{sim or 'nothing'} is no SIM: give the number as 2=+447400849540")
    return slot[1] if slot and equals else BARE, phone_digits(number)


def international(told: Any) -> str | None:
    """`told` as digits if it has its country's code (a `+` or `00`), else None.

    Any other number may mean one in the phone's own country, and the same digits somebody else's.
    """
    if not isinstance(told, str):
        return None
    if not re.match(r"[^0-9]*(\+|00)", unicodedata.normalize("NFKC", told)):
        return None
    try:
        return phone_digits(told)
    except ValidationError:
        return None


def ending_in(numbers: Mapping[str, str], told: Any) -> str | None:
    """The one of the gateway's own numbers that `told` is the local form of, else None."""
    try:
        local = phone_digits(str(told)).lstrip("0")
    except ValidationError:
        return None
    found = {number for number in numbers.values() if number.endswith(local)}
    return found.pop() if len(local) >= MIN_LOCAL and len(found) == 1 else None


def own_number(numbers: Mapping[str, str], told: Any, sim: Any) -> str:
    """The one of the gateway's own `numbers` (by SIM) that the SMS came to, "" if not certain.

    `told` is what the gateway said instead of an international number, `sim` its SIM. A number
    given without a SIM is that of SIM 1; and, if it is the only one, of a gateway that names no
    SIM.
    """
    slot = _slot_of(sim)
    if slot is None:
        if found := ending_in(numbers, told):
            return found
        slot = _slot_of(told)
    if slot is None:
        return numbers.get(BARE, "") if len(numbers) == 1 else ""
    return numbers.get(slot) or (numbers.get(BARE, "") if slot == "1" else "")


def _slot_of(sim: Any) -> str | None:
    """The number of the SIM, UNREADABLE for a name without one, None if no SIM is named."""
    text = "" if sim is None else str(sim).strip()
    if text.lower() in _NOT_TOLD:
        return None
    found = _SLOT.fullmatch(text)
    return found[1] if found else UNREADABLE
