"""Finds the one-time code in the text of an SMS, and says which rule found it."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from service.sms import words
from service.sms.words import MAX_TEXT, Label, Labels, first_after, last_before

# A code's score, at most 100, for "code: 1234"; below SURE, no code is better than a wrong one
SURE = 40
AFTER = 5  # subtracted if the code comes before its label
PER_LETTER = 1.3  # subtracted for each letter in between
NAMED = 0.5  # PER_LETTER is multiplied by this if "is" or a colon is right before the code
NEXT_SENTENCE = 50  # subtracted if a sentence ends in between
CLEAR_LEAD = 12  # how far the best code must lead the next

DIRECT = 8  # most letters between a label and a number right beside it: "code you need: 123"
LINE = 20  # most characters that count before a code on its own line
ENTERED = 6  # fewest characters of a code that only a verb points to: "enter 493817"
PHONE = 9  # fewest digits that may be a phone number
OTHER_REACH = 16  # most characters between "order" and the order's number

# The rules, with an example each; a code that the provider sent has the rule `given`
RULES = {
    "origin-bound": "Your code is 747723.\n\n@example.com #747723",
    "keyword-before": "Your code is 493817",
    "keyword-after": "493817 is your code",
    "alone": "493817",
}

# What is never a code, with an example each; words are in otp_words.toml. To keep the time
# linear, every repetition has a bound, except \S and fixed strings.
MASKS = {
    "https://x.io/c?code=493817": r"\b[a-z]{2,10}://\S+|\bwww\.\S+",
    "x.io/493817": r"(?<![\w@.-])(?:[a-z0-9-]{1,40}\.){1,4}[a-z]{2,10}/\S*",
    "otp1234@x.io": r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,40}(?:\.[\w-]{1,40}){1,4}",
    "192.168.10.20": r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])",
    "*123*PIN#": r"[*#]{1,2}\d{2,8}(?:\*[\w<>]{1,12}){0,4}#",
    "2025-06-04": r"(?<!\d)(?:19|20)\d\d(?P<y>[-/.] ?)\d{1,2}(?P=y)\d{1,2}(?!\d)",
    "04.06.2025": r"(?<!\d)\d{1,2}(?P<d>[-/.])\d{1,2}(?P=d)(?: ?(?:19|20))?\d\d(?!\d)",
    "04.06.": r"(?<![\d.])[0-3]?\d\.[01]?\d\.(?!\d)",
    "04-Jun-2025": r"(?<!\d)\d{1,2}(?:[-/ ]|\. )[^\W\d_]{3,12}[-/ ,.]{1,2}(?:19|20)\d\d(?!\d)",
    "04-Jun-25": r"(?<!\d)\d{1,2}-[a-z]{3}-\d\d(?!\d)",
    "18:32": r"(?<!\d)\d{1,2}[:h]\d\d(?::\d\d)?(?!\d)",
    "25%": r"(?<!\d)[\d.,]{1,7} ?[%٪]|[%٪] ?[\d.,]{1,7}",
    "+44 7400 849540": r"\+\d[\d ()./-]{5,18}\d",
    "(800) 555-0123": r"\(\d{2,5}\)[ -]?\d{2,4}[ -]?\d{2,4}",
    "0800 123 456": r"(?<![\d-])[01]\d{2,3}[ -]\d{2,4}[ -]\d{2,5}(?!\d)",
    "$1,234.50": r"[$€£¥₹₽₴₸₺₦₱₩₫₪₵₡₭₮฿៛৳] ?\d[\d.,']{0,14}",
    "1 234,50 €": r"(?<!\d)\d{1,3}(?:[ .,']?\d{3}){0,4}(?:[.,]\d{1,2})? ?[$€£¥₹₽₴₸₺₦₱₩₫₪₵₡₭₮฿៛৳]",
    "1.234,50": r"(?<![\d.,])\d{1,12}(?:[.,' ]\d{3}){0,4}[.,]\d\d(?!\d)",
    "12,499": r"(?<!\d)(?<!\d[.,])\d{1,3}(?:[.,']\d{3}){1,4}(?!\d)",
    "card *1234": r"(?:[*•·×]{1,12}|(?<![a-z])x{1,12}|\.{2,4})[ -]?\d{3,5}(?![\d*])",
}

_MASK = re.compile("|".join(MASKS.values()))
_ORIGIN_BOUND = re.compile(
    r"^@[\w.-]{1,253} #([a-z0-9]{3,10}|[a-z0-9]{2,5}-[a-z0-9]{2,5})(?: [%@]\S+)?\s*\Z",
    re.MULTILINE | re.IGNORECASE | re.ASCII,
)
# FA+9qCX9VSu, but not the word "engangskode"
_RETRIEVER_HASH = re.compile(r"\s(?![A-Za-z][a-z]{10}|[A-Z]{11})[A-Za-z0-9+/]{11}\s*\Z")
_CANDIDATE = re.compile(
    # AB12CD, AB1-2CD
    r"(?<![A-Za-z0-9_/@&+.-])(?P<mixed>(?=[A-Z]{1,9}\d|[a-z]{1,9}\d|\d{1,9}[A-Za-z])"
    r"[A-Za-z0-9]{2,10}(?:-[A-Z0-9]{2,6})?)(?![A-Za-z0-9_/@=-]|\.\w)"
    # G-493817: the service's letter is not part of the code
    r"|(?:(?<![\w/@&+-])[A-Z]{1,2}-(?P<prefixed>\d{4,8})"
    # 493817, 493-817, 4 9 3 8 1 7
    r"|(?<![A-Za-z0-9_/@&])(?<!\d[.,:])(?P<digits>\d+(?:[ -]\d+)*))"
    # Some languages append a suffix: 493817-dir
    r"(?![A-Z0-9_/@=]|[.,:]\d|-[A-Z0-9])"
)
_DATE = re.compile(r"(?:19|20)\d\d(?:(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))?")  # 2025, 20250604
_SENTENCE_END = re.compile(r"(?<!\brs|\bnr|\bno)[.!?;]\s|[。！？؟।]")
_SENDER = re.compile(r"\s*[【[](?=[^】\]]{0,20}[^\W\d])[^】\]]{1,30}[】\]]")
# The words of one sentence, as between "code" and "is" in "code for Booking.com is 493817"
_CLAUSE = re.compile(r"(?:[^\d.,:;!?|]|\.(?=\w)){1,40}")
_OPENING = " \n\"'«„“”‘([{<*-–「『【"
_CLOSING = " \"'»“”’)]}>*-–」』】"


class Found(NamedTuple):
    """A code of 3 to 10 ASCII digits and letters, and the rule that found it (one of RULES)."""

    code: str
    rule: str


def extract(text: str) -> Found | None:
    """The one-time code in `text` as a Found, or None if there is none or it is ambiguous.

    Origin-bound codes: https://wicg.github.io/sms-one-time-codes/. The prefix and the hash of
    the SMS Retriever: https://developers.google.com/identity/sms-retriever/verify.
    """
    text = words.fold(text[:MAX_TEXT])
    if bound := _ORIGIN_BOUND.search(text):
        return Found(bound[1].replace("-", ""), "origin-bound")
    text = _RETRIEVER_HASH.sub("", text.removeprefix("<#>"))
    # Same length, so that positions in `small` are positions in `text`
    small = text.lower()
    percent = "%" in small
    small = _MASK.sub(lambda mask: "¦" * len(mask[0]), small)
    text = "".join("¦" if s == "¦" else t for t, s in zip(text, small, strict=True))

    labels = words.find_labels(small)
    sender = _sender(text, labels["code"])
    if promo := percent or bool(labels["promo"]):
        labels["enter"] = labels["...enter"] = []  # "Enter 4938 to win"
    scored: dict[str, tuple[float, str]] = {}
    for match in _CANDIDATE.finditer(text):
        if match[0] in sender:
            continue
        for code, needs_direct in _codes(match, promo):
            if text.strip(" \r\n.") == match[0] and not needs_direct:
                return Found(code, "alone")
            score, rule = _score(small, match.start(), match.end(), labels, needs_direct)
            if score >= SURE and score > scored.get(code, (0, ""))[0]:
                scored[code] = score, rule
    best = sorted(((score, code, rule) for code, (score, rule) in scored.items()), reverse=True)
    if not best or (len(best) > 1 and best[0][0] - best[1][0] < CLEAR_LEAD):
        return None
    return Found(best[0][1], best[0][2])


def _sender(text: str, labels: list[Label]) -> str:
    """The bracketed sender that a message begins with: 【51job】, but not 【Code: 493817】."""
    sender, label = _SENDER.match(text), first_after(labels, 0)
    return sender[0] if sender and not (label and label.start < sender.end()) else ""


def _codes(match: re.Match[str], promo: bool) -> Iterator[tuple[str, bool]]:
    """(code, whether it needs a label right beside it) of a candidate; empty if it is no code."""
    if match["prefixed"]:
        yield match["prefixed"], False
    elif match["mixed"]:
        code = match["mixed"].replace("-", "")
        if 4 <= len(code) <= 10 and not promo and not code.isdigit():
            yield code, not match["mixed"].isupper() or code[1:].isdigit()  # R5000
    else:
        groups = re.split("[ -]", match["digits"])
        shape = [len(group) for group in groups]
        code = "".join(groups)
        if len(groups) == 1 and 3 <= len(code) <= 10:
            before = match.string[match.start() - 1 : match.start()]
            odd = len(code) == 3 or len(code) >= PHONE or _DATE.fullmatch(code) or before == "-"
            yield code, bool(odd)
        elif shape == [3, 3] or (set(shape) == {1} and 4 <= len(shape) <= 10):
            yield code, False
        elif len(groups) <= 3 and 4 <= len(code) <= 10 and shape != [2, 2]:
            yield code, True


def _score(
    text: str, start: int, end: int, labels: Labels, needs_direct: bool
) -> tuple[float, str]:
    """(the score from 0 to 100 of text[start:end] as a code, the rule)."""
    before, after = last_before(labels["code"], start), first_after(labels["code"], end)
    name_end = _name_end(text, start, labels["is"])
    if (
        _counts_units(text, start, end, labels)
        or _is_address(text, start, end, labels, before, name_end)
        or _is_of_another(text, start, end, labels, before, name_end)
    ):
        return 0, ""
    found: list[tuple[float, str]] = [(0, "")]
    if before:
        gap = text[before.end : start]
        if text[start - 1 : start] + text[end : end + 1] == "\n\n":
            gap = gap[:LINE]
        found.append((_closeness(gap, needs_direct, name_end is not None), "keyword-before"))
    if after:
        found.append((_closeness(text[end : after.start], needs_direct) - AFTER, "keyword-after"))
    may_be_entered = end - start >= ENTERED and not needs_direct
    if may_be_entered and _is_beside(text, start, end, labels, "enter"):
        found.append((100 - AFTER, "keyword-before"))
    return max(found)


def _name_end(text: str, start: int, joints: list[Label]) -> int | None:
    """Where the name ends that "is" or a colon joins to the number at `start`; None if neither."""
    opened = len(text[:start].rstrip(_OPENING))
    if text[opened - 1 : opened] in (":", "="):
        return opened - 1
    joint = last_before(joints, opened)
    return joint.start if joint and joint.end == opened else None


def _counts_units(text: str, start: int, end: int, labels: Labels) -> bool:
    """Whether it is an amount or a duration: 4500 euros, EUR 4500, 15 minutes, 24h."""
    beside = (end, end + 1) if text[end : end + 1] in (" ", "-") else (end,)
    for kind in ("currency", "unit") if end - start < 6 else ("currency",):
        last, after = last_before(labels[kind], end), first_after(labels[kind], end)
        if after and after.start in beside:
            return True
        if last and last.end == end and text[start : last.start].isdigit():
            return True
    before, at = last_before(labels["currency"], start), first_after(labels["currency"], start)
    return bool((before and before.end >= start - 1) or (at and at.start == start))


def _is_address(
    text: str, start: int, end: int, labels: Labels, before: Label | None, name_end: int | None
) -> bool:
    """Whether it is a number that a message goes to or comes from: sent to 4155550132."""
    name = text[before.end : start if name_end is None else name_end] if before else ""
    if _letters(name) and sum(map(str.isdigit, text[start:end])) >= PHONE:
        return True  # not just "code is 1234567890"
    return _is_beside(text, start, end, labels, "address")


def _is_of_another(
    text: str, start: int, end: int, labels: Labels, before: Label | None, name_end: int | None
) -> bool:
    """Whether a word like "order", nearer than the code's label, claims the number."""
    other, at = last_before(labels["other"], start), first_after(labels["other"], start)
    if at and at.start == start:  # CVV2
        return True
    if not other or (before and other.end <= before.end):
        return False
    gap = text[other.end : start]
    if len(gap) > OTHER_REACH or _letters(gap) > DIRECT or re.search(r"[\d¦]", gap):
        return False
    if name_end is None or other.end > name_end:
        return True
    if not _CLAUSE.fullmatch(text, before.end if before else 0, name_end):
        return True
    if before:  # "code for Booking.com is 4938"
        return False
    # "Booking.com: 4938 is your code"
    joint = first_after(labels["is"], end)
    if not joint or joint.start > end + 1:
        return True
    after = first_after(labels["code"], joint.end)
    return not after or _letters(text[joint.end : after.start]) > DIRECT


def _is_beside(text: str, start: int, end: int, labels: Labels, kind: str) -> bool:
    """Whether a word of this kind is right beside text[start:end], on its proper side."""
    before, after = last_before(labels[kind], start), first_after(labels[f"...{kind}"], end)
    return bool(
        (before and not text[before.end : start].strip(_OPENING))
        or (after and not text[end : after.start].strip(_CLOSING))
    )


def _closeness(gap: str, needs_direct: bool, named: bool = False) -> float:
    letters = _letters(gap) * (NAMED if named else 1)
    sentence_end = _SENTENCE_END.search(gap) is not None
    if needs_direct and (letters > DIRECT or sentence_end):
        return 0
    return 100 - PER_LETTER * letters - NEXT_SENTENCE * sentence_end


def _letters(gap: str) -> int:
    """The number of letters; those of scripts without spaces say more and count three times."""
    return sum(char.isalpha() + 2 * bool(words.NO_SPACES.match(char)) for char in gap)
