"""Browser sessions: who gets in and for how long, whose forms are taken, who has to wait."""

import re
import threading
import time

import pytest
import requests
from sqlalchemy import delete, select, update

from service.database.engine import db
from service.database.models import EndedSession, User
from service.database.writing import transact
from service.errors import TooManyTries
from service.keys import sha256
from service.limits import Throttle
from service.pages.session import LIFETIME
from tests.conftest import SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import NUMBER
from tests.forms import change, logged_in, offered, post, token

# --- logging in and out -------------------------------------------------------------------


def test_the_cookie_holds_no_key_and_is_closed_to_scripts_and_other_sites(client, user):
    response = post(client, "/login", api_key=f" {user.key} ")
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Secure" not in cookie
    inside = client.application.session_interface.get_signing_serializer(client.application)
    held = inside.loads(client.get_cookie("session").value)
    assert user.key not in str(held) and sha256(user.key) not in str(held)


@on_sqlite
def test_the_cookie_is_secure_over_https(client):
    """And named so that no other host of the domain can set it (RFC 6265bis, 4.1.3.2)."""
    made = client.get("/login", base_url="https://localhost")
    name, *attributes = made.headers["Set-Cookie"].split("; ")
    assert name.startswith("__Host-session=")
    assert {"Secure", "Path=/"} < set(attributes)
    assert not [part for part in attributes if part.lower().startswith("domain")]


@on_sqlite
def test_a_browser_that_came_by_https_comes_by_https_again(client):
    for path in ("/login", "/api/none", "/static/site.css"):
        with client.get(path, base_url="https://localhost") as secure, client.get(path) as plain:
            assert secure.headers["Strict-Transport-Security"] == "max-age=31536000"
            assert "Strict-Transport-Security" not in plain.headers


@pytest.mark.parametrize("key", ["", "nonsense", SYSTEM_KEY, "ключ", "x" * 5000])
def test_a_wrong_key_does_not_get_in(client, key):
    response = post(client, "/login", api_key=key)
    assert response.status_code == 401
    assert "This is not an API key in use." in response.text
    assert client.get("/profile").headers["Location"] == "/login"


@on_sqlite
def test_a_login_leads_to_the_page_that_was_asked_for(app, user):
    """Which is kept in the session: no link can make a login lead to another site."""
    for path in ("/profile/webhooks?state=dead", "/profile/messages?q=a%26b%3F&since=2026-01-01"):
        client = app.test_client()
        assert client.get(path).location == "/login"
        assert post(client, "/login", api_key="wrong").status_code == 401
        assert post(client, "/login", api_key=user.key).location == path
        assert post(client, "/logout").location == "/login"
        assert post(client, "/login", api_key=user.key).location == "/profile"
    client = app.test_client()
    for path in ("//evil.test", "/\\evil.test", "/profile/test", "/nothing"):
        client.get(path)
        client.get("/login", query_string={"next": path})
        form = {"csrf_token": token(client, "/logout"), "api_key": user.key, "next": path}
        response = client.post(f"/login?next={path}", data=form)
        assert response.location == "/profile", path
        post(client, "/logout")


@on_sqlite
def test_who_is_not_approved_yet_is_told_so(app, client, make_user):
    user = make_user(approved=False)
    for _ in range(12):  # and is not made to wait: the key is right
        response = post(client, "/login", api_key=user.key)
        assert response.status_code == 403 and "awaiting approval" in response.text
    assert client.get("/profile").location == "/login"
    change(app, user, active=False)
    assert post(client, "/login", api_key=user.key).status_code == 401


@on_sqlite
def test_who_is_logged_in_is_led_to_the_profile(browser):
    for path in ("/", "/login"):
        assert browser.get(path).headers["Location"] == "/profile"


@pytest.mark.parametrize("columns", [{"active": False}, {"approved": False}])
def test_who_is_deactivated_is_logged_out(app, browser, user, columns):
    assert browser.get("/profile").status_code == 200
    change(app, user, **columns)
    assert browser.get("/profile").headers["Location"] == "/login"
    assert post(browser, "/profile/edit", number_format="full").headers["Location"] == "/login"


