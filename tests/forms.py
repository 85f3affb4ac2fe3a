"""What the tests of the pages share: a browser's forms with their token, a clock that is moved."""

import re
import time

from service.database.engine import db
from service.database.models import User
from service.database.writing import transact


def token(client, path="/login"):
    return re.search(r'name="csrf_token" value="([^"]+)"', client.get(path).text)[1]


def post(client, path, **form):
    return client.post(path, data={"csrf_token": token(client, "/logout")} | form)


def logged_in(app, key):
    """A browser of its own, logged in with `key`."""
    client = app.test_client()
    assert post(client, "/login", api_key=key).headers["Location"] == "/profile"
    return client


def change(app, user, **columns):
    def write(tx):
        row = db.session.get(User, user.id)
        for name, value in columns.items():
            setattr(row, name, value)

    with app.app_context():
        transact(write)


class Clock:
    """The standard library's clock, which stands still until `now` is changed."""

    def __init__(self, monkeypatch):
        # Whole seconds, so that sums are exact; near the real time, by which other threads wait
        self.now = float(int(time.monotonic()))
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def offered(client, what, key):
    """(what the page shows, the form that puts it in force); `key` is the current one"""
    page = post(client, f"/profile/{what}", api_key=key).text
    shown = re.search(r'class="secret">([^<]+)<', page)[1]
    return shown, {"offer": re.search(r'name="offer" value="([^"]+)"', page)[1]}
