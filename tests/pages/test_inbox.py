"""The inbox, without a browser: what it shows, how it is watched, and getting a number for it."""

import re
import time
from datetime import timedelta

import pytest

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Message, NumberState, PhoneNumber
from service.database.writing import transact
from service.limits import share
from tests.conftest import MAIN, SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import NUMBER
from tests.forms import change, post
from tests.meanwhile import in_background, listening
from tests.peers import until

OTHER = "12025550124"
INIT = {
    "countries": [
        {"id": 1, "name": "Utopia", "phone_code": "1"},
        {"id": 2, "name": "Arcadia & Sons", "phone_code": "44"},
    ],
    "operators": [
        {"id": 101, "name": "Zeta", "country_id": 1},
        {"id": 102, "name": "Alpha <Mobile>", "country_id": 1},
    ],
}


@pytest.fixture
def sms(app, make_provider):
    path = make_provider("gw")

    def send(text="code 123456", to=NUMBER, **fields):
        client = app.test_client()
        return client.post(path, json={"to": to, "text": text} | fields).json["data"]["id"]

    return send


@pytest.fixture
def main_server(requests_mock):
    """The main server: tells its countries, and gives NUMBER to whoever asks."""
    init = {"status": "success", "data": INIT}
    requests_mock.get(f"{MAIN}/api/init/{SYSTEM_KEY}", json=init)
    granted = {"status": "success", "data": {"phone_number": f"+{NUMBER}"}}
    requests_mock.get(f"{MAIN}/api/get-number/{SYSTEM_KEY}", json=granted)
    return requests_mock


def show_codes(browser):
    return post(browser, "/profile/reveal", reveal="1")


# --- what it shows ------------------------------------------------------------------------


def test_the_newest_sms_comes_first_with_all_that_is_known_of_it(
    app, browser, user, assign, sms, receiver
):
    change(app, user, webhook_url=receiver.url)
    assign(user.id)
    receiver.answers.append(500)
    for n, sender in enumerate(("AMZ <b>", "+15550100")):
        sms(f"code 12345{n}", **{"from": sender})
    show_codes(browser)
    page = browser.get("/profile").text
    assert re.findall(r'<code class="otp"[^>]*>(\d+)<', page) == ["123451", "123450"]
    newest, oldest = re.findall(r"<li data-id.+?</li>", page, re.DOTALL)
    assert "from <bdi>+15550100</bdi>" in newest and ">delivered</span>" in newest
    assert "from <bdi>AMZ &lt;b&gt;</bdi>" in oldest and ">pending</span>" in oldest
    assert re.search(r'<time datetime="[^"]+" title="[-0-9]+ [:0-9]+ UTC">\d+ s ago', newest)
    assert f'href="/profile?number=%2B{NUMBER}"><bdi>+{NUMBER}</bdi></a> (country 1)' in newest


@on_sqlite
@pytest.mark.parametrize(
    ("ago", "told"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "1 h"), (86400, "1 day"), (2e5, "2 days")],
)
def test_ages_are_told_in_one_unit(app, browser, user, ago, told):
    def add(tx):
        at = utcnow() - timedelta(seconds=ago)
        row = {"user_id": user.id, "provider": "gw", "digits": NUMBER, "sms_text": "x"}
        db.session.add(Message(received_at=at, **row))

    with app.app_context():
        transact(add)
    age = re.search(r">([^<]+) ago</time>", browser.get("/profile").text)[1]
    # A slow machine may take a second in between
    assert age == told or (told.endswith(" s") and age != told and int(age.split()[0]) > ago)