@on_sqlite
def test_the_session_of_a_user_who_is_no_more_ends(app, browser):
    with app.app_context():
        transact(lambda tx: db.session.execute(delete(User)))
    assert browser.get("/profile").headers["Location"] == "/login"


def test_key_rotation_logs_out(browser, user, flask):
    flask("users", "rotate-key", user.id)
    assert browser.get("/profile").headers["Location"] == "/login"
    assert "You have been logged out." in browser.get("/login").text
    # ... which is said once: the session is over
    assert browser.get("/profile").headers["Location"] == "/login"
    assert "You have been logged out." not in browser.get("/login").text


@on_sqlite
def test_logout_asks_and_then_forgets(browser):
    assert "Log out?" in browser.get("/logout").text
    assert browser.get("/profile").status_code == 200
    post(browser, "/logout")
    assert browser.get("/profile").headers["Location"] == "/login"
    assert "You have been logged out." not in browser.get("/login").text


def copy_of(browser):
    """A browser with the same cookie, as a thief has it."""
    thief = browser.application.test_client()
    thief.set_cookie("session", browser.get_cookie("session").value)
    assert thief.get("/profile").status_code == 200
    return thief


def test_a_copied_cookie_ends_with_the_session_that_it_was_copied_from(app, browser, user):
    thief, elsewhere = copy_of(browser), logged_in(app, user.key)
    post(browser, "/logout")
    assert thief.get("/profile").headers["Location"] == "/login"
    assert elsewhere.get("/profile").status_code == 200
    with app.app_context():
        [ended] = db.session.scalars(select(EndedSession.ended_at)).all()
        transact(lambda tx: tx.execute(update(EndedSession).values(ended_at=ended - LIFETIME)))
    post(elsewhere, "/logout")
    with app.app_context():  # what would have expired is forgotten
        [later] = db.session.scalars(select(EndedSession.ended_at)).all()
        assert later > ended


def test_to_log_out_everywhere_ends_every_session(app, browser, user, make_user):
    thief, elsewhere = copy_of(browser), logged_in(app, user.key)
    stranger = logged_in(app, make_user(name="Ben").key)
    for page in ("/logout", "/profile/edit"):
        assert "Log out everywhere" in elsewhere.get(page).text
    post(elsewhere, "/logout", everywhere="1")
    for ended in (thief, elsewhere, browser):
        assert ended.get("/profile").headers["Location"] == "/login"
    assert stranger.get("/profile").status_code == 200
    assert logged_in(app, user.key).get("/profile").status_code == 200


@pytest.mark.parametrize("state", [("--inactive", "--active"), ("--pending", "--approved")])
def test_a_session_does_not_come_back_with_its_user(browser, user, flask, state):
    off, on = state
    thief = copy_of(browser)
    flask("users", "set", user.id, off)
    flask("users", "set", user.id, on)
    for ended in (browser, thief):
        assert ended.get("/profile").headers["Location"] == "/login"


@on_sqlite
def test_the_key_and_the_secret_are_rotated_by_who_has_the_key_alone(browser, user, make_user):
    """Not by who has nothing but a copy of the cookie."""
    thief = copy_of(browser)
    for what, shown in (("key", "usr_"), ("secret", "whsec_")):
        path = f"/profile/{what}"
        asking = thief.get(path)
        assert 'name="api_key"' in asking.text and 'name="offer"' not in asking.text
        for key in ("", "wrong", make_user(name=f"Ben {what}").key):
            refused = post(thief, path, api_key=key)
            assert refused.status_code == 401 and "This is not your API key." in refused.text
            assert shown not in refused.text and 'name="offer"' not in refused.text
        assert shown in post(browser, path, api_key=f" {user.key} ").text


