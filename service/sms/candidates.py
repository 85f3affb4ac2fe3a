"""What in a text may be a code by its look, once dates, amounts and phone numbers are masked."""

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

MASK = "¦"  # stands for each character of what is no code
TYPED = 4  # fewest characters of a code that a verb points to: "enter 4938 to log in"
PHONE = 9  # fewest digits that may be a phone number

_MONEY = "$€£¥₹₽₴₸₺₦₱₩₫₪₵₡₭₮฿៛৳"
_DAY, _MONTH = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])"
# What is never a code, with an example each; words are in otp_words.toml. To keep the time
# linear, every repetition has a bound, except \S and fixed strings.
LINKS = {
    "https://x.io/c?code=493817": r"\b[a-z]{2,10}://\S+|\bwww\.\S+",
    "x.io/493817": r"(?<![\w@.-])(?:[a-z0-9-]{1,40}\.){1,4}[a-z]{2,10}/\S*",
    "otp1234@x.io": r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,40}(?:\.[\w-]{1,40}){1,4}",
}
NUMBERS = {
    "192.168.10.20": r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])",
    "*123*PIN#": r"[*#]{1,2}\d{2,8}(?:\*[\w<>]{1,12}){0,4}#",
    "*144*4938": r"\*\d{2,4}(?:\*\d{1,12}){1,4}",
    "1044-5678-9012-3456-7890": r"(?<!\d)\d{2,8}(?:-\d{2,8}){3,9}(?!\d)",
    "1044 5678 9012 3456 7890": r"(?<!\d)\d{4}(?: \d{4}){2,9}(?!\d)",
    "2025-06-04": rf"(?<!\d)(?:19|20)\d\d(?P<y>[-/.] ?){_MONTH}(?P=y){_DAY}(?!\d)",
    "04.06.2025": rf"(?<!\d)(?:{_DAY}(?P<d>[-/.]){_MONTH}|{_MONTH}(?P<m>[-/.]){_DAY})"
    r"(?:(?P=d)|(?P=m))(?: ?(?:19|20))?\d\d(?!\d)",
    "04.06.": r"(?<![\d.])[0-3]?\d\.[01]?\d\.(?!\d)",
    "04-Jun-2025": r"(?<!\d)\d{1,2}(?:[-/ ]|\. )[^\W\d_]{3,12}[-/ ,.]{1,2}(?:19|20)\d\d(?!\d)",
    "04-Jun-25": r"(?<!\d)\d{1,2}-[a-z]{3}-\d\d(?!\d)",
    "18:32": r"(?<!\d)\d{1,2}[:h]\d\d(?::\d\d)?(?!\d)",
    "25%": r"(?<!\d)[\d.,]{1,7} ?[%٪]|[%٪] ?[\d.,]{1,7}",
    "+44 7400 849540": r"\+\d[\d ()./-]{5,18}\d",
    "(800) 555-0123": r"\(\d{2,5}\)[ -]?\d{2,4}[ -]?\d{2,4}",
    "555-014-2277": r"(?<![\d-])\d{3}(?P<p>[ .-])\d{3}(?P=p)\d{4}(?!\d)",
    "0800 123 456": r"(?<![\d-])[01]\d{2,3}[ -]\d{2,4}[ -]\d{2,5}(?!\d)",
    "$1,234.50": rf"[{_MONEY}] ?\d[\d.,']{{0,14}}",
    "1 234,50 €": rf"(?<!\d)\d{{1,3}}(?:[ .,']?\d{{3}}){{0,4}}(?:[.,]\d{{1,2}})? ?[{_MONEY}]",
    "1.234,50": r"(?<![\d.,])\d{1,12}(?:[.,' ]\d{3}){0,4}[.,]\d\d(?!\d)",
    "12,499": r"(?<!\d)(?<!\d[.,])(?!\d{3}\.\d{3}(?![.,']?\d))\d{1,3}(?:[.,']\d{3}){1,4}(?!\d)",
    "card *1234": r"(?:[*•·×⋯]{1,12}|(?<![a-z])x{1,12}|\.{2,4})[ -]?\d{3,5}(?![\d*])",
}
MASKS = LINKS | NUMBERS

