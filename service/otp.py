"""Finds the one-time code in an SMS: text in, code or None out."""

import re
import unicodedata

MAX_TEXT = 1600
_KEYWORD = re.compile(
    r"\b(?:otp|code|codes|pin|password|passcode|verification|verify|token|código|codigo|kod|kode)\b",
    re.IGNORECASE,
)
_CANDIDATE = re.compile(
    r"(?<![\w.,:/+-])(?:[A-Z]-)?([0-9]{4,10}|[0-9]{3}[- ][0-9]{3})(?![\w/:-]|[.,][0-9])"
)


def extract(text):
    """The code in `text` as ASCII digits, or None when there is none or it is not clear which.

    A number alone is a code only near a word such as "code"; the nearest one is taken.
    """
    text = unicodedata.normalize("NFKC", text[:MAX_TEXT])
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    keywords = [m.span() for m in _KEYWORD.finditer(text)]
    if not keywords:
        return None
    found = {}
    for match in _CANDIDATE.finditer(text):
        distance = min(max(match.start() - end, start - match.end(), 0) for start, end in keywords)
        code = re.sub("[- ]", "", match[1])
        found[code] = min(distance, found.get(code, distance))
    return min(found, key=found.get) if found else None