@on_sqlite
def test_the_webhook_url_is_changed_by_who_gave_the_key_of_late(app, browser, user, monkeypatch):
    """A copied cookie must not have the codes sent elsewhere."""
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began + 60 * 15.1)
    form = {"webhook_url": "http://127.0.0.1/x", "number_format": "national"}
    asking = post(browser, "/profile/edit", **form)
    assert 'name="api_key"' in asking.text
    assert post(browser, "/profile/edit", **form, api_key="wrong").status_code == 401
    with app.app_context():
        assert db.session.get(User, user.id).webhook_url is None
    # ... what is not about it is
    assert post(browser, "/profile/edit", webhook_url="", number_format="full").status_code == 302
    assert post(browser, "/profile/edit", **form, api_key=user.key).status_code == 302
    with app.app_context():
        assert db.session.get(User, user.id).webhook_url == "http://127.0.0.1/x"


@on_sqlite
@pytest.mark.parametrize("what", ["key", "secret"])
@pytest.mark.parametrize(("minutes", "is_taken"), [(14.9, True), (15.1, False)])
def test_what_was_offered_is_taken_for_15_minutes(
    browser, user, monkeypatch, what, minutes, is_taken
):
    _, form = offered(browser, what, user.key)
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began + 60 * minutes)
    post(browser, f"/profile/{what}", **form)
    told = "is in force" if is_taken else "was not rotated"
    assert told in browser.get("/profile/edit").text


@on_sqlite
def test_a_second_click_begins_no_new_session(app, browser, user):
    """Else the form that rotated a key would be as good as the key, for ever."""
    sessions = app.session_interface.get_signing_serializer(app)
    _, form = offered(browser, "key", user.key)
    ids = []
    for _ in range(2):
        post(browser, "/profile/key", **form)
        ids.append(sessions.loads(browser.get_cookie("session").value)["id"])
    assert ids[0] == ids[1]


@on_sqlite
def test_codes_are_shown_for_15_minutes_after_the_key_was_given(
    browser, user, assign, make_provider, monkeypatch
):
    began = time.time()

    def at(minutes):
        monkeypatch.setattr(time, "time", lambda: began + 60 * minutes)

    assign(user.id)
    browser.post(make_provider(), json={"to": NUMBER, "text": "code 123456"})
    at(14.9)
    assert post(browser, "/profile/reveal", reveal="1", page="messages").status_code == 302
    assert "123456" in browser.get("/profile/messages").text
    at(15.1)
    assert "123456" not in browser.get("/profile/messages").text
    asking = post(browser, "/profile/reveal", reveal="1", page="messages")
    assert 'name="api_key"' in asking.text and "123456" not in asking.text
    wrong = post(browser, "/profile/reveal", reveal="1", page="messages", api_key="wrong")
    assert wrong.status_code == 401
    assert "123456" not in browser.get("/profile/messages").text
    form = {"reveal": "1", "page": "messages", "api_key": user.key}
    assert post(browser, "/profile/reveal", **form).headers["Location"] == "/profile/messages"
    assert "123456" in browser.get("/profile/messages").text
    at(30.2)
    assert "123456" not in browser.get("/profile/messages").text
    # To hide them needs no key
    assert post(browser, "/profile/reveal", reveal="0").status_code == 302


@on_sqlite
@pytest.mark.parametrize("how", ["another user", "log out", "key rotated"])
def test_a_login_takes_over_nothing_of_the_session_before(
    app, browser, user, make_user, make_provider, assign, flask, how
):
    """Neither that codes are shown, nor the token that makes a form ours."""
    key = user.key
    if how == "another user":
        other = make_user(name="Ben")
        key = other.key
    assign(other.id if how == "another user" else user.id)
    browser.post(make_provider(), json={"to": NUMBER, "text": "code 123456"})
    post(browser, "/profile/reveal", reveal="1")
    old = token(browser, "/logout")
    if how == "log out":
        post(browser, "/logout")
    if how == "key rotated":
        key = flask("users", "rotate-key", user.id, "--json")["api_key"]
        browser.get("/profile")
    current = old if how == "another user" else token(browser)
    browser.post("/login", data={"csrf_token": current, "api_key": key})
    page = browser.get("/profile").text
    assert f"+{NUMBER}" in page and "Show codes" in page and "123456" not in page
    form = {"csrf_token": old, "reveal": "1"}
    assert browser.post("/profile/reveal", data=form).status_code == 400