_LINK = re.compile("|".join(LINKS.values()))
# Each begins with one of these: looking for them first halves the time
_NUMBER = re.compile(rf"(?=[\d*#%٪+(.x•·×⋯{_MONEY}])(?:{'|'.join(NUMBERS.values())})")
_CANDIDATE = re.compile(
    # AB12CD, AB1-2CD
    r"(?<![A-Za-z0-9_/@&+.-])(?P<mixed>(?=[A-Z]{1,9}\d|[a-z]{1,9}\d|\d{1,9}[A-Za-z])"
    r"[A-Za-z0-9]{2,10}(?:-[A-Z0-9]{2,6})?)(?![A-Za-z0-9_/@=-]|\.\w)"
    # G-493817: the service's letter is not part of the code
    r"|(?<![\w/@&+-])[A-Z]{1,2}-(?P<prefixed>\d{4,8})(?!\d)"
    # 493.817
    r"|(?<![\w/@&.,:-])(?P<dotted>\d{3}\.\d{3})(?![\w/@=-]|[.,:]\d)"
    # 493817, 493-817, 4 9 3 8 1 7; not what is before "2FA" in "493817 2FA"
    r"|(?<![A-Za-z0-9_/@&])(?<!\d[.,:])"
    r"(?P<digits>\d++(?:[ –-]\d++(?![A-Za-z_/@=]|[.,:]\d))*+)"
)
# But 493817-dir is a code: some languages append a suffix
_GOES_ON = re.compile(rf"[A-Z0-9_/@=]|[.,:]\d|-[A-Z0-9]|[*/–-]?{MASK}")
_GOES_BACK = re.compile(rf"{MASK}[*/–-]?\Z")
# SAVE20
_WORD = re.compile(r"[A-Za-z]{4,}\d{1,2}")
# GB29 NWBK 6016 1331 9268 19, RF48 9070 2041
_IBAN, _GROUP = re.compile(r"[A-Z]{2}\d\d\Z"), re.compile(rf" (?:{MASK}|[A-Z\d]{{4}} )")
# 2025, 20250604
_DATE = re.compile(r"(?:19[5-9]|20[0-4])\d(?:(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))?")


class Needs(IntEnum):
    """What a candidate needs to be a code; the next includes the last."""

    LABEL = 0
    NEAR = 1  # a label right beside it: "code you need: 123"
    JOINT = 2  # nothing but "is" or a colon in between


class Candidate(NamedTuple):
    """What may be a code: 3 to 10 ASCII digits and letters."""

    code: str
    start: int
    end: int
    needs: Needs
    may_be_typed: bool = False  # whether "enter" is as good as a label
    may_be_name: bool = False  # whether a label after it needs a joint: "your 7even code"
    is_word: bool = False  # whether it is one of advertising, unless it is to log in with: SAVE20

    @property
    def length(self) -> int:
        """How many characters of the text it is."""
        return self.end - self.start


def mask(text: str) -> str:
    """A text without what is never a code, of the same length."""
    if "/" in text or "@" in text or "www." in text:
        text = _LINK.sub(_blank, text)
    return _NUMBER.sub(_blank, text)


def _blank(match: re.Match[str]) -> str:
    return MASK * len(match[0])


def find(text: str) -> Iterator[Candidate]:
    """The candidates of a folded, masked text, in their order."""
    for match in _CANDIDATE.finditer(text):
        start, end = match.span()
        if _GOES_ON.match(text, end) or _GOES_BACK.search(text, max(0, start - 2), start):
            continue
        if match["prefixed"]:
            yield Candidate(match["prefixed"], start, end, Needs.LABEL, True)
        elif match["dotted"]:
            yield Candidate(match["dotted"].replace(".", ""), start, end, Needs.JOINT)
        elif match["mixed"]:
            code = match["mixed"].replace("-", "")
            if 4 <= len(code) <= 10 and not (_IBAN.match(code) and _GROUP.match(text, end)):
                plain = match["mixed"].isupper() and not code[1:].isdigit()  # R5000
                needs = Needs.LABEL if plain else Needs.NEAR
                may_be_typed = plain and end - start >= TYPED
                is_word = _WORD.fullmatch(code) is not None
                yield Candidate(code, start, end, needs, may_be_typed, True, is_word)
        else:
            yield from _of_digits(match["digits"], start, text[start - 1 : start])


def _of_digits(digits: str, start: int, before: str) -> Iterator[Candidate]:
    groups = re.split("[ –-]", digits)
    shape, code, end = [len(group) for group in groups], "".join(groups), start + len(digits)
    needs, long_enough = Needs.LABEL, len(digits) >= TYPED
    if len(groups) == 1 and 3 <= len(code) <= 10:
        is_date = _DATE.fullmatch(code) is not None
        if len(code) == 3 or len(code) >= PHONE or is_date:
            needs = Needs.NEAR
        if before in ("#", "-"):
            needs = Needs.JOINT
        yield Candidate(code, start, end, needs, long_enough and needs == Needs.LABEL, is_date)
    elif shape == [3, 3] or (set(shape) == {1} and 4 <= len(shape) <= 10):
        yield Candidate(code, start, end, Needs.LABEL, long_enough)
    elif shape in ([2, 2, 2], [2, 2, 2, 2]):
        yield Candidate(code, start, end, Needs.NEAR, True)
    elif shape in ([2, 3], [3, 4]):  # 55 302
        yield Candidate(code, start, end, Needs.JOINT)
    elif len(groups) == 2 and shape[0] != shape[1] and " " in digits:  # 493817 30 minutes
        yield from _of_digits(groups[0], start, before)
        yield from _of_digits(groups[1], end - shape[1], " ")
    elif len(groups) <= 3 and 4 <= len(code) <= 10 and sorted(shape) not in ([2, 2], [2, 2, 4]):
        yield Candidate(code, start, end, Needs.NEAR)  # not 2025-31-12
