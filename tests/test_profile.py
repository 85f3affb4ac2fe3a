"""The pages, without a browser: who gets in, what no page gives away, what each form refuses."""

import re
import threading
import time
from datetime import timedelta

import pytest
import requests
from sqlalchemy import select
from standardwebhooks import Webhook, WebhookVerificationError

from service import delivery, sessions
from service.models import Attempt, Delivery, PhoneNumber, User, count, db, sha256, transact, utcnow
from service.secretbox import unseal
from tests.conftest import SYSTEM_KEY
from tests.fixtures import NUMBER
from tests.mariadb import free_port

HOSTILE = "<script>alert(1)</script> code 123456 \u202e <img src=x onerror=alert(2)>"


def token(client, path="/login"):
    return re.search(r'name="csrf_token" value="([^"]+)"', client.get(path).text)[1]


def post(client, path, **form):
    return client.post(path, data={"csrf_token": token(client, "/logout")} | form)


def change(app, user, **columns):
    def write():
        row = db.session.get(User, user.id)
        for name, value in columns.items():
            setattr(row, name, value)

    with app.app_context():
        transact(write)


@pytest.fixture
def user(make_user):
    return make_user()


@pytest.fixture
def browser(client, user):
    """A client that is logged in."""
    assert post(client, "/login", api_key=user.key).headers["Location"] == "/profile"
    return client


# --- the session --------------------------------------------------------------------------


def test_the_cookie_holds_no_key_and_is_closed_to_scripts_and_other_sites(client, user):
    response = post(client, "/login", api_key=f" {user.key} ")
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Secure" not in cookie
    inside = client.application.session_interface.get_signing_serializer(client.application)
    held = inside.loads(client.get_cookie("session").value)
    assert user.key not in str(held) and sha256(user.key) not in str(held)


def test_the_cookie_is_secure_over_https(client, user):
    made = client.get("/login", base_url="https://localhost")
    assert "Secure" in made.headers["Set-Cookie"]


@pytest.mark.parametrize("key", ["", "nonsense", SYSTEM_KEY, "ключ", "x" * 5000])
def test_a_wrong_key_does_not_get_in(client, key):
    response = post(client, "/login", api_key=key)
    assert response.status_code == 401
    assert "This is not an API key in use." in response.text
    assert client.get("/profile").headers["Location"] == "/login"


@pytest.mark.parametrize("columns", [{"active": False}, {"approved": False}])
def test_who_is_deactivated_is_logged_out(app, browser, user, columns):
    assert browser.get("/profile").status_code == 200
    change(app, user, **columns)
    assert browser.get("/profile").headers["Location"] == "/login"
    assert post(browser, "/profile/edit", number_format="full").headers["Location"] == "/login"


def test_key_rotation_logs_out(browser, user, flask):
    flask("users", "rotate-key", user.id)
    assert browser.get("/profile").headers["Location"] == "/login"
    assert "You have been logged out." in browser.get("/login").text


def test_logout_asks_and_then_forgets(browser):
    assert "Log out?" in browser.get("/logout").text
    assert browser.get("/profile").status_code == 200
    post(browser, "/logout")
    assert browser.get("/profile").headers["Location"] == "/login"


def test_a_session_ends_after_its_lifetime_however_it_is_used(browser, monkeypatch):
    began = time.time()
    for hours in (6, 11):
        monkeypatch.setattr(sessions.time, "time", lambda hours=hours: began + 3600 * hours)
        assert post(browser, "/profile/reveal", reveal="1").headers["Location"] == "/profile"
    monkeypatch.setattr(sessions.time, "time", lambda: began + 3600 * 12.1)
    assert browser.get("/profile").headers["Location"] == "/login"


def test_logins_are_throttled_by_address(app, client, user):
    form = {"csrf_token": token(client), "api_key": "wrong"}
    for _ in range(sessions.MAX_FAILURES):
        assert client.post("/login", data=form).status_code == 401
    response = client.post("/login", data=form | {"api_key": user.key})
    assert response.status_code == 429
    assert 0 < int(response.headers["Retry-After"]) <= sessions.FAILURE_SECONDS
    assert "Too many tries" in response.text
    other = {"environ_base": {"REMOTE_ADDR": "192.0.2.1"}}
    assert client.post("/login", data=form, **other).status_code == 401
    assert client.post("/login", data=form | {"api_key": user.key}, **other).status_code == 302


