"""A test that signs up at your application with a phone number, by its API:

    SERVICE=https://... KEY=usr_... APP=https://... pytest test_sign_up.py

APP is your application's address.
"""

import os
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from wait_for_code import Number


@pytest.fixture
def number():
    return Number(country_id=2)


def post(path, **form):
    with urlopen(os.environ["APP"] + path, urlencode(form).encode(), timeout=60) as answer:
        return answer.read().decode()


def test_sign_up(number):
    post("/sign-up", phone=number.full)
    code = number.next_code()
    assert "Welcome" in post("/confirm", phone=number.full, code=code)
