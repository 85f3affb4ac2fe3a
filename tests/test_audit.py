"""The audit trail: who did what, when and from where, and nothing that is a secret."""

import json
from datetime import timedelta

import pytest
from sqlalchemy import event, select

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import AuditEntry, User
from service.database.writing import transact
from tests.conftest import SYSTEM_KEY
from tests.fixtures import NUMBER
from tests.forms import logged_in, offered, post
from tests.peers import sandbox


@pytest.fixture
def trail(flask):
    """The entries since it was called last, oldest first: (actor, action, user, details)."""
    seen = []

    def read():
        entries = flask("audit", "--json")[::-1][len(seen) :]
        seen.extend(entries)
        return [(e["actor"], e["action"], e["user"], e["details"]) for e in entries]

    return read


def test_what_a_user_does_in_the_browser(app, make_user, trail, assign, make_provider):
    user = make_user()
    assign(user.id)
    app.test_client().post(make_provider(), json={"to": NUMBER, "text": "code 123456"})
    trail()
    post(app.test_client(), "/login", api_key="usr_wrong")
    browser = logged_in(app, user.key)
    assert trail() == [("nobody", "login_failed", None, {}), ("user", "login", user.id, {})]
    post(browser, "/profile/reveal", reveal="1")
    post(browser, "/profile/reveal", reveal="0")
    url = "http://127.0.0.1:9/hook?token=s3cret"
    post(browser, "/profile/edit", webhook_url=url, number_format="national")
    secret, form = offered(browser, "secret", user.key)
    post(browser, "/profile/secret", **form)
    key, form = offered(browser, "key", user.key)
    post(browser, "/profile/key", **form)
    post(browser, "/profile/key", **form)  # a second click changes nothing
    post(browser, "/logout")
    post(logged_in(app, key), "/logout", everywhere="1")
    mine = [entry[1:] for entry in trail() if entry[0] == "user" and entry[2] == user.id]
    assert [(action, details) for action, _, details in mine] == [
        ("codes_revealed", {}),
        ("user_changed", {"number_format": "national"}),
        ("webhook_url_set", {"host": "127.0.0.1"}),
        ("secret_rotated", {}),
        ("key_rotated", {}),
        ("logout", {"everywhere": False}),
        ("login", {}),
        ("logout", {"everywhere": True}),
    ]
    with app.app_context():
        written = str([vars(entry) for entry in db.session.scalars(select(AuditEntry))])
    for hidden in (user.key, key, secret, "123456", "s3cret", "usr_wrong"):
        assert hidden not in written


def test_who_reads_with_the_system_key_leaves_a_trace(client, make_user, trail):
    """Who reads what is their own does not."""
    user = make_user()
    for name in ("numbers", "messages", "summary"):
        trail()
        assert client.get(f"/api/{name}/{user.key}").status_code == 200
        assert client.get(f"/api/{name}/{SYSTEM_KEY}?user_id=99").status_code == 404
        assert client.get(f"/api/{name}/{SYSTEM_KEY}?user_id={user.id}").status_code == 200
        assert trail() == [("system key", "read", user.id, {"what": name})]


def test_a_key_that_does_not_confirm_is_told_with_its_user(app, make_user, trail):
    user, other = make_user(), make_user(name="Ben")
    browser = logged_in(app, user.key)
    trail()
    for key in ("wrong", other.key):
        assert post(browser, "/profile/key", api_key=key).status_code == 401
    assert trail() == [("user", "confirm_failed", user.id, {})] * 2


def test_a_number_that_the_system_key_got_for_a_user_leaves_a_trace(make_app, make_user, trail):
    user = make_user()
    with sandbox() as url:
        client = make_app(MAIN_SERVER_URL=url).test_client()
        assert client.get(f"/api/get-number/{user.key}?country_id=1").status_code == 200
        path = f"/api/get-number/{SYSTEM_KEY}?country_id=1&user_id={user.id}"
        id = client.get(path).json["data"]["id"]
    assert trail() == [("system key", "number_requested", user.id, {"number_id": id})]