@pytest.mark.parametrize(
    ("addresses", "same"),
    [
        (("192.0.2.1", "192.0.2.2"), False),
        (("::ffff:192.0.2.1", "::ffff:192.0.2.2"), False),
        (("::ffff:192.0.2.1", "192.0.2.1:5678"), True),
        (("2001:db8::1", "2001:db8::ffff:1"), True),
        (("2001:db8::1", "2001:db8:0:1::1"), False),
    ],
)
def test_what_counts_as_one_address(app, addresses, same):
    seen = set()
    for address in addresses:
        with app.test_request_context(environ_base={"REMOTE_ADDR": address}):
            seen.add(sessions._address())
    assert len(seen) == (1 if same else 2)


def test_the_throttle_forgets_after_its_time_and_keeps_a_bounded_number_of_names():
    throttle = sessions.Throttle(1, 1000)
    throttle.take("a")
    with pytest.raises(sessions.TooManyTries):
        throttle.take("a")
    throttle.seconds = 0
    throttle.take("a")
    throttle.seconds = 1000
    for n in range(sessions.Throttle.MAX_NAMES + 5):
        throttle.take(n)
    assert len(throttle._taken) == sessions.Throttle.MAX_NAMES


def test_without_a_secret_key_every_process_signs_alike(start, make_user, database_url):
    """The default is kept in instance/: sessions outlive the process that made them."""
    user, port = make_user(), free_port()
    _, url = start(
        "gunicorn", "--bind", f"127.0.0.1:{port}", "wsgi:app", port=port,
        DATABASE_URL=database_url, SECRET_KEY="", WEB_CONCURRENCY="3", THREADS="2",
    )  # fmt: skip
    with requests.Session() as browser:
        page = browser.get(f"{url}/login", timeout=30).text
        form = {"csrf_token": re.search(r'csrf_token" value="([^"]+)"', page)[1]}
        browser.post(f"{url}/login", data=form | {"api_key": user.key}, timeout=30)
        for _ in range(20):
            # A connection each, so that they go to several processes
            answer = browser.get(f"{url}/profile", headers={"Connection": "close"}, timeout=30)
            assert answer.url == f"{url}/profile"


def test_processes_that_start_together_make_one_secret_key(tmp_path, monkeypatch):
    from service import _development_secret

    found, together = set(), threading.Barrier(8)

    def run():
        together.wait()
        found.add(_development_secret(tmp_path))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1 and len(found.pop()) > 40
    assert [path.name for path in tmp_path.iterdir()] == ["secret_key"]


# --- what every page keeps ----------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/profile", "/profile/edit", "/profile/webhooks", "/docs", "/login", "/nothing"]
)
def test_nothing_runs_frames_or_is_kept(browser, path):
    response = browser.get(path)
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "form-action 'self'" in policy
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "same-origin"
    assert "<script" not in response.text and "style=" not in response.text
    assert response.headers["Cache-Control"] == "no-store"


def test_no_method_but_post_changes_anything(app, browser, user):
    """HEAD is GET without the body: no form of it is looked at."""
    form = {"webhook_url": "http://127.0.0.1/x", "number_format": "national", "api_key": "x"}
    for rule in app.url_map.iter_rules():
        if rule.endpoint.startswith("profile.") and "GET" in rule.methods:
            assert browser.head(rule.rule, data=form).status_code in (200, 302), rule.rule
    for _ in range(sessions.MAX_FAILURES + 1):
        app.test_client().head("/login", data=form)
    assert browser.get("/profile").status_code == 200
    assert post(app.test_client(), "/login", api_key=user.key).status_code == 302
    with app.app_context():
        row = db.session.get(User, user.id)
        assert (row.webhook_url, row.number_format) == (None, None)