@on_sqlite
def test_a_session_ends_12_hours_after_the_login_however_it_is_used(browser, monkeypatch):
    """Though each use renews the cookie."""
    began = time.time()
    for hours in (6, 11.9):
        monkeypatch.setattr(time, "time", lambda hours=hours: began + 3600 * hours)
        assert post(browser, "/profile/reveal", reveal="0").headers["Location"] == "/profile"
    monkeypatch.setattr(time, "time", lambda: began + 3600 * 12.1)
    assert browser.get("/profile").headers["Location"] == "/login"


@on_sqlite
def test_a_login_form_is_taken_for_12_hours(client, user, monkeypatch):
    opened, form = time.time(), {"csrf_token": token(client), "api_key": user.key}
    monkeypatch.setattr(time, "time", lambda: opened + 3600 * 12.1)
    assert client.post("/login", data=form).status_code == 400
    monkeypatch.setattr(time, "time", lambda: opened + 3600 * 11.9)
    assert client.post("/login", data=form).status_code == 302


# --- forms --------------------------------------------------------------------------------


@on_sqlite
def test_every_form_is_refused_without_its_token(app, browser):
    paths = [
        rule.rule
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("profile.") and "POST" in rule.methods
    ]
    assert len(paths) >= 9
    other = token(app.test_client())
    for path in paths:
        for given in (None, "", "é" * 43, other):
            response = browser.post(path, data={} if given is None else {"csrf_token": given})
            assert response.status_code == 400, path
            assert "Load the page again" in response.text
    own = token(browser, "/logout")
    assert browser.post(f"/logout?csrf_token={own}").status_code == 400
    assert browser.get("/profile").status_code == 200
    stranger = app.test_client()  # who has no session at all
    form = {"csrf_token": "", "api_key": "x"}
    assert stranger.post("/login", data=form).status_code == 400


@on_sqlite
def test_no_method_but_post_changes_anything(app, browser, user):
    """HEAD is GET without the body: no form of it is looked at."""
    form = {"webhook_url": "http://127.0.0.1/x", "number_format": "national", "api_key": "x"}
    for rule in app.url_map.iter_rules():
        if rule.endpoint.startswith("profile.") and "GET" in rule.methods:
            assert browser.head(rule.rule, data=form).status_code in (200, 302), rule.rule
    for _ in range(11):
        app.test_client().head("/login", data=form)
    assert browser.get("/profile").status_code == 200
    assert post(app.test_client(), "/login", api_key=user.key).status_code == 302
    with app.app_context():
        row = db.session.get(User, user.id)
        assert (row.webhook_url, row.number_format) == (None, None)


# --- throttling ---------------------------------------------------------------------------


