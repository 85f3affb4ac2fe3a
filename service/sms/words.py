"""The words around a code: normalizes a text and finds the labels of otp_words.toml in it."""

import re
import tomllib
import unicodedata
from bisect import bisect_left, bisect_right
from collections import defaultdict
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

MAX_TEXT = 1600  # how many characters are read: ten SMS
NO_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\ud7ff]")
# Letters that NFKD does not decompose; and a comma that must not become the one in "1,5"
_LETTERS = str.maketrans("ıłøđðŁØĐÐ，", "iloddLODD、", "ـ")
_start, _end = attrgetter("start"), attrgetter("end")


class Label(NamedTuple):
    """The position of a word of otp_words.toml in a text."""

    start: int
    end: int


# The labels of a text, by kind
Labels = defaultdict[str, list[Label]]
NO_WORD = ("", False)
# The words of otp_words.toml by their first letters: (word, kind, whether letters may follow)
Index = defaultdict[str, set[tuple[str, str, bool]]]


def fold(text: str) -> str:
    """Normalize compatibility forms and digits; drop accents, vowel signs, invisible characters."""
    plain = []
    # A Korean or Vietnamese character decomposes into up to three
    for char in unicodedata.normalize("NFKD", text.translate(_LETTERS))[: 3 * MAX_TEXT]:
        if char.isdecimal():
            plain.append(str(unicodedata.decimal(char)))
        elif char in "\r\n\t":
            plain.append("\n" if char != "\t" else " ")
        elif unicodedata.category(char)[0] == "Z":
            plain.append(" ")
        elif unicodedata.category(char) not in ("Cf", "Cc", "Mn", "Mc", "Me"):
            plain.append(char)
    return unicodedata.normalize("NFC", "".join(plain))[:MAX_TEXT]


def find_labels(text: str) -> Labels:
    """{kind: [Label]} of all words of otp_words.toml in a folded, lowercase text."""
    found: Labels = defaultdict(list)
    tail = Label(0, 0)  # the rest of a word, scanned once however many labels are in it
    for place in range(len(text)):
        for kind, (word, any_after) in _longest(text, place).items():
            end = place + len(word)
            if any_after:
                if not tail.start <= end <= tail.end:
                    tail = Label(end, _word_end(text, end))
                end = tail.end
            # No label lies inside another of its kind, so both starts and ends ascend
            if not found[kind] or end > found[kind][-1].end:
                found[kind].append(Label(place, end))
    for outer, inner in (("code", "other"), ("other", "code")):
        found[inner] = [x for x in found[inner] if not _is_inside(x, found[outer])]
    ends = {label.end for label in found["promo"]}
    found["code"] = [x for x in found["code"] if not ends & {x.start, x.start - 1}]
    return found


def _longest(text: str, place: int) -> dict[str, tuple[str, bool]]:
    """The longest word of each kind that starts at `place`: (word, whether letters may follow)."""
    longest: dict[str, tuple[str, bool]] = {}
    words = _WORDS[_glued(text, place)]
    for key in (text[place : place + 2], text[place]):
        for word, kind, any_after in words.get(key, ()):
            if (
                text.startswith(word, place)
                and len(word) > len(longest.get(kind, NO_WORD)[0])
                and (any_after or not _glued(text, place + len(word)))
            ):
                longest[kind] = word, any_after
    if "other" in longest and len(longest["other"][0]) >= len(longest.get("code", NO_WORD)[0]):
        longest.pop("code", None)
    return longest


def _is_inside(label: Label, labels: list[Label]) -> bool:
    count = bisect_left(labels, label.start, key=_start)
    return count > 0 and label.start < labels[count - 1].end


def last_before(labels: list[Label], place: int) -> Label | None:
    """The last label that ends at `place` or before."""
    count = bisect_right(labels, place, key=_end)
    return labels[count - 1] if count else None


def first_after(labels: list[Label], place: int) -> Label | None:
    """The first label that starts at `place` or after."""
    count = bisect_left(labels, place, key=_start)
    return labels[count] if count < len(labels) else None


def _glued(text: str, place: int) -> bool:
    """Whether the characters before and at `place` are letters of one word."""
    return 0 < place < len(text) and _of_one_word(text[place - 1], text[place])


@lru_cache(4096)
def _of_one_word(left: str, right: str) -> bool:
    are_letters = left.isalpha() and right.isalpha() and left.isascii() == right.isascii()
    return are_letters and not NO_SPACES.match(left) and not NO_SPACES.match(right)


def _word_end(text: str, place: int) -> int:
    while _glued(text, place):
        place += 1
    return place


def _load(path: Path) -> dict[bool, Index]:
    """The index of words that are found at the start of a word (False), and of those, with a
    leading star, that are also found inside one (True)."""
    index: dict[bool, Index] = {False: defaultdict(set), True: defaultdict(set)}
    for language, kinds in tomllib.loads(path.read_text("utf-8")).items():
        for kind, words in kinds.items():
            kind = "currency" if language == "currencies" else kind
            for word in words:
                side = "..." if word.startswith("...") else ""
                word = word.removeprefix("...").removeprefix(" ")
                plain = fold(word.strip("*")).lower()
                for inside in {False, word[0] == "*"}:
                    index[inside][plain[:2]].add((plain, side + kind, word[-1] == "*"))
    return index


_WORDS = _load(Path(__file__).with_name("otp_words.toml"))