def test_every_form_is_refused_without_its_token(app, browser):
    paths = [
        rule.rule
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("profile.") and "POST" in rule.methods
    ]
    assert len(paths) >= 9
    for path in paths:
        for form in ({}, {"csrf_token": ""}, {"csrf_token": "é" * 43}):
            response = browser.post(path, data=form)
            assert response.status_code == 400, path
            assert "Load the page again" in response.text
    stranger = app.test_client()
    form = {"csrf_token": "", "api_key": "x"}
    assert stranger.post("/login", data=form).status_code == 400


def test_an_unknown_page_is_a_page_and_an_unknown_call_is_json(client):
    response = client.get("/profil")
    assert (response.status_code, response.mimetype) == (404, "text/html")
    assert client.get("/api/profil").json["status"] == "error"
    for path in ("/api/init", "/healthz", "/openapi.json"):
        response = client.post(path)
        assert (response.status_code, response.json["status"]) == (405, "error")
    response = client.post("/docs")
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


def test_an_unforeseen_error_tells_no_details(make_app, user, tmp_path):
    app = make_app(DATABASE_URL=f"sqlite:///{tmp_path}/empty.sqlite3")
    client = app.test_client()
    response = post(client, "/login", api_key=user.key)
    assert response.status_code == 500
    assert "Something went wrong" in response.text and "sqlite" not in response.text.lower()
    assert response.headers["X-Request-ID"] in response.text


# --- what the pages show ------------------------------------------------------------------


def test_codes_and_texts_are_masked_until_they_are_asked_for(
    app, browser, user, assign, make_provider
):
    assign(user.id)
    browser.post(make_provider("gw"), json={"to": NUMBER, "text": HOSTILE})
    for page in ("overview", "messages"):
        path = "/profile" if page == "overview" else "/profile/messages"
        hidden = browser.get(path).text
        assert "123456" not in hidden and "alert" not in hidden
        assert f"+{NUMBER}" in hidden
        response = post(browser, "/profile/reveal", reveal="1", page=page)
        assert response.headers["Location"] == path
        shown = browser.get(path).text
        assert "123456" in shown and "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
        assert "<script>" not in shown and "<img" not in shown
        post(browser, "/profile/reveal", reveal="0", page=page)
        assert "123456" not in browser.get(path).text


def test_the_profile_shows_the_counts_and_only_the_users_own(
    app, browser, user, make_user, assign, make_provider
):
    other = make_user(name="Ben")
    assign(user.id)
    assign(other.id, "12025550999")
    with app.app_context():
        transact(lambda: count(user.id, utcnow(), numbers=1234, sms=2, otps=3))
        asked = PhoneNumber(user_id=user.id, state="unknown", country_id=1)
        transact(lambda: db.session.add(asked))
    page = browser.get("/profile").text
    assert "1,234" in page and "<desc" in page
    assert f"+{NUMBER}" in page and "+12025550999" not in page
    assert "whether the main server gave one is not known" in page
    assert "No Webhook URL is set" in page


def test_lists_are_paged_newest_first(browser, user, assign):
    for n in range(45):
        assign(user.id, f"1202555{n:04}", timedelta(minutes=60 - n))
    path, seen = "/profile/numbers", []
    while path:
        page = browser.get(path).text
        seen += re.findall(r"\+1202555(\d{4})", page)
        older = re.search(r'href="([^"]+)">Older', page)
        path = older and older[1].replace("&amp;", "&")
    assert seen == [f"{n:04}" for n in reversed(range(45))]
    # What else is in the query string is not taken over into the links
    strange = browser.get("/profile/numbers?before=40&endpoint=x&_method=POST&_external=1")
    assert strange.status_code == 200 and "_external" not in strange.text
    for page in ("numbers", "messages"):
        assert browser.get(f"/profile/{page}").text.count("Older</a>") == (page == "numbers")
    assert browser.get("/profile/numbers?before=x").status_code == 404
    assert browser.get(f"/profile/messages?before={'9' * 30}").status_code == 404


# --- the edit page ------------------------------------------------------------------------


