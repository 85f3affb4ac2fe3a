"""The pages, without a browser: what each shows and keeps to itself, what its forms refuse."""

import re
import socket
import threading
from datetime import timedelta

import pytest
from flask import request
from sqlalchemy import event, select
from standardwebhooks import Webhook, WebhookVerificationError

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Attempt, Delivery, PhoneNumber, User, UserSummary
from service.database.writing import transact
from service.keys import unseal
from service.limits import share
from service.webhooks import queue
from tests.databases import on_sqlite
from tests.fixtures import NUMBER
from tests.forms import change, logged_in, offered, post, token
from tests.peers import raw_server

SCRIPT = '<script src="/static/site.js" defer></script>'
HOSTILE = "<script>alert(1)</script> code 123456 \u202e <img src=x onerror=alert(2)>"


def when_called(receiver, do):
    """Call `do()` whenever the receiver is called, before it answers."""
    receiver.before_request_funcs[None] = [do]


def after_statement(app, fragment, do):
    """Call `do()` whenever a statement with `fragment` in it has run."""

    def heed(_connection, _cursor, statement, *_):
        if fragment in statement:
            do()

    with app.app_context():
        event.listen(db.engine, "after_cursor_execute", heed)


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
    assert "script-src 'self';" in policy and "style=" not in response.text
    assert re.findall("<script.*", response.text) == [SCRIPT] * (response.status_code != 302)
    assert response.headers["Cache-Control"] == "no-store"


def test_an_unknown_page_is_a_page_and_an_unknown_call_is_json(client):
    response = client.get("/profil")
    assert (response.status_code, response.mimetype) == (404, "text/html")
    assert client.get("/api/profil").json["status"] == "error"
    for path in ("/api/init", "/healthz", "/openapi.json"):
        response = client.post(path)
        assert (response.status_code, response.json["status"]) == (405, "error")
    response = client.post("/docs", data={"csrf_token": token(client)})
    assert response.status_code == 405
    assert "This page cannot be used that way." in response.text
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


@on_sqlite
def test_an_unforeseen_error_tells_no_details_and_logs_nobody_out(
    app, browser, user, assign, make_provider
):
    assign(user.id)
    browser.post(make_provider(), json={"to": NUMBER, "text": "code 123456"})
    with app.app_context(), db.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE messages SET received_at = 'no time'")
    response = browser.get("/profile")
    assert response.status_code == 500
    assert "Something went wrong" in response.text and "no time" not in response.text
    assert response.headers["X-Request-ID"] in response.text
    assert ">Log out</button>" in response.text


@on_sqlite
def test_an_error_of_the_database_is_a_page_too(make_app, browser, tmp_path):
    """Also when who is logged in cannot be told any more."""
    client = make_app(DATABASE_URL=f"sqlite:///{tmp_path}/empty.sqlite3").test_client()
    client.set_cookie("session", browser.get_cookie("session").value)
    response = client.get("/profile")
    assert response.status_code == 503
    assert "schema is not current" in response.text and "sqlite" not in response.text.lower()
    assert response.headers["X-Request-ID"] in response.text
    assert ">Log out</button>" in response.text


@on_sqlite
def test_a_form_that_is_too_large_is_refused_on_a_page_with_the_menu(browser):
    response = browser.post("/profile/edit", data={"x": "x" * 300_000})
    assert (response.status_code, response.mimetype) == (413, "text/html")
    assert "Log out" in response.text


