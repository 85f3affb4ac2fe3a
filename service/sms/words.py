"""The words around a code: normalizes a text and finds the labels of otp_words.toml in it."""

import re
import tomllib
import unicodedata
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

MAX_TEXT = 1600  # how many characters are read: ten SMS
CACHED = 10_000  # how many characters are remembered
PATH = Path(__file__).with_name("otp_words.toml")
ANY = "any"  # the section of what every language has

# Scripts that do not separate words: Thai, Lao, Burmese, Khmer, Hangul, kana, Chinese
NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\ud7ff"
# Where a word may begin: at a run of Latin letters, of other letters, or of digits, at each
# letter of a script without spaces, and at a sign
_TOKEN = re.compile(rf"[a-zß-ʯ]+|(?:(?![{NO_SPACES}a-zß-ʯ])[^\W\d_])+|[{NO_SPACES}]|\d+|[^\w\s]")
# Letters that NFKD does not decompose, and signs of which it would make the comma of "1,5" or dots
_LETTERS = str.maketrans("ıłøđðŁØĐÐ，…", "iloddLODD、⋯", "ـ")
_LINKS = (" ", "-")  # between the parts of "reference code"


class Word(NamedTuple):
    """A word of otp_words.toml as it is in a folded, lowercase text, compounds spelled out."""

    plain: str
    kind: str  # with three dots in front if it comes after its number
    language: str  # its section
    any_after: bool  # whether any letters may follow


class Label(NamedTuple):
    """The position of a word in a text, and the sections of otp_words.toml that have it."""

    start: int
    end: int
    languages: frozenset[str]

    def speaks_with(self, other: "Label") -> bool:
        """Whether both may be of one language."""
        return ANY in self.languages | other.languages or bool(self.languages & other.languages)


class Labels:
    """The labels of one kind in a text; the order of their starts is that of their ends."""

    def __init__(self, labels: list[Label]) -> None:
        self.all = labels
        self._starts = [label.start for label in labels]
        self._ends = [label.end for label in labels]

    def covers(self, place: int) -> bool:
        """Whether one starts before `place` and ends after it."""
        count = bisect_left(self._starts, place)
        return count > 0 and place < self._ends[count - 1]

    def has(self, start: int) -> bool:
        """Whether one starts at `start`."""
        label = self.first_after(start)
        return label is not None and label.start == start

    def last_before(self, place: int) -> Label | None:
        """The last that ends at `place` or before."""
        count = bisect_right(self._ends, place)
        return self.all[count - 1] if count else None

    def first_after(self, place: int) -> Label | None:
        """The first that starts at `place` or after."""
        count = bisect_left(self._starts, place)
        return self.all[count] if count < len(self.all) else None


class _Folding(dict[int, str]):
    """What each character becomes, worked out once for as many as texts really use."""

    def __missing__(self, code: int) -> str:
        plain = []
        for char in unicodedata.normalize("NFKD", chr(code).translate(_LETTERS)):
            if char.isdecimal():
                plain.append(str(unicodedata.decimal(char)))
            elif char in "\r\n":
                plain.append("\n")
            elif char == "\t" or unicodedata.category(char)[0] == "Z":
                plain.append(" ")
            elif unicodedata.category(char) not in ("Cf", "Cc", "Mn", "Mc", "Me"):
                plain.append(char)
        if len(self) < CACHED:
            self[code] = "".join(plain)
        return "".join(plain)


_FOLDED = _Folding()


def fold(text: str) -> str:
    """Normalize compatibility forms and digits; drop accents, vowel signs, invisible characters."""
    plain = text.translate(_FOLDED)[: 3 * MAX_TEXT]  # a Korean character decomposes into up to 3
    return (plain if plain.isascii() else unicodedata.normalize("NFC", plain))[:MAX_TEXT]


def read_words(path: Path = PATH) -> Iterator[Word]:
    """All words of otp_words.toml; its head says what the kinds and signs mean."""
    for language, kinds in tomllib.loads(path.read_text("utf-8")).items():
        first_parts = ["", *kinds.pop("first", [])]
        for kind, entries in kinds.items():
            for entry in entries:
                side = "..." if entry.startswith("...") else ""
                stem = entry.removeprefix("...").lstrip(" +").rstrip("*")
                for first in first_parts if entry[0] == "+" else [""]:
                    plain = fold(first + stem).lower()
                    yield Word(plain, side + kind, language, entry[-1] == "*")