@on_sqlite
def test_numbers_are_in_the_users_format_and_countries_have_names_once_they_are_known(
    app, browser, user, assign, sms, main_server
):
    assign(user.id)
    sms()
    change(app, user, number_format="national")
    # Unknown codes leave the number whole; and a page asks nobody
    assert f"<bdi>+{NUMBER}</bdi></a> (country 1)" in browser.get("/profile").text
    assert not main_server.called
    browser.get(f"/api/init/{user.key}")
    assert "<bdi>2025550123</bdi></a> (Utopia)" in browser.get("/profile").text
    change(app, user, number_format="remove_plus")
    assert f"<bdi>{NUMBER}</bdi>" in browser.get("/profile").text
    assert main_server.call_count == 1


def test_an_inbox_of_one_number(browser, user, assign, sms):
    for digits in (NUMBER, OTHER):
        assign(user.id, digits)
        sms(f"to {digits}", to=digits)
    show_codes(browser)
    page = browser.get(f"/profile?number=%2B{OTHER}").text
    assert f"to {OTHER}" in page and f"to {NUMBER}" not in page
    assert f'href="/profile/messages?q=%2B{OTHER}"' in page
    assert browser.get("/profile?number=abc").status_code == 404
    # To show the codes leads back to it
    back = post(browser, f"/profile/reveal?number=%2B{OTHER}", reveal="0", page="overview")
    assert back.headers["Location"] == f"/profile?number=%2B{OTHER}"


@on_sqlite
def test_what_comes_of_the_query_string_into_links_is_known(browser, user, assign, sms):
    assign(user.id)
    sms()
    page = browser.get("/profile?_external=1&_anchor=x&x=y&q=z").text
    assert "_external" not in page and "x=y" not in page


@on_sqlite
def test_an_empty_inbox_tells_the_three_steps(app, browser, user, assign, sms):
    def done():
        steps = (
            browser.get("/profile").text.partition('<ol class="steps">')[2].partition("</ol>")[0]
        )
        steps = re.findall(r"<li( class=.done.)?><a href=.([^\"]+).>", steps)
        return [(path, bool(done)) for done, path in steps]

    paths = "/profile/edit", "/profile/get-number", "/docs"
    assert done() == [(path, False) for path in paths]
    change(app, user, webhook_url="http://127.0.0.1:9/hook")
    with app.app_context():
        transact(lambda tx: tx.count(user.id, utcnow(), numbers=1))
    assert [is_done for _, is_done in done()] == [True, True, False]
    assign(user.id)
    sms()
    assert done() == []
    assert "No Webhook URL" not in browser.get("/profile").text
    change(app, user, webhook_url=None)
    assert "No Webhook URL" in browser.get("/profile").text


# --- watching -----------------------------------------------------------------------------


@on_sqlite
def test_watching_begins_now_says_so_and_ends_after_10_minutes(browser):
    response = browser.get(f"/profile?number=%2B{NUMBER}&watch=1")
    watch = re.fullmatch(rf"/profile\?number=%2B{NUMBER}&watch=(\d+)", response.location)[1]
    assert abs(int(watch) - time.time()) < 60
    page = browser.get(response.location).text
    assert "Watching: new SMS appear by themselves" in page and ">Stop</a>" in page
    assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in page
    assert f'data-from="/profile/watch?number=%2B{NUMBER}"' in page
    for watch, told in (
        (int(time.time()) - 590, "Watching: new SMS"),
        (int(time.time()) - 600, "Watching ended"),
        (int(time.time()) + 1000, "Watching ended"),
        (2, "Watching ended"),
    ):
        page = browser.get(f"/profile?watch={watch}").text
        assert told in page and ("http-equiv" in page) == ("ended" not in told)
    page = browser.get("/profile").text
    assert "Watching" not in page and "http-equiv" not in page


def test_the_watched_list_comes_as_soon_as_there_is_a_new_sms(app, browser, user, assign, sms):
    assign(user.id)
    known = sms("code 111111")
    show_codes(browser)
    began = time.monotonic()
    listed = browser.get("/profile/watch?after=0").text
    assert "111111" in listed and "<html" not in listed and "csrf" not in listed
    answer = in_background(lambda: browser.get(f"/profile/watch?after={known}"))
    with app.app_context():
        until(lambda: share("waiters").busy())
    sms("code 222222")
    assert re.findall(r"code-\d+\">(\d+)<", answer().text) == ["222222", "111111"]
    assert time.monotonic() - began < 20  # which is not what a call waits at most


