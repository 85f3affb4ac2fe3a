"""A text as the rules read it: words found, letters counted, and what is around a number."""

import re
from bisect import bisect_left
from collections import Counter
from functools import cached_property, lru_cache
from itertools import accumulate

from service.sms import candidates, words
from service.sms.candidates import Candidate
from service.sms.words import ANY, CACHED, NO_SPACES, Label

SENTENCE_END, BREATH = 50, 30  # how long a pause is, see otp.PER_LETTER
REACH = 320  # most characters between a label and its number: two SMS
OF_LABEL = 20  # most letters between "is" and the label: "493817 IS your Mango LOGIN code"
WINDOW = 8  # how many brackets, quotes and spaces are looked through

_OPENING = " \n\"'«„“”‘([{<*-–「『【#"
_CLOSING = " \"'»“”’)]}>*-–」』】"
_PAUSE = re.compile(r"[.!?;]\s+(?P<next>\S)|[。！？؟।]")
# The words of one sentence, as between "code" and "is" in "code for Booking.com is 493817"; a digit
# only in a name: 7even
_CLAUSE = re.compile(r"(?:[^\d.,:;!?|¦]|\.(?=\w)|\d(?=[^\W\d_])|(?<=[^\W\d_])\d){0,40}+")
_INITIAL = re.compile(r"[^\w][^\W\d_]\.")
_SIGN_AFTER = re.compile(r" ?[:=–—-]|[\n\"»”」』]")
_OF_NO_SPACES = re.compile(f"[{NO_SPACES}]")


@lru_cache(CACHED)
def _weight(char: str) -> int:
    """What a character counts; letters of scripts without spaces say more and count three times."""
    return char.isalpha() + 2 * bool(_OF_NO_SPACES.match(char))


class Reading:
    """A folded text; each question about two places in it takes the same time wherever they are."""

    def __init__(self, text: str) -> None:
        # `small` is of the same length, so that a place in it is the same place in `text`
        self.small = candidates.mask(text.lower())
        pairs = zip(text, self.small, strict=True)
        self.text = "".join([s if s == candidates.MASK else t for t, s in pairs])
        self.labels = words.find_labels(self.small)
        self._letters = list(accumulate(map(_weight, self.small), initial=0))
        self._pauses: dict[int, list[int]] = {SENTENCE_END: [], BREATH: [], 0: []}
        for match in _PAUSE.finditer(text):
            self._pauses[self._length(match)].append(match.start())

    @property
    def is_login(self) -> bool:
        """Whether a word says that it is about a login."""
        return bool(self.labels["login"].all)

    def _length(self, stop: re.Match[str]) -> int:
        """How long a pause is: none after "M.", "Ltd.", "руб."; short before a digit or "is"."""
        place, following = stop.start(), stop["next"] or "A"
        if _INITIAL.match(self.small, max(0, place - 2)):
            return 0
        for kind in ("short", "currency"):
            label = self.labels[kind].last_before(place + 1)
            if label and label.end >= place:
                return 0
        return BREATH if following.islower() or following in "0123456789–—-" else SENTENCE_END

    @cached_property
    def _votes(self) -> Counter[str]:
        """How many words of each section the text has, not counting those that this decides on."""
        kinds = self.labels.items()
        labels = (x for kind, found in kinds if kind not in ("is", "for") for x in found.all)
        return Counter(language for label in labels for language in label.languages)

    def is_rather(self, one: Label, other: Label) -> bool:
        """Whether the text is rather in a language of the first label than in one of the other."""
        votes = [max(self._votes[name] for name in x.languages) for x in (one, other)]
        return votes[0] > votes[1]

    def letters(self, start: int, end: int) -> int:
        """How many letters are between two places."""
        return self._letters[end] - self._letters[start]

    def pause(self, start: int, end: int) -> int:
        """The longest pause between two places: SENTENCE_END, BREATH or 0."""
        for length in (SENTENCE_END, BREATH):
            places = self._pauses[length]
            if bisect_left(places, start) < bisect_left(places, end):
                return length
        return 0

    def is_clause(self, start: int, end: int) -> bool:
        """Whether nothing but words of one sentence are between two places."""
        return _CLAUSE.fullmatch(self.small, start, end) is not None


class Around:
    """A candidate and the labels around it."""

    def __init__(self, reading: Reading, one: Candidate) -> None:
        self.reading, self.one = reading, one
        before = reading.labels["code"].last_before(one.start)
        after = reading.labels["code"].first_after(one.end)
        self.before = before if before and one.start - before.end <= REACH else None
        self.after = after if after and after.start - one.end <= REACH else None
        # Where the brackets, quotes and spaces in front of it begin
        window = reading.small[max(0, one.start - WINDOW) : one.start]
        self.opened = one.start - len(window) + len(window.rstrip(_OPENING))
        self.joint = self._joint()
        self.joined = self._joined()
        self.named = self._named(reading.labels["is"].first_after(one.end))

    def _joint(self) -> Label | None:
        """The "is" or the colon right before it."""
        opened = self.opened
        if self.reading.small[opened - 1 : opened] in (":", "="):
            return Label(opened - 1, opened, frozenset([ANY]))
        label = self.reading.labels["is"].last_before(opened)
        if not label or label.end < opened:
            return None
        # The "on" of "PIN on 4938" is "is" in Finnish, but a preposition in English
        same = self.reading.labels["for"].last_before(opened)
        if same and same.start == label.start and self.before and same.speaks_with(self.before):
            return label if self.reading.is_rather(label, same) else None
        return label

    def _joined(self) -> Label | None:
        """The label before it that is joined to it: "code 4938", "code for Booking.com is 4938"."""
        label, joint = self.before, self.joint
        if label and joint and joint.speaks_with(label):
            return label if self.reading.is_clause(label.end, joint.start) else None
        return label if label and label.end >= self.opened else None

    def _named(self, joint: Label | None) -> Label | None:
        """The label after it that "is" joins to it: "4938 is your code"."""
        label = self.after
        if not (joint and label and joint.start <= self.one.end + 1 and joint.end <= label.start):
            return None
        if self.reading.letters(joint.end, label.start) > OF_LABEL or not joint.speaks_with(label):
            return None
        return label if self.reading.is_clause(joint.end, label.start) else None

    @property
    def is_signed(self) -> bool:
        """Whether a sign joins it to the label after it: "4938 - your code"."""
        sign = _SIGN_AFTER.match(self.reading.small, self.one.end)
        return sign is not None and self._named(Label(*sign.span(), frozenset([ANY]))) is not None

    @property
    def is_dashed(self) -> bool:
        """Whether a dash is in front of it: "code for a payment of 300 Rs. - 4938"."""
        return self.reading.small[self.one.start - 2 : self.one.start] in ("- ", "– ", "— ")

    @property
    def is_line(self) -> bool:
        """Whether it is a line of its own."""
        text, start, end = self.reading.text, self.one.start, self.one.end
        return text[start - 1 : start] + text[end : end + 1] == "\n\n"

    def right_before(self, kind: str) -> Label | None:
        """The label of this kind that only brackets and the like part from the number."""
        label = self.reading.labels[kind].last_before(self.one.start)
        return label if label and label.end >= self.opened else None

    def right_after(self, kind: str) -> Label | None:
        """The same after the number."""
        label = self.reading.labels[kind].first_after(self.one.end)
        if not label or label.start > self.one.end + WINDOW:
            return None
        return None if self.reading.small[self.one.end : label.start].strip(_CLOSING) else label