@pytest.fixture
def try_key(app):
    """Try a key from an address; gives the answer."""
    stranger = app.test_client()
    form = {"csrf_token": token(stranger)}

    def attempt(key="wrong", address="192.0.2.1", client=stranger, **headers):
        return client.post(
            "/login",
            data=form | {"api_key": key},
            environ_base={"REMOTE_ADDR": address},
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    return attempt


@on_sqlite
def test_ten_wrong_keys_in_five_minutes_make_an_address_wait(app, user, clock, try_key):
    for _ in range(10):
        logged_in(app, user.key)  # a right one is not counted
    for _ in range(5):
        assert try_key(address="127.0.0.1").status_code == 401
    clock.now += 200.5
    for _ in range(5):
        assert try_key(address="127.0.0.1").status_code == 401
    response = try_key(address="127.0.0.1")
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "100"
    assert "Too many tries. Try again in 100 seconds." in response.text
    assert try_key(address="192.0.2.9").status_code == 401
    clock.now += 99
    assert try_key(address="127.0.0.1").headers["Retry-After"] == "1"
    # ... while the right key is never held up by others' wrong ones
    logged_in(app, user.key)
    clock.now += 0.5
    # The five minutes are over: they begin again with the next wrong key
    assert [try_key(address="127.0.0.1").status_code for _ in range(11)] == [401] * 10 + [429]


@on_sqlite
@pytest.mark.parametrize(
    ("addresses", "same"),
    [
        (("192.0.2.1", "192.0.2.2"), False),
        (("::ffff:192.0.2.1", "::ffff:192.0.2.2"), False),
        (("::ffff:192.0.2.1", "192.0.2.1:5678"), True),
        (("2001:db8::1", "2001:db8::8000:0:0:1"), True),
        (("2001:db8::1", "2001:db8:0:1::1"), False),
        (("", ""), True),
    ],
)
def test_what_counts_as_one_address(try_key, addresses, same):
    """Of IPv6 the /64, which is what one subscriber has; an IPv4 address however it is written."""
    first, second = addresses
    for _ in range(10):
        assert try_key(address=first).status_code == 401
    assert try_key(address=second).status_code == (429 if same else 401)


@on_sqlite
def test_nobody_can_choose_an_address(try_key):
    """No proxy is trusted unless TRUSTED_PROXIES says so."""
    answers = [try_key(X_Forwarded_For=f"198.51.100.{n}").status_code for n in range(11)]
    assert answers == [401] * 10 + [429]
    answer = try_key(address="192.0.2.7", X_Forwarded_Proto="https", X_Forwarded_Host="other.test")
    assert "Secure" not in answer.headers.get("Set-Cookie", "")


@on_sqlite
def test_a_trusted_proxy_tells_the_address_and_the_scheme(make_app, user):
    """As many hops as were declared, counted from our side: what comes before is the caller's."""
    client = make_app(TRUSTED_PROXIES=1).test_client()
    form = {"csrf_token": token(client), "api_key": "wrong"}

    def attempt(forwarded):
        return client.post("/login", data=form, headers={"X-Forwarded-For": forwarded})

    answers = [attempt(f"198.51.100.{n}, 192.0.2.1").status_code for n in range(11)]
    assert answers == [401] * 10 + [429]
    assert attempt("192.0.2.1, 192.0.2.2").status_code == 401
    made = client.application.test_client().get("/login", headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in made.headers["Set-Cookie"]


def test_a_throttle_keeps_ten_thousand_names_and_forgets_those_taken_longest_ago(clock):
    throttle = Throttle(2, 1000)

    def full(name):
        try:
            throttle.check(name)
        except TooManyTries:
            return True
        return False

    for name in ("early", "early", "again", "late"):
        throttle.take(name)
    throttle.take("again")
    for n in range(9_997):
        throttle.take(n)
    assert full("early") and full("again")
    throttle.take("one more")
    assert full("again") and not full("early")
    throttle.take("late")  # which was put at the end by that
    for name in ("second", "third"):
        throttle.take(name)
    assert full("late") and not full("again")


# --- SECRET_KEY ---------------------------------------------------------------------------


def test_without_a_secret_key_every_process_signs_alike(serve, make_user):
    """The default is kept in instance/: sessions outlive the process that made them."""
    user = make_user()
    _, url = serve(SECRET_KEY="", WEB_CONCURRENCY="3")
    with requests.Session() as browser:
        page = browser.get(f"{url}/login", timeout=30).text
        form = {"csrf_token": re.search(r'csrf_token" value="([^"]+)"', page)[1]}
        browser.post(f"{url}/login", data=form | {"api_key": user.key}, timeout=30)
        for _ in range(20):
            # A connection each, so that they go to several processes
            answer = browser.get(f"{url}/profile", headers={"Connection": "close"}, timeout=30)
            assert answer.url == f"{url}/profile"


@on_sqlite
def test_processes_that_start_together_make_one_secret_key(make_app, monkeypatch, tmp_path):
    folder = tmp_path / "instance"
    monkeypatch.setattr("flask.Flask.auto_find_instance_path", lambda self: str(folder))
    found, together = set(), threading.Barrier(8)

    def run():
        together.wait()
        found.add(make_app(SECRET_KEY="").config["SECRET_KEY"])

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1 and len(found.pop()) > 40
    assert [path.name for path in folder.iterdir()] == ["secret_key"]