@on_sqlite
def test_who_watches_one_number_is_told_of_that_alone(app, browser, user, assign, sms):
    for digits in (NUMBER, OTHER):
        assign(user.id, digits)
    path = f"/profile/watch?after=0&number=%2B{OTHER}"
    answer = in_background(lambda: browser.get(path))
    with app.app_context():
        until(lambda: share("waiters").busy())
    sms("first", to=NUMBER)
    sms("the second", to=OTHER)
    page = answer().text
    assert "text of 10 characters" in page and "text of 5 characters" not in page


@on_sqlite
def test_a_list_that_is_not_told_what_is_known_does_not_wait(app, browser):
    assert "No SMS yet." in browser.get("/profile/watch").text
    with app.app_context():
        assert not share("waiters").busy()


@on_sqlite
def test_what_became_of_a_webhook_that_is_shown_as_pending_comes_soon(
    app, browser, user, assign, sms, receiver
):
    """It was delivered after the list had been shown: no SMS will tell of it."""
    change(app, user, webhook_url=receiver.url)
    assign(user.id)
    after = sms()
    began = time.monotonic()
    page = browser.get(f"/profile/watch?after={after}&state=pending").text
    assert ">delivered</span>" in page and time.monotonic() - began < 20


# --- getting a number ---------------------------------------------------------------------


def get_number(browser, **form):
    page = browser.get("/profile/get-number").text
    once = re.search(r'name="once" value="([^"]+)"', page)[1]
    return post(browser, "/profile/get-number", **{"once": once, "country_id": "1"} | form)


def rows(app):
    with app.app_context():
        return db.session.query(PhoneNumber).order_by(PhoneNumber.id).all()


def test_a_number_is_got_by_the_names_of_its_country_and_operator(
    app, browser, user, main_server, sms
):
    change(app, user, daily_limit=50, number_format="national")
    page = browser.get("/profile/get-number").text
    assert "0 of 50 today" in page
    assert re.findall(r'<option value="\d+">([^<]+)<', page.partition("operator_id")[0]) == [
        "Arcadia &amp; Sons", "Utopia",
    ]  # fmt: skip
    assert re.findall(r'<option value="10\d">([^<]+)<', page) == ["Alpha &lt;Mobile&gt;", "Zeta"]
    response = get_number(browser, operator_id="102")
    assert re.fullmatch(rf"/profile\?number=%2B{NUMBER}&watch=\d+", response.location)
    assert main_server.last_request.qs["operator_id"] == ["102"]
    page = browser.get(response.location).text
    assert "2025550123 is yours." in page and "Watching" in page
    assert '<span id="number">2025550123</span>' in page and "<p>Utopia, Alpha &lt;Mobile" in page
    assert "1 of 50 today" in browser.get("/profile/get-number").text
    sms()
    assert "•••" in browser.get(response.location).text
    page = browser.get("/profile/numbers").text
    assert "Utopia, Alpha &lt;Mobile&gt;" in page


def test_a_double_click_gets_one_number(app, browser, user, main_server):
    locations = {get_number(browser, once="the same").location.partition("&")[0] for _ in "12"}
    assert locations == {f"/profile?number=%2B{NUMBER}"}
    assert len(rows(app)) == 1
    get_number(browser)
    assert len(rows(app)) == 2