@on_sqlite
def test_what_is_static_may_be_cached(client):
    with client.get("/static/site.css") as response:
        assert "no-store" not in response.headers["Cache-Control"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"


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


@on_sqlite
def test_codes_are_shown_to_the_session_alone_that_asked_by_a_form(
    app, browser, user, assign, make_provider
):
    assign(user.id)
    browser.post(make_provider(), json={"to": NUMBER, "text": "code 123456"})
    other = logged_in(app, user.key)
    assert browser.get("/profile/reveal?reveal=1").status_code == 405
    assert "123456" not in browser.get("/profile/messages?reveal=1").text
    post(browser, "/profile/reveal", reveal="1")
    assert "123456" in browser.get("/profile/messages").text
    assert "123456" not in other.get("/profile/messages").text
    assert post(browser, "/profile/reveal", page="edit").headers["Location"] == "/profile"
    assert "123456" not in browser.get("/profile/messages").text


def test_the_pages_show_the_counts_and_only_the_users_own(app, browser, user, make_user, assign):
    other = make_user(name="Ben")
    assign(user.id)
    assign(other.id, "12025550999")

    def add(tx):
        tx.count(user.id, utcnow(), numbers=1234, sms=2, otps=3)
        db.session.add(PhoneNumber(user_id=user.id, state="unknown", country_id=1))
        for id, owner, state in (("1", user, "dead"), ("2", user, "pending"), ("3", other, "dead")):
            db.session.add(Delivery(webhook_id=id, user_id=owner.id, body=b"{}", state=state))

    with app.app_context():
        transact(add)
    page = browser.get("/profile/summary").text
    assert "1,234" in page and "<desc" in page
    assert re.search(r">Failed</a></dt><dd>1<", page)
    page = browser.get("/profile/numbers").text
    assert f"+{NUMBER}" in page and "+12025550999" not in page
    assert "whether the main server gave one is not known" in page


@on_sqlite
def test_the_summary_shows_30_days(app, browser, user):
    today = utcnow().date()
    days = [UserSummary(user_id=user.id, day=today - timedelta(days=n), sms=7) for n in (29, 30)]
    with app.app_context():
        transact(lambda tx: db.session.add_all(days))
    page = browser.get("/profile/summary").text
    assert f'<th scope="row">{days[0].day}</th>' in page
    assert f'<th scope="row">{days[1].day}</th>' not in page
    assert "<dd>14</dd>" in page  # all of them


@on_sqlite
def test_one_peak_does_not_flatten_the_chart(app, browser, user):
    today = utcnow().date()
    with app.app_context():
        for ago, numbers in ((0, 10_000), (1, 10), (2, 0)):
            day = UserSummary(user_id=user.id, day=today - timedelta(days=ago), numbers=numbers)
            transact(lambda tx, day=day: db.session.add(day))
    page = browser.get("/profile/summary").text
    heights = re.findall(r'<rect class="numbers".* height="([0-9.]+)"', page)
    zero, ten, peak = map(float, heights[-3:])
    assert zero == 0 and peak == 120 and ten > peak / 5
    assert f"<title>{today}: 10000 numbers, 0 OTPs</title>" in page
    assert re.findall(r'text-anchor="end">([0-9,]+)<', page) == [
        "1",
        "10",
        "100",
        "1,000",
        "10,000",
    ]


@on_sqlite
def test_messages_are_paged_newest_first(browser, user, assign, make_provider):
    path = make_provider()
    assign(user.id)
    for n in range(21):
        browser.post(path, json={"to": NUMBER, "text": "x" * (100 + n)})
    pages = [browser.get("/profile/messages").text]
    older = re.search(r'href="([^"]+)">Older', pages[0])[1]
    pages.append(browser.get(older).text)
    shown = [re.findall(r"text of 1(\d\d) characters", page) for page in pages]
    assert shown == [[f"{n:02}" for n in range(20, 0, -1)], ["00"]]
    assert "Older</a>" not in pages[1] and "Newer</a>" in pages[1]


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


@on_sqlite
@pytest.mark.parametrize(
    ("saved", "given", "disabled", "looked_up"),
    [
        ("http://gone.test/hook", "http://gone.test/hook", False, False),
        ("http://gone.test/hook", "http://gone.test/other", False, True),
        (None, "http://gone.test/hook", False, True),
        ("http://gone.test/hook", "http://gone.test/hook", True, True),
        ("http://gone.test/hook", "", False, False),
        ("http://gone.test/hook", "", True, False),
    ],
)
def test_a_url_is_looked_up_when_it_changes_or_the_endpoint_is_disabled(
    app, browser, user, monkeypatch, saved, given, disabled, looked_up
):
    """Not else: the format is saved also while the name cannot be found."""
    change(app, user, webhook_url=saved, webhook_disabled_at=utcnow() if disabled else None)
    asked = []

    def find_nothing(host, *_, **__):
        asked.append(host)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", find_nothing)
    response = post(browser, "/profile/edit", webhook_url=given, number_format="national")
    assert asked == ["gone.test"] * looked_up
    with app.app_context():
        row = db.session.get(User, user.id)
        if looked_up:
            assert "names a host that cannot be found" in response.text
            assert (row.webhook_url, row.number_format) == (saved, None)
        else:
            assert (row.webhook_url, row.number_format) == (given or None, "national")


@on_sqlite
def test_urls_are_looked_up_20_times_a_minute_and_no_more(app, browser, user, clock):
    """Each may take seconds of a thread."""
    save = {"number_format": "full"}
    for n in range(20):
        response = post(browser, "/profile/edit", webhook_url=f"http://10.0.0.{n}/", **save)
        assert response.status_code == 400
    clock.now += 20.5
    response = post(browser, "/profile/edit", webhook_url="http://10.0.0.99/", **save)
    assert (response.status_code, response.headers["Retry-After"]) == (429, "40")
    assert "Try again in 40 seconds." in response.text
    # What is not looked up is not counted
    assert post(browser, "/profile/edit", webhook_url="", **save).status_code == 302
    clock.now += 40
    response = post(browser, "/profile/edit", webhook_url="http://10.0.0.99/", **save)
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://example.com", "must begin with https://"),
        ("http://10.0.0.1/x", "internet. Ask the operator to allow its network."),
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
    assert re.findall("<script.*", response.text) == [SCRIPT]
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
    app, browser, user, receiver, assign, make_provider
):
    """A person waits for it. While the last try failed, the endpoint takes one at a time."""
    change(app, user, webhook_url=receiver.url, webhook_failures=1)
    assign(user.id)
    shown = []

    def meanwhile():
        if b"otp_received" in request.get_data():
            shown.append(shown_test(browser))

    when_called(receiver, meanwhile)
    app.test_client().post(make_provider(), json={"to": NUMBER, "text": "code 123456"})
    assert len(shown) == 1 and "<strong>Delivered</strong>" in shown[0]