def test_a_redelivery_by_command_leaves_a_trace(
    client, make_user, make_provider, assign, receiver, flask, trail
):
    user = make_user(webhook_url=receiver.url)
    assign(user.id)
    client.post(make_provider(), json={"to": NUMBER, "text": "code 123456"})
    flask("webhooks", "redeliver", 1)
    assert trail() == [("command", "redelivered", user.id, {"delivery_id": 1})]


def test_an_address_that_is_none_is_cut_and_costs_no_login(app, flask, make_user):
    """As a proxy may tell one that is not ours."""
    user, browser = make_user(), app.test_client()
    browser.environ_base["REMOTE_ADDR"] = "x" * 300
    assert post(browser, "/login", api_key=user.key).status_code == 302
    assert flask("audit", "--json")[0]["address"] == "x" * 64


def test_what_the_operator_does(flask, trail):
    [id] = [flask("users", "add", "Ann", "--daily-limit", 3, "--json")["id"]]
    flask("users", "set", id, "--inactive", "--webhook-url", "http://127.0.0.1/x?token=s3cret")
    flask("users", "set", id, "--active", "--webhook-url", "none")
    flask("users", "rotate-key", id)
    flask("users", "rotate-secret", id)
    flask("providers", "add", "gw", "--format", "generic")
    flask("providers", "disable", "gw")
    told = trail()
    assert {actor for actor, *_ in told} == {"command"}
    assert [(action, user, details) for _, action, user, details in told] == [
        ("user_added", id, {"active": True, "approved": True}),
        ("webhook_url_set", id, {"host": "127.0.0.1"}),
        ("user_changed", id, {"active": False}),
        ("webhook_url_set", id, {}),
        ("user_changed", id, {"active": True}),
        ("key_rotated", id, {}),
        ("secret_rotated", id, {}),
        ("provider_added", None, {"provider": "gw", "format": "generic"}),
        ("provider_disabled", None, {"provider": "gw"}),
    ]


def test_the_trail_tells_when_and_from_where(app, flask, make_user):
    user, other = make_user(), make_user(name="Ben")
    for who, address in ((user, "192.0.2.7"), (other, "192.0.2.8")):
        client = app.test_client()
        client.environ_base["REMOTE_ADDR"] = address
        post(client, "/login", api_key=who.key)
    [mine] = flask("audit", "--user", user.id, "--json")
    assert (mine["action"], mine["address"]) == ("login", "192.0.2.7")
    noon = (utcnow() + timedelta(minutes=1)).isoformat()
    assert flask("audit", "--since", noon, "--json") == []
    assert len(flask("audit", "--since", mine["at"], "--json")) == 2
    assert len(flask("audit", "--limit", 1, "--json")) == 1
    shown = flask("audit").splitlines()
    assert shown[0].split() == ["id", "at", "actor", "address", "action", "user", "details"]
    assert shown[1].split()[3:] == ["user", "192.0.2.8", "login", str(other.id), "-"]
    for bad in ("yesterday", "2026-13-01", ""):
        assert "--since" in flask("audit", "--since", bad, exit_code=2)


def test_an_entry_is_kept_only_with_what_it_is_about(app, make_user, flask, monkeypatch):
    """They are one transaction."""
    user = make_user()
    before = len(flask("audit", "--json"))

    def fail(mapper, connection, target):
        raise RuntimeError("too bad")

    event.listen(User, "after_update", fail)
    try:
        result = app.test_cli_runner().invoke(args=["users", "set", str(user.id), "--inactive"])
        assert "this failed unexpectedly: RuntimeError" in result.output
    finally:
        event.remove(User, "after_update", fail)
    assert len(flask("audit", "--json")) == before


def test_purge_keeps_the_trail_twelve_times_as_long(app, flask):
    with app.app_context():
        for days in (12 * 30 - 1, 12 * 30 + 1):
            at = utcnow() - timedelta(days=days)
            transact(lambda tx, at=at: tx.store(AuditEntry(at=at, actor="command", action="x")))
    result = app.test_cli_runner().invoke(args=["purge", "--json"])
    assert json.loads(result.stdout)["audit_entries"] == 1
    assert len(flask("audit", "--json")) == 1