def test_the_webhook_url_and_the_format_are_saved(app, browser, user, receiver):
    response = post(
        browser, "/profile/edit", webhook_url=f" {receiver.url} ", number_format="national"
    )
    assert response.headers["Location"] == "/profile/edit"
    page = browser.get("/profile/edit").text
    assert "Saved." in page and f'value="{receiver.url}"' in page
    with app.app_context():
        row = db.session.get(User, user.id)
        assert (row.webhook_url, row.number_format) == (receiver.url, "national")
    post(browser, "/profile/edit", webhook_url="", number_format="full")
    with app.app_context():
        assert db.session.get(User, user.id).webhook_url is None


def test_the_format_is_saved_also_while_the_url_cannot_be_found(app, browser, user):
    change(app, user, webhook_url="http://gone.invalid/hook")
    post(browser, "/profile/edit", webhook_url="http://gone.invalid/hook", number_format="national")
    with app.app_context():
        assert db.session.get(User, user.id).number_format == "national"


def test_urls_are_looked_up_so_often_and_no_more(browser):
    """Each may take seconds of a thread."""
    answers = [
        post(browser, "/profile/edit", webhook_url=f"http://10.0.0.{n}/", number_format="full")
        for n in range(21)
    ]
    assert [answer.status_code for answer in answers] == [400] * 20 + [429]
    assert "Try again in" in answers[20].text and int(answers[20].headers["Retry-After"]) <= 60


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://example.com", "must begin with https://"),
        ("http://10.0.0.1/x", "not on the public internet"),
        ("http://[::1]/x", "not on the public internet"),
        ("http://ann:secret@127.0.0.1/", "must hold no user name or password"),
        ("http://127.0.0.1:99999/", "is not a valid one"),
        ('"><script>alert(1)</script>', "must begin with https://"),
        (f"http://127.0.0.1/{'x' * 3000}", "is longer than 2,048 characters"),
    ],
)
def test_a_bad_url_is_refused_beside_its_field_and_kept(app, browser, user, url, sentence):
    response = post(browser, "/profile/edit", webhook_url=url, number_format="full")
    assert response.status_code == 400
    assert re.search(rf'id="webhook_url-error">[^<]*{re.escape(sentence)}', response.text)
    assert "<script" not in response.text
    assert str(url).split('"')[0] in response.text
    with app.app_context():
        assert db.session.get(User, user.id).webhook_url is None


@pytest.mark.parametrize("form", [{}, {"number_format": "roman"}])
def test_a_bad_format_is_refused(browser, form):
    response = post(browser, "/profile/edit", webhook_url="", **form)
    assert response.status_code == 400
    assert "Choose one of the formats." in response.text


def test_saving_the_same_url_does_not_close_an_open_circuit(app, browser, user, receiver):
    opened = utcnow() + timedelta(minutes=5)
    change(app, user, webhook_url=receiver.url, webhook_failures=7, webhook_open_until=opened)
    post(browser, "/profile/edit", webhook_url=receiver.url, number_format="national")
    with app.app_context():
        assert db.session.get(User, user.id).webhook_failures == 7
    # ... but after 410 Gone it says that the receiver is back
    change(app, user, webhook_disabled_at=utcnow())
    post(browser, "/profile/edit", webhook_url=receiver.url, number_format="national")
    with app.app_context():
        assert db.session.get(User, user.id).webhook_disabled_at is None


def shown_test(client):
    """The page that shows what came of a test event."""
    return client.get(post(client, "/profile/test").headers["Location"]).text


def test_a_test_event_is_sent_signed_and_its_result_is_shown(app, browser, user, receiver):
    change(app, user, webhook_url=receiver.url)
    page = shown_test(browser)
    assert "<strong>Delivered</strong>: answered 204, after" in page
    [(headers, body)] = receiver.received
    assert Webhook(user.secret).verify(body, dict(headers.items())) == {"event": "test", "data": {}}
    receiver.answers.append(500)
    assert "Not delivered</strong>: answered 500" in shown_test(browser)
    assert "elivered</strong>" not in browser.get("/profile/edit?tested=99").text
    assert browser.get(f"/profile/edit?tested={'9' * 30}").status_code == 404


def test_a_test_event_is_sent_while_other_webhooks_wait_for_their_turn(
    app, browser, user, receiver
):
    change(app, user, webhook_url=receiver.url, webhook_failures=1)
    with app.extensions["delivery"]["slots"].take(user.id, 1):
        assert "Delivered" in shown_test(browser)
    assert [body for _, body in receiver.received] == [b'{"event":"test","data":{}}']