@on_sqlite
def test_what_is_sent_by_hand_is_20_a_minute_for_each_user(
    app, browser, user, make_user, receiver, clock
):
    """Nobody is flooded in our name."""
    change(app, user, webhook_url=receiver.url)
    form = {"csrf_token": token(browser, "/logout")}

    def told():
        return browser.post("/profile/test", data=form, follow_redirects=True).text

    for _ in range(19):
        assert browser.post("/profile/test", data=form).status_code == 302
    assert "<strong>Delivered</strong>" in told()
    clock.now += 20.5
    assert "Too many tries. Try again in 40 seconds." in told()
    response = browser.post("/profile/webhooks/redeliver", data=form | {"id": "failed"})
    assert (response.status_code, response.headers["Retry-After"]) == (429, "40")
    assert len(receiver.received) == 20
    other = make_user(name="Ben", webhook_url=receiver.url)
    assert "<strong>Delivered</strong>" in shown_test(logged_in(app, other.key))
    clock.now += 40
    assert "<strong>Delivered</strong>" in told()


def test_the_secret_is_shown_once_and_in_force_when_it_was_copied(app, browser, user, receiver):
    change(app, user, webhook_url=receiver.url)
    secret, form = offered(browser, "secret", user.key)
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


@pytest.mark.parametrize("what", ["key", "secret"])
def test_of_two_that_were_offered_the_first_to_come_back_is_taken(app, browser, user, what):
    (first, form), (_, other) = (offered(browser, what, user.key) for _ in range(2))
    post(browser, f"/profile/{what}", **form)
    assert f"The new {what} is in force." in browser.get("/profile/edit").text
    post(browser, f"/profile/{what}", **other)
    assert f"The {what} was not rotated" in browser.get("/profile/edit").text
    # ... and a second click of the first says again what holds
    post(browser, f"/profile/{what}", **form)
    assert f"The new {what} is in force." in browser.get("/profile/edit").text
    if what == "key":
        assert browser.get(f"/api/numbers/{first}").status_code == 200
        return
    with app.app_context():
        assert unseal(db.session.get(User, user.id).webhook_secret) == first


