"""The files of docs/examples, read at start, as /docs shows them."""

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[2] / "docs/examples"


class Example(NamedTuple):
    """A program for the reader to take; its first lines say how to run it."""

    title: str
    name: str
    text: str


def _read(*examples: tuple[str, str]) -> list[Example]:
    """Those that were deployed along: the service does without."""
    return [
        Example(title, name, (FOLDER / name).read_text("utf-8"))
        for title, name in examples
        if (FOLDER / name).is_file()
    ]


RECEIVERS = _read(
    ("Python", "receiver.py"),
    ("Node", "receiver.mjs"),
    ("PHP", "receiver.php"),
    ("Shell", "receiver.sh"),
)
RECIPES = _read(
    ("Python: numbers and their codes", "wait_for_code.py"),
    ("A test in pytest", "test_sign_up.py"),
    ("A test in pytest with Playwright", "test_sign_up_in_a_browser.py"),
    ("Node: numbers and their codes", "wait-for-code.mjs"),
    ("A test in Node", "sign-up.test.mjs"),
)