def test_what_is_sent_by_hand_is_throttled(app, browser, user, receiver):
    change(app, user, webhook_url=receiver.url)
    form = {"csrf_token": token(browser, "/logout")}
    for _ in range(sessions.MAX_SENDS - 1):
        assert browser.post("/profile/test", data=form).status_code == 302
    for sentence in ("Delivered", "Try again in"):
        page = browser.post("/profile/test", data=form, follow_redirects=True).text
        assert sentence in page
    response = browser.post("/profile/webhooks/redeliver", data=form | {"id": "failed"})
    assert response.status_code == 429
    assert len(receiver.received) == sessions.MAX_SENDS


def offered(client, what):
    """(what the page shows, the form that puts it in force)"""
    page = client.get(f"/profile/{what}").text
    shown = re.search(r'class="secret">([^<]+)<', page)[1]
    return shown, {"offer": re.search(r'name="offer" value="([^"]+)"', page)[1]}


def test_the_secret_is_shown_once_and_in_force_when_it_was_copied(app, browser, user, receiver):
    change(app, user, webhook_url=receiver.url)
    secret, form = offered(browser, "secret")
    assert secret.startswith("whsec_") and secret != user.secret
    post(browser, "/profile/test")
    Webhook(user.secret).verify(receiver.received[0][1], dict(receiver.received[0][0].items()))
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(receiver.received[0][1], dict(receiver.received[0][0].items()))
    post(browser, "/profile/secret", **form)
    assert "The new secret is in force." in browser.get("/profile/edit").text
    # A second click changes nothing, and says so: the old one still signs as well
    post(browser, "/profile/secret", **form)
    assert "The new secret is in force." in browser.get("/profile/edit").text
    post(browser, "/profile/test")
    for valid in (secret, user.secret):
        Webhook(valid).verify(receiver.received[1][1], dict(receiver.received[1][0].items()))
    assert "whsec_" not in browser.get("/profile/edit").text


def test_of_two_secrets_that_were_offered_the_first_to_come_back_is_taken(app, browser, user):
    (first, form), (_, other) = offered(browser, "secret"), offered(browser, "secret")
    post(browser, "/profile/secret", **form)
    browser.get("/profile/edit")
    post(browser, "/profile/secret", **other)
    assert "was not rotated" in browser.get("/profile/edit").text
    with app.app_context():
        assert unseal(db.session.get(User, user.id).webhook_secret) == first


def test_the_key_is_rotated_after_asking_and_other_browsers_are_logged_out(app, browser, user):
    other = app.test_client()
    post(other, "/login", api_key=user.key)
    key, form = offered(browser, "key")
    assert browser.get(f"/api/numbers/{user.key}").status_code == 200
    assert browser.get(f"/api/numbers/{key}").status_code == 401
    post(browser, "/profile/key", **form)
    assert "The new key is in force." in browser.get("/profile/edit").text
    assert other.get("/profile").headers["Location"] == "/login"
    assert browser.get(f"/api/numbers/{key}").status_code == 200
    assert browser.get(f"/api/numbers/{user.key}").status_code == 401