def test_the_key_is_rotated_after_asking_and_other_browsers_are_logged_out(app, browser, user):
    other = app.test_client()
    post(other, "/login", api_key=user.key)
    key, form = offered(browser, "key", user.key)
    assert browser.get(f"/api/numbers/{user.key}").status_code == 200
    assert browser.get(f"/api/numbers/{key}").status_code == 401
    post(browser, "/profile/key", **form)
    assert "The new key is in force." in browser.get("/profile/edit").text
    assert other.get("/profile").headers["Location"] == "/login"
    assert browser.get(f"/api/numbers/{key}").status_code == 200
    assert browser.get(f"/api/numbers/{user.key}").status_code == 401


@pytest.mark.parametrize("what", ["key", "secret"])
def test_of_two_rotations_at_once_only_one_is_in_force(app, browser, user, what):
    """The other has seen the old one in force, and then comes too late."""
    other = logged_in(app, user.key)
    (kept, form), (lost, late) = (offered(b, what, user.key) for b in (browser, other))
    late |= {"csrf_token": token(other, "/logout")}
    seen, go_on = threading.Event(), threading.Event()

    def wait():
        if threading.current_thread() is thread and not seen.is_set():
            seen.set()
            go_on.wait(60)

    after_statement(app, "FROM users", wait)
    thread = threading.Thread(target=other.post, args=(f"/profile/{what}",), kwargs={"data": late})
    thread.start()
    try:
        assert seen.wait(60)
        post(browser, f"/profile/{what}", **form)
        assert f"The new {what} is in force." in browser.get("/profile/edit").text
    finally:
        go_on.set()
        thread.join()
    assert "in force" not in other.get("/profile/edit", follow_redirects=True).text
    if what == "key":
        statuses = [browser.get(f"/api/numbers/{key}").status_code for key in (kept, lost)]
        assert statuses == [200, 401]
        return
    with app.app_context():
        row = db.session.get(User, user.id)
        assert unseal(row.webhook_secret) == kept
        assert unseal(row.webhook_old_secret) == user.secret


@pytest.mark.parametrize("what", ["key", "secret"])
def test_only_what_was_offered_to_this_user_is_taken(app, browser, user, make_user, what):
    stranger = app.test_client()
    key = make_user(name="Ben").key
    post(stranger, "/login", api_key=key)
    other = {"key": "secret", "secret": "key"}[what]
    offers = offered(stranger, what, key)[1], offered(browser, other, user.key)[1]
    for form in ({"offer": ""}, {"offer": "é"}, *offers):
        post(browser, f"/profile/{what}", **form)
        assert "was not rotated" in browser.get("/profile/edit").text


def test_a_secret_of_another_secret_key_is_cured_by_one_rotation(app, browser, user, receiver):
    change(app, user, webhook_url=receiver.url, webhook_secret="sealed-under-another-key")
    assert "webhook secret has to be rotated" in shown_test(browser)
    post(browser, "/profile/secret", **offered(browser, "secret", user.key)[1])
    assert "<strong>Delivered</strong>" in shown_test(browser)


