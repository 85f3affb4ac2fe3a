"""Finds the one-time code in the text of an SMS, and says which rule found it."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from service.sms import candidates, words
from service.sms.candidates import Needs
from service.sms.exclusions import is_something_else
from service.sms.reading import OF_LABEL, SENTENCE_END, Around, Reading
from service.sms.words import MAX_TEXT, Label

# A code's score, at most 100, for "code: 1234"; below SURE, no code is better than a wrong one.
# The longest pause in between is subtracted too
SURE = 40
AFTER = 5  # subtracted if the code comes before its label
PER_LETTER = 1.3  # subtracted for each letter in between
NAMED = 0.5  # PER_LETTER is multiplied by this if "is" or a colon is right before the code
CLEAR_LEAD = 12  # how far the best code must lead the next

TYPED = 6  # fewest characters of a code that a verb alone points to: "enter 493817"
NEAR = 8  # most letters between a label and a number right beside it: "code you need: 123"
LINE = 20  # most characters that count before a code on its own line

# The rules, with an example each; a code that the provider sent has the rule `given`
RULES = {
    "origin-bound": "Your code is 747723.\n\n@example.com #747723",
    "keyword-before": "Your code is 493817",
    "keyword-after": "493817 is your code",
    "alone": "493817",
}

_ORIGIN_BOUND = re.compile(
    r"^@[\w.-]{1,253} #([a-z0-9]{3,10}|[a-z0-9]{2,5}-[a-z0-9]{2,5})(?: [%@]\S+)?\s*\Z",
    re.MULTILINE | re.IGNORECASE | re.ASCII,
)
_RETRIEVER_PREFIX = re.compile(r"\A\s*(?:<#>|\[#\])")
# FA+9qCX9VSu, but not the word "engangskode"
_RETRIEVER_HASH = re.compile(r"\s(?![A-Za-z][a-z]{10}|[A-Z]{11})[A-Za-z0-9+/]{11}\s*\Z")
# 【51job】, and the numbers of services in China: 【12306】
_SENDER = re.compile(r"\s*(?:[【[](?=[^】\]]{0,20}[^\W\d])[^】\]]{1,30}[】\]]|【[19]\d{4}】)")


class Found(NamedTuple):
    """A code of 3 to 10 ASCII digits and letters, and the rule that found it (one of RULES)."""

    code: str
    rule: str


class Taken(NamedTuple):
    """The labels that are joined to a number on their right, and on their left."""

    right: set[Label | None]
    left: set[Label | None]


class Score(NamedTuple):
    """How much a number is like a code; without a rule it may only stand in another's way."""

    points: float  # up to 100
    rule: str


def extract(text: str) -> Found | None:
    """The one-time code in `text` as a Found, or None if there is none or it is ambiguous.

    Origin-bound codes: https://wicg.github.io/sms-one-time-codes/. The prefix and the hash of
    the SMS Retriever: https://developers.google.com/identity/sms-retriever/verify.
    """
    text = words.fold(text[:MAX_TEXT])
    if bound := _ORIGIN_BOUND.search(text):
        return Found(bound[1].replace("-", ""), "origin-bound")
    text = _RETRIEVER_HASH.sub("", _RETRIEVER_PREFIX.sub("", text))
    reading = Reading(text)
    labels, sender = reading.labels, _sender(reading)
    found = [x for x in candidates.find(reading.text) if text[x.start : x.end] not in sender]
    bare = text.strip(" \r\n.")
    if len(found) == 1 and found[0].needs == Needs.LABEL and len(bare) == found[0].length:
        return Found(found[0].code, "alone")
    if labels["prize"].all and not reading.is_login:  # "You won! Claim with PIN 4938"
        return None
    if labels["owned"].all and not labels["code"].all:  # "the store code is new: use 493817"
        return None
    is_login = reading.is_login
    if labels["promo"].all or "%" in text:  # "get 20% off with AB12CD", "enter 493817 to win"
        found = [x._replace(may_be_typed=False) for x in found if is_login or x.code.isdigit()]
    found = [x for x in found if is_login or not x.is_word]  # "code SAVE20"
    numbers = [Around(reading, x) for x in found]
    numbers = [x for x in numbers if x.before or x.after or x.one.may_be_typed]
    return _best([number for number in numbers if not is_something_else(number)])


