"""Secrets at rest: readable under the keys of now and nothing else."""

import pytest

from service.keys import Unreadable, seal, unseal
from tests.databases import on_sqlite

pytestmark = on_sqlite


def test_what_was_read_once_is_not_read_under_another_key(make_app):
    with make_app().app_context():
        sealed = seal("whsec_1")
        assert unseal(sealed) == unseal(sealed) == "whsec_1"
    with make_app(SECRET_KEY="k" * 32).app_context(), pytest.raises(Unreadable):
        unseal(sealed)


def test_a_key_that_was_taken_back_reads_nothing_any_more(make_app):
    with make_app(SECRET_KEY="k" * 32).app_context():
        sealed = seal("whsec_1")
    with make_app(SECRET_KEY="n" * 32, SECRET_KEY_FALLBACKS="k" * 32).app_context():
        assert unseal(sealed) == "whsec_1"
    with make_app(SECRET_KEY="n" * 32).app_context(), pytest.raises(Unreadable):
        unseal(sealed)