@on_sqlite
def test_what_was_sealed_before_is_read_and_a_secret_is_never_stored_as_it_is(
    app, browser, user, receiver
):
    """SECRET_KEY opens the secrets of every deployment that there is."""
    sealed = (
        "gAAAAABrB8augCvLIhej7NiVXhaqJQwKhEN_fnAUg9flSNkfzcqhwapo_yqXguGpgNXKNI"
        "yymwFtMx7K1aF4OeYb9XHzL03lMF-h6jwaB0yRtLGKw-PKYGXh7o3OsUtxXc7hy6lF-pp_"
    )
    change(app, user, webhook_url=receiver.url, webhook_secret=sealed)
    assert "<strong>Delivered</strong>" in shown_test(browser)
    [(headers, body)] = receiver.received
    Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").verify(body, dict(headers.items()))
    secret, form = offered(browser, "secret", user.key)
    post(browser, "/profile/secret", **form)
    with app.app_context():
        assert secret not in str(vars(db.session.get(User, user.id)))


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

    def die(tx):
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
    # What may have any three digits: times, tokens, ids
    varying = r'datetime="[^"]*"|name="csrf_token" value="[^"]*"|msg_[\w-]+|\d+ ms'
    shown = re.sub(varying, "", page)
    assert shown.count(f"+{NUMBER}") == 3 and "775" not in shown and "echo" not in shown
    post(browser, "/profile/reveal", reveal="1", page="webhooks")
    assert "echo of code 775120" in browser.get("/profile/webhooks").text
    assert f"+{NUMBER}" not in browser.get("/profile/webhooks?state=delivered").text
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


@pytest.mark.parametrize(("seconds", "tried"), [(4.9, 3), (5, 2)])
def test_what_is_not_redelivered_in_10_seconds_is_left_to_the_worker(
    app, browser, failed, receiver, flask, clock, seconds, tried
):
    def pass_time():
        clock.now += seconds

    after_statement(app, "INSERT INTO attempts", pass_time)
    post(browser, "/profile/webhooks/redeliver", id="failed")
    assert states(app) == ["delivered"] * tried + ["pending"] * (3 - tried)
    told = "3 delivered" if tried == 3 else "1 pending, 2 delivered"
    assert f"Tried again: {told}." in browser.get("/profile/webhooks").text
    flask("webhooks", "deliver", "--threads", 1)
    assert states(app) == ["delivered"] * 3


@on_sqlite
@pytest.mark.parametrize("what", ["url", "test", "redeliver", "failed"])
def test_no_connection_is_held_while_others_are_called(
    app, browser, failed, receiver, monkeypatch, what
):
    """Of the three that a process has, one is left: it goes round."""
    statuses = []

    def call():
        statuses.append(app.test_client().get("/healthz").status_code)

    def look_up(host, port, *_, **__):
        call()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    when_called(receiver, call)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    path, form = {
        "url": ("edit", {"webhook_url": "http://slow.test/hook", "number_format": "full"}),
        "test": ("test", {}),
        "redeliver": ("webhooks/redeliver", {"id": failed[0]}),
        "failed": ("webhooks/redeliver", {"id": "failed"}),
    }[what]
    with app.app_context():
        engine = db.engine
    with engine.connect(), engine.connect():
        assert engine.pool.size() - engine.pool.checkedout() == 1
        assert post(browser, f"/profile/{path}", **form).status_code == 302
    assert statuses == [200] * (3 if what == "failed" else 1)