KEY = 4  # how many first characters of a word find it
_Meaning = tuple[str, bool, frozenset[str]]  # kind, whether letters may follow, sections
Value = TypeVar("Value", bound=tuple[object, ...])


class Index(NamedTuple):
    """What each word means; for each beginning how long the words are, the longest first; and the
    first characters."""

    meanings: dict[str, tuple[_Meaning, ...]]
    lengths: dict[str, tuple[int, ...]]
    firsts: set[str]


@cache
def index() -> Index:
    """The words of otp_words.toml, read when they are first asked for."""
    sections = defaultdict(set)
    for word in read_words():
        sections[word.plain, word.kind, word.any_after].add(word.language)
    meanings = defaultdict(list)
    lengths = defaultdict(set)
    # "code" comes last, see _longest
    for plain, kind, any_after in sorted(sections, key=lambda key: (key[1] == "code", key[2])):
        languages = set(sections[plain, kind, any_after])
        for length in range(1, len(plain) + 1):
            languages |= sections.get((plain[:length], kind, True), set())
        meanings[plain].append((kind, any_after, frozenset(languages)))
        lengths[plain[:KEY]].add(len(plain))
    return Index(
        _shared({plain: tuple(found) for plain, found in meanings.items()}),
        _shared({start: tuple(sorted(found, reverse=True)) for start, found in lengths.items()}),
        {start[0] for start in lengths},
    )


def _shared(values: dict[str, Value]) -> dict[str, Value]:
    """The same, with one object for all values that are equal: most are."""
    first: dict[Value, Value] = {}
    return {name: first.setdefault(value, value) for name, value in values.items()}


_NONE = Labels([])


def find_labels(text: str) -> dict[str, Labels]:
    """{kind: Labels} of all words of otp_words.toml in a folded, lowercase text."""
    found: defaultdict[str, list[Label]] = defaultdict(list)
    word_end = list(range(len(text) + 1))  # for a place inside a word: where the word ends
    places, firsts = [], index().firsts
    for token in _TOKEN.finditer(text):
        start, end = token.span()
        if end - start > 1:
            word_end[start + 1 : end] = [end] * (end - start - 1)
        if text[start] in firsts:
            places.append(start)
    for place in places:
        for kind, label in _longest(text, place, word_end).items():
            # None lies inside another of its kind
            if not found[kind] or label.end > found[kind][-1].end:
                found[kind].append(label)
    _give_away(found, text)
    return defaultdict(lambda: _NONE, {kind: Labels(labels) for kind, labels in found.items()})


def _longest(text: str, place: int, word_end: list[int]) -> dict[str, Label]:
    """The longest label of each kind that starts at `place`; "promo code" is no "code"."""
    longest: dict[str, Label] = {}
    meanings, lengths, _ = index()
    for length in (*lengths.get(text[place : place + KEY], ()), 3, 2, 1):
        word = text[place : place + length]
        if word not in meanings:
            continue
        end = place + len(word)
        for kind, any_after, languages in meanings[word]:
            if kind in longest or not (any_after or word_end[end] == end):
                continue
            if kind != "code" or "other" not in longest:
                longest[kind] = Label(place, word_end[end], languages)
    return longest


def _give_away(found: dict[str, list[Label]], text: str) -> None:
    """Leave to other things what is theirs: the code of "promo code", of "reference code"."""
    codes = Labels(found["code"])
    found["address"] = [x for x in found["address"] if not codes.covers(x.start)]  # "kod SMS to"
    logins = Labels(found["login"])
    found["enter"] = [x for x in found["enter"] if not logins.covers(x.start)]  # "đăng nhập"
    others = [x for x in found["other"] if not codes.covers(x.start)]
    all_others = Labels(others)
    owners_before = {x.end: x for kind in ("whose", "promo") for x in found[kind]}
    owners_after = {x.start: x for x in found["...whose"]}
    found["code"], found["owned"] = [], []
    for code in codes.all:
        before, after = text[code.start - 1 : code.start], text[code.end : code.end + 1]
        owners = (
            owners_before.get(code.start - (before in _LINKS)),
            owners_after.get(code.end + (after in _LINKS)),
        )
        # But an OTP is a code to log in, whatever it is for
        if not logins.has(code.start) and any(x and x.speaks_with(code) for x in owners):
            found["owned"].append(code)
        elif not all_others.covers(code.start):
            found["code"].append(code)
    found["other"] = sorted(others + found["owned"])