def test_of_two_rotations_at_once_one_is_in_force_and_said_to_be(app, user):
    """Each browser was shown a key; only the one that is told so has the one that works."""
    clients, together, told = [], threading.Barrier(4), {}
    for _ in range(4):
        client = app.test_client()
        post(client, "/login", api_key=user.key)
        key, form = offered(client, "key")
        clients.append((client, key, form | {"csrf_token": token(client, "/logout")}))

    def run(client, key, form):
        together.wait()
        client.post("/profile/key", data=form)
        told[key] = client.get("/profile/edit").status_code == 200

    threads = [threading.Thread(target=run, args=args) for args in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [in_force] = [key for key, done in told.items() if done]
    for key in told:
        status = app.test_client().get(f"/api/numbers/{key}").status_code
        assert status == (200 if key == in_force else 401)


@pytest.mark.parametrize("what", ["key", "secret"])
def test_only_what_was_offered_to_this_user_is_taken(app, browser, make_user, what):
    stranger = app.test_client()
    post(stranger, "/login", api_key=make_user(name="Ben").key)
    other = {"key": "secret", "secret": "key"}[what]
    for form in ({}, {"offer": "é"}, offered(stranger, what)[1], offered(browser, other)[1]):
        post(browser, f"/profile/{what}", **form)
        assert "was not rotated" in browser.get("/profile/edit").text


def test_a_secret_of_another_secret_key_is_cured_by_one_rotation(app, browser, user, receiver):
    change(app, user, webhook_url=receiver.url, webhook_secret="sealed-under-another-key")
    assert "webhook secret has to be rotated" in shown_test(browser)
    post(browser, "/profile/secret", **offered(browser, "secret")[1])
    assert "<strong>Delivered</strong>" in shown_test(browser)


# --- the webhook log ----------------------------------------------------------------------


@pytest.fixture
def failed(app, browser, user, assign, make_provider, receiver):
    """Three deliveries that are dead; gives their ids."""
    assign(user.id)
    change(app, user, webhook_url=receiver.url)
    path = make_provider("gw")
    for n in range(3):
        receiver.answers.append(500)
        browser.post(path, json={"to": NUMBER, "text": f"code 77512{n}"})
    receiver.received.clear()

    def die():
        rows = db.session.scalars(select(Delivery)).all()
        for row in rows:
            row.state, row.next_attempt_at = "dead", None
        for row in db.session.scalars(select(Attempt)):
            row.answer = "echo of code 775120"
        return [row.id for row in rows]

    with app.app_context():
        return transact(die)


def states(app):
    with app.app_context():
        return db.session.scalars(select(Delivery.state).order_by(Delivery.id)).all()


def test_the_log_shows_attempts_and_no_code(browser, failed):
    page = browser.get("/profile/webhooks").text
    assert page.count("1 attempt<") == 3 and "answered 500" in page and ">failed<" in page
    assert page.count(f"+{NUMBER}") == 3 and "775" not in page and "echo" not in page
    post(browser, "/profile/reveal", reveal="1", page="webhooks")
    assert "echo of code 775120" in browser.get("/profile/webhooks").text
    assert "otp_received" not in browser.get("/profile/webhooks?state=delivered").text
    assert browser.get("/profile/webhooks?state=nonsense").status_code == 200


def test_one_or_all_failed_are_redelivered(app, browser, failed, receiver):
    post(browser, "/profile/webhooks/redeliver", id=failed[1])
    assert states(app) == ["dead", "delivered", "dead"]
    post(browser, "/profile/webhooks/redeliver", id="failed")
    assert states(app) == ["delivered"] * 3
    assert "Tried again: 2 delivered." in browser.get("/profile/webhooks").text
    ids = [headers["webhook-id"] for headers, _ in receiver.received]
    assert len(set(ids)) == len(ids) == 3


def test_a_redelivery_that_fails_is_not_called_delivered(app, browser, failed, receiver):
    """Even of one that was delivered before, and stays so."""
    post(browser, "/profile/webhooks/redeliver", id=failed[1])
    assert f"Delivery {failed[1]}: delivered." in browser.get("/profile/webhooks").text
    receiver.answers += [500, 302]
    for sentence in ("answered 500", "answered 302 (a redirect is not followed)"):
        post(browser, "/profile/webhooks/redeliver", id=failed[1])
        told = f"Delivery {failed[1]}: not delivered, {sentence}."
        assert told in browser.get("/profile/webhooks").text
    assert states(app)[1] == "delivered"


def test_the_edit_page_shows_no_answer_to_an_sms(browser, failed):
    """A receiver may echo the code, which is hidden until it is asked for."""
    assert "Not delivered" not in browser.get(f"/profile/edit?tested={failed[0]}").text


def test_what_is_not_redelivered_in_time_is_left_to_the_worker(
    app, browser, failed, receiver, flask, monkeypatch
):
    monkeypatch.setattr("service.profile.REDELIVER_SECONDS", 0)
    post(browser, "/profile/webhooks/redeliver", id="failed")
    assert states(app) == ["pending"] * 3
    assert flask("webhooks", "deliver", "--threads", 1, "--json")["delivered"] == 3


def test_a_page_that_is_not_there_says_so_in_our_words(client):
    page = client.get("/nothing")
    assert page.status_code == 404 and "There is no such page." in page.text


@pytest.mark.parametrize("id", ["", "x", "99", "-1", "\u0661", "9" * 40])
def test_a_delivery_that_is_not_there_is_404(browser, failed, id):
    assert post(browser, "/profile/webhooks/redeliver", id=id).status_code == 404


def test_a_delivery_of_somebody_else_is_404(app, failed, make_user, receiver):
    other, client = make_user(name="Ben"), app.test_client()
    post(client, "/login", api_key=other.key)
    assert post(client, "/profile/webhooks/redeliver", id=failed[0]).status_code == 404
    assert "No deliveries" in client.get("/profile/webhooks").text
    post(client, "/profile/webhooks/redeliver", id="failed")
    assert "No OTP is left to redeliver." in client.get("/profile/webhooks").text
    assert receiver.received == [] and states(app) == ["dead"] * 3


def test_what_a_worker_has_delivered_meanwhile_is_not_sent_again(
    app, browser, failed, receiver, monkeypatch
):
    """The worker takes the second one while the first is tried."""
    deliver, taken = delivery.deliver, []

    def first_the_worker(row, trigger):
        if not taken:
            taken.append(delivery.claim(failed[1], delivery.due(utcnow())))
            db.session.commit()
            deliver(db.session.get(Delivery, failed[1]), "worker")
        return deliver(row, trigger)

    monkeypatch.setattr(delivery, "deliver", first_the_worker)
    post(browser, "/profile/webhooks/redeliver", id="failed")
    assert taken == [True]
    ids = [headers["webhook-id"] for headers, _ in receiver.received]
    assert len(ids) == len(set(ids)) == 3


def test_after_a_pause_what_waits_is_due_at_once(app, browser, failed, user, receiver):
    later = utcnow() + timedelta(minutes=10)

    def park():
        for row in db.session.scalars(select(Delivery)):
            row.state, row.last_result, row.next_attempt_at = "pending", "circuit_open", later

    with app.app_context():
        transact(park)
    change(app, user, webhook_open_until=later, webhook_failures=6)
    post(browser, "/profile/webhooks/enable")
    with app.app_context():
        assert max(db.session.scalars(select(Delivery.next_attempt_at))) <= utcnow()


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"webhook_disabled_at": utcnow()}, "Your webhook is disabled"),
        ({"webhook_open_until": utcnow() + timedelta(hours=1)}, "Your webhook is paused"),
    ],
)
def test_a_banner_tells_that_nothing_is_sent_and_ends_it(
    app, browser, user, receiver, columns, sentence
):
    change(app, user, webhook_url=receiver.url, webhook_failures=9, **columns)
    for path in ("/profile", "/profile/edit", "/profile/webhooks"):
        assert sentence in browser.get(path).text
    post(browser, "/profile/webhooks/enable")
    assert sentence not in browser.get("/profile").text
    with app.app_context():
        row = db.session.get(User, user.id)
        assert (row.webhook_failures, row.webhook_url) == (0, receiver.url)


# --- /docs --------------------------------------------------------------------------------


def test_docs_describe_every_call_with_its_errors(client, browser):
    page = browser.get("/docs").text
    document = browser.get("/openapi.json").json
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert path in page or path.rpartition("/")[0] in page
            for failure in operation["x-failures"]:
                assert failure["message"] in page
    assert "usr_••••" in page and "otp_received" in page


def test_docs_and_the_document_tell_of_the_webhook(client):
    webhook = client.get("/openapi.json").json["webhooks"]["otp_received"]["post"]
    body = webhook["requestBody"]["content"]["application/json"]["example"]
    assert body["event"] == "otp_received" and len(body["data"]) == 4
    page = client.get("/docs").text
    assert "webhook-signature" in page and "5 s, 15 s, 45 s, 2 min, 5 min, 15 min, 1 h" in page


def test_docs_need_no_login(app):
    page = app.test_client().get("/docs").text
    assert "YOUR_API_KEY" in page and "Log in" in page
