"""What the tests of the pages have in common: a user, their browser, and a clock."""

import pytest

from tests.forms import Clock, logged_in


@pytest.fixture
def user(make_user):
    return make_user()


@pytest.fixture
def browser(app, user):
    """A client that is logged in."""
    return logged_in(app, user.key)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)