def _sender(reading: Reading) -> str:
    """The bracketed sender that a message begins with: 【51job】, but not 【Code: 493817】."""
    sender, label = _SENDER.match(reading.text), reading.labels["code"].first_after(0)
    return sender[0] if sender and not (label and label.start < sender.end()) else ""


def _best(numbers: list[Around]) -> Found | None:
    """The code with the best score, if it leads clearly."""
    # In "Trip 6612, your code is 4938" the label serves none on its left, in "4938 is your code.
    # 6612 Main St" none on its right
    taken = Taken({number.joined for number in numbers}, {number.named for number in numbers})
    scores: defaultdict[str, list[Score]] = defaultdict(list)
    for number in numbers:
        scores[number.one.code] += [x for x in _scores(number, taken) if x.points >= SURE]
    ranks = [(max(found).points, code) for code, found in scores.items() if found]
    (points, code), *others = sorted(ranks, reverse=True) or [(0, "")]
    rules = [score.rule for score in sorted(scores[code]) if score.rule]
    if not rules or (others and points - others[0][0] < CLEAR_LEAD):
        return None
    return Found(code, rules[-1])


def _scores(number: Around, taken: Taken) -> Iterator[Score]:
    """The scores of a number by the label before it, the label after it, and a verb."""
    one, before, after = number.one, number.before, number.after
    is_login = number.reading.is_login
    if before and (number.joined or (one.needs < Needs.JOINT and before not in taken.left)):
        end = min(one.start, before.end + LINE) if number.is_line else one.start
        is_sure = number.joined or number.joint or number.is_line or number.is_dashed
        is_sure = is_sure or is_login or _is_close(number, before.end, one.start)
        points = _points(number, before.end, end, number.joint)
        yield Score(points, "keyword-before" if is_sure else "")
    # "Login 4938, password: hunter2"
    looks_right = after and number.reading.small[after.end : after.end + 1] == ":"
    is_plain = one.needs < Needs.JOINT and not one.may_be_name and not looks_right
    if after and (number.named or (after not in taken.right and (is_plain or number.is_signed))):
        is_sure = number.named or number.is_signed
        is_sure = is_sure or is_login or _is_close(number, one.end, after.start)
        points = _points(number, one.end, after.start) - AFTER
        yield Score(points, "keyword-after" if is_sure else "")
    if one.may_be_typed and _is_to_be_typed(number):
        yield Score(100 - AFTER, "keyword-before")


def _is_close(number: Around, start: int, end: int) -> bool:
    """Whether a label is so close that no word like "log in" is needed to trust it."""
    is_clause = number.reading.is_clause(start, end)
    return is_clause and number.reading.letters(start, end) <= OF_LABEL


def _points(number: Around, start: int, end: int, joint: Label | None = None) -> float:
    reading, needs = number.reading, number.one.needs
    letters = reading.letters(start, end) * (NAMED if joint else 1)
    pause = reading.pause(start, end)
    if pause == SENTENCE_END and not joint:
        return 0
    is_near = letters <= NEAR or number.named or number.joined
    if needs > Needs.LABEL and (pause or not is_near):
        return 0
    return 100 - PER_LETTER * letters - pause


def _is_to_be_typed(number: Around) -> bool:
    """Whether a verb points to it: "enter 493817", "493817 girin", "log in with 493817"; or to a
    shorter one beside what it is for: "enter 4938 to log in", "use 4938 to reset your password"."""
    one, after, reading = number.one, number.after, number.reading
    is_for = reading.is_login or (after and reading.is_clause(one.end, after.start))
    if one.length < TYPED and not is_for:
        return False
    if number.right_before("enter") or number.right_after("...enter"):
        return True
    preposition = number.right_before("with")
    if not preposition:
        return False
    verb = reading.labels["login"].last_before(preposition.start)
    is_one = verb and not reading.pause(verb.end, preposition.start)
    return bool(is_one or number.right_after("login"))
