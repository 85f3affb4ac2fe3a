"""Tells a number that is no code from what is around it: an amount, an address, an order's."""

import re

from service.sms.candidates import PHONE
from service.sms.reading import Around
from service.sms.words import Label

COUNT = 5  # most characters of a count: "2048 MB"
OTHER_REACH = 16  # most characters between "order" and the order's number
OTHER_LETTERS = 8  # and most letters
_NUMBER = re.compile(r"[\d¦]")


def is_something_else(number: Around) -> bool:
    """Whether it is an amount, an address, what a notice is about, or another thing's number."""
    return (
        _is_counted(number)
        or _is_address(number)
        or _is_subject(number)
        or _is_of_another(number)
        or _is_of_request(number)
    )


def _is_counted(number: Around) -> bool:
    """Whether it is an amount or a duration: 4500 euros, EUR 4500, 15 minutes, 24h, 200TL."""
    text, start, end = number.reading.text, number.one.start, number.one.end
    beside = (end, end + 1) if text[end : end + 1] in (" ", "-") else (end,)
    for kind in ("currency", "unit") if end - start <= COUNT else ("currency",):
        labels = number.reading.labels[kind]
        last, after = labels.last_before(end), labels.first_after(end)
        if after and after.start in beside:
            return True
        if last and last.end == end and text[start : last.start].isdigit():
            return True
    currencies = number.reading.labels["currency"]
    before, at = currencies.last_before(start), currencies.first_after(start)
    is_glued = at and at.start == start and text[at.end : end].isdigit()  # not KR7B2X
    return bool((before and before.end >= start - 1) or is_glued)


def _is_address(number: Around) -> bool:
    """Whether it is a number that a message goes to or comes from: sent to 4155550132."""
    if number.right_before("address") or number.right_after("...address"):
        return True
    one, before, joint = number.one, number.before, number.joint
    if not before or len(one.code) < PHONE or not one.code.isdigit():
        return False
    # Not just "code is 1234567890"
    return number.reading.letters(before.end, joint.start if joint else one.start) > 0


def _is_subject(number: Around) -> bool:
    """Whether a notice is about it: "your password for 4938 was changed"."""
    if number.joined:
        return False
    prepositions = number.right_before("for"), number.right_after("...for")
    labels = number.before, number.after
    return any(p and x and p.speaks_with(x) for p in prepositions for x in labels)


def _is_of_another(number: Around) -> bool:
    """Whether a word like "order" claims the number."""
    reading, before, joint = number.reading, number.before, number.joint
    if reading.labels["other"].has(number.one.start):  # CVV2
        return True
    other, verb = _other_before(number), number.right_before("enter")
    # "to confirm your account enter 4938" and "Booking.com: 4938 is your code" are codes
    if not other or (verb and verb.start >= other.end):
        return False
    if not joint or other.end > joint.start:
        return True
    if number.named:
        return False
    if not before or not reading.is_clause(before.end, joint.start):
        return True
    return _has_colon(number) and _is_thing(number, before, other, joint)


def _other_before(number: Around) -> Label | None:
    """The word like "order" that is close before the number, closer than a word for the code."""
    reading, start, before = number.reading, number.one.start, number.before
    other = reading.labels["other"].last_before(start)
    if not other or (before and other.end <= before.end):
        return None
    if start - other.end > OTHER_REACH or reading.letters(other.end, start) > OTHER_LETTERS:
        return None
    return None if _NUMBER.search(reading.text, other.end, start) else other


def _is_thing(number: Around, before: Label, other: Label, joint: Label) -> bool:
    """Whether a colon gives the number to the other word: "password reset ticket: 4938".

    Not "code for Booking: 4938", "code to verify your account: 4938", "locker: 4938".
    """
    reading = number.reading
    if reading.labels["opened"].has(other.start) or reading.text[other.end : joint.start].strip():
        return False
    links = (reading.labels[kind].first_after(before.end) for kind in ("for", "login"))
    is_linked = any(x and x.end <= other.start and x.speaks_with(before) for x in links)
    earlier = reading.labels["code"].last_before(before.start)
    return not is_linked and not (earlier and reading.is_clause(earlier.end, joint.start))


def _has_colon(number: Around) -> bool:
    joint = number.joint
    return joint is not None and number.reading.text[joint.start] in ":="


def _is_of_request(number: Around) -> bool:
    """Whether the label only says what another thing is for: "ticket for a new password: 4938"."""
    reading, before = number.reading, number.before
    if not before or number.named or not _has_colon(number):
        return False
    link = reading.labels["for"].last_before(before.start)
    other = link and reading.labels["other"].last_before(link.start)
    if not link or not other or link.start - other.end > 1 or not link.speaks_with(before):
        return False
    is_opened = reading.labels["opened"].has(other.start)
    return not is_opened and reading.is_clause(link.end, before.start)