@on_sqlite
def test_other_calls_go_on_while_receivers_hold_more_calls_than_there_are_connections(
    make_app, make_user
):
    answer, arrived = threading.Event(), threading.Semaphore(0)

    def hold(connection, stopped):
        connection.recv(65536)
        arrived.release()
        answer.wait(60)
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    app = make_app(WEBHOOK_TIMEOUT=60)
    with raw_server(hold) as url:
        users, pages = [make_user(webhook_url=url) for _ in range(5)], []
        browser, *senders = (logged_in(app, user.key) for user in users)
        threads = [
            threading.Thread(target=lambda client=client: pages.append(shown_test(client)))
            for client in senders
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                assert arrived.acquire(timeout=20)
            assert browser.get("/profile").status_code == 200
            assert pages == []
        finally:
            answer.set()
            for thread in threads:
                thread.join()
    assert ["<strong>Delivered</strong>" in page for page in pages] == [True] * 4


def test_a_page_that_is_not_there_says_so_in_our_words(client):
    page = client.get("/nothing")
    assert page.status_code == 404 and "There is no such page." in page.text


@pytest.mark.parametrize("id", ["", "x", "99", "-1", "\u0661", "9" * 18, "9" * 19, "9" * 40])
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


def test_what_was_delivered_meanwhile_is_not_sent_again(
    app, make_app, browser, failed, user, receiver
):
    """The second is redelivered through another process while the first one is being tried."""
    change(app, user, webhook_failures=0)
    other, asked, told = logged_in(make_app(), user.key), [], []

    def meanwhile():
        asked.append(request.headers["webhook-id"])
        if len(asked) == 1:
            told.append(post(other, "/profile/webhooks/redeliver", id=failed[1]).status_code)

    when_called(receiver, meanwhile)
    post(browser, "/profile/webhooks/redeliver", id="failed")
    assert told == [302] and states(app) == ["delivered"] * 3
    assert len(asked) == len(set(asked)) == 3


def test_what_is_being_tried_is_not_tried_by_hand_as_well(
    app, make_app, browser, failed, user, receiver
):
    change(app, user, webhook_failures=0)
    other = logged_in(make_app(), user.key)
    when_called(receiver, lambda: post(other, "/profile/webhooks/redeliver", id=failed[0]) and None)
    post(browser, "/profile/webhooks/redeliver", id=failed[0])
    told = f"Delivery {failed[0]}: it is being tried just now."
    assert told in other.get("/profile/webhooks").text
    assert len(receiver.received) == 1


@on_sqlite
def test_a_user_sends_one_webhook_by_hand_at_a_time(
    app, browser, user, make_user, failed, receiver
):
    """Of whatever kind; and others theirs meanwhile."""
    change(app, user, webhook_failures=0)
    mine = logged_in(app, user.key)
    other = logged_in(app, make_user(name="Ben", webhook_url=receiver.url).key)
    busy, told = "A webhook of yours is still being sent.", []

    def meanwhile():
        if told:
            return
        told.append(None)
        for form in ({"id": failed[0]}, {"id": "failed"}):
            post(mine, "/profile/webhooks/redeliver", **form)
            told.append(busy in mine.get("/profile/webhooks").text)
        told.append(busy in shown_test(mine))
        told.append("<strong>Delivered</strong>" in shown_test(other))

    when_called(receiver, meanwhile)
    assert "<strong>Delivered</strong>" in shown_test(browser)
    assert told == [None, True, True, True, True]
    assert len(receiver.received) == 2
    assert "<strong>Delivered</strong>" in shown_test(mine)


@on_sqlite
def test_what_is_sent_by_hand_needs_a_place_among_those_that_wait_for_receivers(
    app, make_app, user, receiver
):
    """Of 20 calls at once 3 may, and one of a user's: an SMS's webhook has it here."""
    change(app, user, webhook_url=receiver.url)
    app = make_app(WORKER_CONNECTIONS=20)
    browser = logged_in(app, user.key)
    with app.app_context(), share("receivers").take(user.id):
        assert "still being sent" in shown_test(browser)
    assert receiver.received == []


def test_the_log_is_paged_and_filtered_by_state(app, browser, user, make_user):
    def add(user_id, state, id):
        db.session.add(Delivery(webhook_id=id, user_id=user_id, body=b"{}", state=state))

    with app.app_context():
        for state, times in (("dead", 21), ("pending", 1), ("delivered", 2)):
            for n in range(times):
                transact(lambda tx, state=state, n=n: add(user.id, state, f"msg_{state}-{n:02}"))
        stranger = make_user(name="Ben").id
        transact(lambda tx: add(stranger, "dead", "msg_other"))

    def shown(path):
        page = browser.get(path).text
        older = re.search(r'href="([^"]+)">Older', page)
        return re.findall("msg_([^<]+)<", page), older and older[1].replace("&amp;", "&")

    dead = [f"dead-{n:02}" for n in range(20, -1, -1)]
    ids, older = shown("/profile/webhooks?state=dead")
    assert ids == dead[:20]
    assert shown(older) == (dead[20:], None)
    assert shown("/profile/webhooks?state=pending") == (["pending-00"], None)
    assert shown("/profile/webhooks?state=delivered") == (["delivered-01", "delivered-00"], None)
    ids, older = shown("/profile/webhooks")
    assert ids == ["delivered-01", "delivered-00", "pending-00", *dead[:17]]
    assert shown(older) == (dead[17:], None)
    assert shown("/profile/webhooks?state=nonsense")[0] == ids


@on_sqlite
def test_results_are_told_in_words(app, browser, user):
    told = {
        None: "not tried yet",
        "200": "answered 200",
        "301": "answered 301 (a redirect is not followed)",
        "timeout": "no answer in time",
        "dns": "the host name was not found",
        "connect": "no connection",
        "connection": "the connection broke",
        "tls": "the TLS certificate or handshake was refused",
        "forbidden": "the address may not be called; the operator can allow its network",
        "url": "the URL cannot be used",
        "disabled": "the webhook is disabled",
        "no_url": "no Webhook URL is set",
        "circuit_open": "waiting until the endpoint is tried again",
        "busy": "waiting for its turn",
        "secret_unreadable": "the webhook secret has to be rotated",
        "something new": "something new",
    }

    def add(n, result):
        row = Delivery(webhook_id=f"msg_{n}", user_id=user.id, body=b"{}", last_result=result)
        db.session.add(row)

    with app.app_context():
        for n, result in enumerate(told):
            transact(lambda tx, n=n, result=result: add(n, result))
    page = browser.get("/profile/webhooks").text
    found = re.findall(r"<strong>Test event\s+· (.+?)</strong>", page)
    assert found == list(told.values())[::-1]


def test_after_a_pause_what_waits_is_due_at_once(app, browser, failed, user, receiver):
    later = utcnow() + timedelta(minutes=10)

    def park(tx):
        for row in db.session.scalars(select(Delivery)):
            row.state, row.last_result, row.next_attempt_at = "pending", "circuit_open", utcnow()

    with app.app_context():
        transact(park)
    change(app, user, webhook_open_until=later, webhook_failures=6)
    with app.app_context():
        assert queue.due()[0] == 0
    post(browser, "/profile/webhooks/enable")
    with app.app_context():
        assert queue.due()[0] == len(failed)


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
                assert re.sub("`(.+?)`", r"<code>\1</code>", failure["message"]) in page
    assert "otp_received" in page


def test_docs_and_the_document_tell_of_the_webhook(client):
    webhook = client.get("/openapi.json").json["webhooks"]["otp_received"]["post"]
    body = webhook["requestBody"]["content"]["application/json"]["example"]
    assert body["event"] == "otp_received" and len(body["data"]) == 4
    page = client.get("/docs").text
    assert "webhook-signature" in page and "5 s, 15 s, 45 s, 2 min, 5 min, 15 min, 1 h" in page


def test_docs_need_no_login(app):
    page = app.test_client().get("/docs").text
    assert "YOUR_API_KEY" in page and "Log in" in page


def test_every_page_leads_on_to_the_others(browser):
    paths = ("", "/numbers", "/messages", "/webhooks", "/edit", "/secret", "/key")
    for path in [f"/profile{path}" for path in paths] + ["/docs", "/logout"]:
        page = browser.get(path).text
        assert 'href="/profile/webhooks"' in page and ">Log out</button>" in page, path
