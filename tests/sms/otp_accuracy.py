"""How often `otp` is right: python -m tests.sms.otp_accuracy [--misses]"""

import argparse
import json
from collections import Counter
from pathlib import Path

from service.sms import otp

DATA = Path(__file__).with_name("data")
# As docs/extraction.md names them
FILES = {
    "that it was made with": DATA / "otp_corpus.jsonl",
    "that it was mended with later": DATA / "otp_lookalikes.jsonl",
    "by another author": DATA / "otp_heldout.jsonl",
    "read once": DATA / "otp_blind.jsonl",
}


def read(path):
    """[{lang, text, code or None, why}] of a file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def answers(messages):
    """[(message, the code that is found or None)]"""
    found = [(message, otp.extract(message["text"])) for message in messages]
    return [(message, result and result.code) for message, result in found]


def rates(messages):
    """(the share of codes found, the share of messages without one where None came)."""
    right = Counter(), Counter()
    for message, code in answers(messages):
        right[message["code"] is None][code == message["code"]] += 1
    return tuple(c[True] / max(1, c.total()) for c in right)


def table(messages):
    """A line per language and one for all: codes found, and messages without one left alone."""
    counts = {}
    for message, code in answers(messages):
        for language in (message["lang"], "all"):
            row = counts.setdefault(language, Counter())
            kind = "none" if message["code"] is None else "code"
            row[kind] += 1
            row[f"{kind} right"] += code == message["code"]
            row["wrong code"] += code is not None and code != message["code"]
    for language in sorted(counts, key=lambda name: (name == "all", name)):
        row = counts[language]
        yield language, row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--misses", action="store_true", help="show each message that went wrong")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    for name, path in {p.name: p for p in options.files}.items() or FILES.items():
        messages = read(path)
        print(f"\nMessages {name}: {len(messages)}")
        print(f"{'language':10} {'code found':>14} {'none, left':>14} {'wrong code':>11}")
        for language, row in table(messages):
            shares = (f"{row[f'{kind} right']}/{row[kind]}" for kind in ("code", "none"))
            print(f"{language:10} {next(shares):>14} {next(shares):>14} {row['wrong code']:>11}")
        codes, nones = rates(messages)
        print(f"codes {codes:.1%}, none {nones:.1%}")
        if options.misses:
            for message, code in answers(messages):
                if code != message["code"]:
                    print(f"{message['lang']}: {code} for {message['code']}: {message['text']!r}")


if __name__ == "__main__":
    main()
