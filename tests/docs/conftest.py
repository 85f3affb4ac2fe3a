"""What the documents' tests share: main server, service and receiver, whose answers are known."""

import itertools
from types import SimpleNamespace

import pytest

from service import sandbox

# What the sandbox grants first, as the documents have it
NUMBER = "447400849540"


@pytest.fixture
def dice(monkeypatch):
    """The sandbox grants +447400849540 to a user in country 2, and then the numbers after it."""
    rest = itertools.count(849540)
    loaded = SimpleNamespace(choice=lambda of: of[0], randrange=lambda _: next(rest))
    monkeypatch.setattr(sandbox, "random", loaded)
