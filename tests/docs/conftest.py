"""What the tests of the documents share."""

import itertools
from types import SimpleNamespace

import pytest

from service import sandbox


@pytest.fixture
def dice(monkeypatch):
    """The sandbox grants +447400849540 to a user in country 2, and then the numbers after it."""
    rest = itertools.count(849540)
    loaded = SimpleNamespace(choice=lambda of: of[0], randrange=lambda _: next(rest))
    monkeypatch.setattr(sandbox, "random", loaded)