@on_sqlite
@pytest.mark.parametrize(
    ("form", "answer", "status", "sentence"),
    [
        ({"country_id": ""}, None, 400, "country_id is required"),
        ({"operator_id": "x"}, None, 400, "operator_id must be an integer"),
        ({"number_format": "roman"}, None, 400, "number_format must be one of"),
        ({"operator_id": "101", "country_id": "2"}, None, 400, "Zeta is an operator of another"),
        ({}, {"status_code": 404}, 404, "No number received"),
        ({}, {"status_code": 500}, 500, "Unable to get number"),
        ({"number_format": "national", "country_id": "9"}, None, 500, "Could not fetch service"),
    ],
)
def test_an_error_is_the_documented_sentence_beside_the_form(
    browser, main_server, form, answer, status, sentence
):
    if answer:
        main_server.get(f"{MAIN}/api/get-number/{SYSTEM_KEY}", json={"status": "error"}, **answer)
    response = get_number(browser, **form)
    assert response.status_code == status
    assert f"<strong>{sentence}" in response.text and ">Log out</button>" in response.text
    assert 'name="country_id"' in response.text


@on_sqlite
def test_the_daily_limit_and_an_inactive_manager_are_told(
    app, browser, user, make_user, main_server
):
    change(app, user, daily_limit=0)
    response = get_number(browser)
    assert response.status_code == 429 and int(response.headers["Retry-After"]) > 0
    assert "Daily number limit reached" in response.text and "0 of 0 today" in response.text
    change(app, user, daily_limit=None, manager_id=make_user(name="Boss", active=False).id)
    response = get_number(browser)
    assert response.status_code == 403
    assert "Manager inactive. Contact support." in response.text
    assert rows(app) == []


@on_sqlite
def test_the_same_number_is_asked_for_again_while_it_is_unknown(app, browser, main_server):
    path = f"{MAIN}/api/get-number/{SYSTEM_KEY}"
    main_server.get(path, status_code=502)
    failed = get_number(browser)
    once = re.search(r'name="once" value="([^"]+)"', failed.text)[1]
    assert [row.state for row in rows(app)] == [NumberState.UNKNOWN]
    data = {"phone_number": f"+{NUMBER}"}
    main_server.get(path, json={"status": "success", "data": data})
    get_number(browser, once=once)
    assert [row.state for row in rows(app)] == [NumberState.ASSIGNED]


@on_sqlite
def test_without_countries_there_is_a_sentence_and_a_way_on(app, browser, user, main_server):
    main_server.get(f"{MAIN}/api/init/{SYSTEM_KEY}", status_code=500)
    page = browser.get("/profile/get-number").text
    assert "Service fetch failed" in page and ">Try again</a>" in page
    main_server.get(f"{MAIN}/api/init/{SYSTEM_KEY}", json={"status": "success", "data": INIT})
    assert "Utopia" in browser.get("/profile/get-number").text


# --- how much it asks the database --------------------------------------------------------


@on_sqlite
def test_a_page_asks_the_database_as_often_for_many_rows_as_for_few(
    app, browser, user, assign, sms, receiver, main_server
):
    change(app, user, webhook_url=receiver.url)
    main_server.post(receiver.url, real_http=True)
    receiver.answers += [204, 500, 500]
    paths = {
        "/profile": 6, "/profile/watch": 6, "/profile/messages": 9, "/profile/numbers": 5,
        "/profile/messages?q=code&state=delivered&before=1": 13, "/profile/webhooks": 15,
        "/profile/summary": 4, "/profile/get-number": 3, "/profile/edit": 2,
    }  # fmt: skip

    def counted():
        counts = {}
        for path in paths:
            asked = []

            def note(_connection, _cursor, statement, *_, asked=asked):
                asked.append(statement)

            with listening(app, before_cursor_execute=note):
                assert browser.get(path).status_code == 200, path
            counts[path] = sum(statement.startswith("SELECT") for statement in asked)
        return counts

    assign(user.id)
    sms("code 111111")
    few = counted()
    for n in range(12):
        assign(user.id, f"1202555{n:04}")
        sms(f"code 2222{n:02}", to=f"1202555{n:04}")
    assert counted() == few
    assert {path: few[path] for path in paths if few[path] > paths[path]} == {}
