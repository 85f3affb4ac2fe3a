"""The pages in a real Chromium: by mouse, by keyboard, on a phone, in the dark."""

import os
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Delivery, User
from service.database.writing import transact
from tests.databases import skip_or_fail
from tests.fixtures import NUMBER
from tests.peers import sandbox, serving

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

HOSTILE = "<script>document.title='owned'</script><b>code</b> 123456 \u202e " + "x" * 400
# Background services of Chromium that would call other hosts are off
FLAGS = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP, PHONE = {"width": 1100, "height": 800}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium")
    if path is None:
        skip_or_fail("chromium is not installed")
    flags = FLAGS + ["--no-sandbox"] * (os.geteuid() == 0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def site(app):
    with serving(app) as url:
        yield url


@pytest.fixture
def open_page(chromium, site):
    """Open a page of the site; every complaint of the browser (CSP, scripts) fails the test."""
    contexts, complaints = [], []

    def go(path="/", viewport=DESKTOP, scheme="light"):
        context = chromium.new_context(viewport=viewport, color_scheme=scheme, base_url=site)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.set_default_timeout(60_000)
        page.goto(path)
        return page

    go.complaints = complaints
    yield go
    for context in contexts:
        context.close()


def log_in(page, key):
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/profile")


def give_key(page, key):
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Go on").click()


@pytest.fixture
def user(app, make_user, make_provider, assign, client, receiver):
    """A user with a number, a hostile SMS, and one delivery that is dead."""
    user = make_user(name="Ann", webhook_url=receiver.url)
    assign(user.id)
    receiver.answers.append(500)
    client.post(make_provider("gw"), json={"to": NUMBER, "text": HOSTILE})
    receiver.received.clear()
    with app.app_context():
        transact(lambda tx: setattr(db.session.get(Delivery, 1), "state", "dead"))
    return user


def column(app, user, name):
    with app.app_context():
        return getattr(db.session.get(User, user.id), name)


def test_a_person_sets_the_webhook_and_sees_what_happens(app, open_page, user, receiver):
    page = open_page()
    page.get_by_label("API key").fill("usr_wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("This is not an API key in use.")).to_be_visible()
    open_page.complaints.clear()  # the console repeats the 401
    log_in(page, user.key)
    expect(page.get_by_role("heading", name="Inbox")).to_be_visible()

    page.get_by_role("link", name="Edit").click()
    field = page.get_by_label("Webhook URL")
    field.fill("http://10.1.2.3/hook")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("names a host that is not on the public internet")).to_be_visible()
    expect(field).to_have_value("http://10.1.2.3/hook")
    expect(field).to_have_attribute("aria-invalid", "true")
    open_page.complaints.clear()  # and the 400
    field.fill(f"{receiver.url}?for=ann")
    page.get_by_label("national").check()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_have_text("Saved.")
    assert column(app, user, "webhook_url") == f"{receiver.url}?for=ann"
    assert column(app, user, "number_format") == "national"

    page.get_by_role("button", name="Send test event").click()
    expect(page.get_by_role("status")).to_contain_text("Delivered: answered 204, after")
    assert [body for _, body in receiver.received] == [b'{"event":"test","data":{}}']

    page.get_by_role("link", name="Webhook log").click()
    row = page.get_by_role("listitem").filter(has_text="answered 500")
    row.locator("summary").click()
    expect(row.get_by_role("table")).to_contain_text("answered 500")
    row.get_by_role("button", name="Redeliver").click()
    expect(page.get_by_role("status")).to_have_text("Delivery 1: delivered.")
    assert b"otp_received" in receiver.received[1][1]
    assert open_page.complaints == []


def test_the_key_and_the_secret_are_rotated(app, open_page, user):
    page = open_page()
    log_in(page, user.key)
    page.get_by_role("link", name="Edit").click()
    page.get_by_role("link", name="Rotate the secret").click()
    give_key(page, user.key)
    assert page.locator("code.secret").inner_text().startswith("whsec_")
    page.get_by_role("button", name="I have copied it").click()
    expect(page.get_by_role("status")).to_have_text("The new secret is in force.")
    page.get_by_role("link", name="Rotate the API key").click()
    give_key(page, user.key)
    key = page.locator("code.secret").inner_text()
    assert key.startswith("usr_") and key not in page.url
    page.get_by_role("button", name="I have copied it").click()
    expect(page.get_by_role("status")).to_have_text("The new key is in force.")
    page.get_by_role("button", name="Log out", exact=True).click()
    page.wait_for_url("**/login")
    log_in(page, key)
    assert open_page.complaints == []


def test_hostile_sms_text_is_shown_as_text(open_page, user):
    page = open_page()
    log_in(page, user.key)
    assert "123456" not in page.content()
    page.get_by_role("button", name="Show codes and texts").click()
    expect(page.locator(".sms")).to_contain_text("<script>document.title='owned'</script><b>code")
    expect(page.locator("code.otp")).to_have_text("123456")
    assert "owned" not in page.title()
    assert "123456" not in page.url
    assert open_page.complaints == []


def test_an_sms_stays_in_its_box_and_runs_its_own_way(open_page, user, make_provider, client):
    """Arabic runs from the right; what is stacked or long scrolls within, and paints over none."""
    provider = make_provider("other")
    for text in (
        "رمز التحقق الخاص بك هو 771203",
        "a" + "\u0301" * 200 + " 778899" + "\n" * 60 + "end",
    ):
        client.post(provider, json={"to": NUMBER, "text": text})
    page = open_page()
    log_in(page, user.key)
    page.get_by_role("button", name="Show codes and texts").click()
    expect(page.get_by_role("button", name="Hide codes and texts")).to_be_visible()
    arabic = page.locator(".sms", has_text="771203")
    assert arabic.evaluate("e => getComputedStyle(e).direction") == "rtl"
    page.locator("details.text summary").first.click()
    stacked = page.locator(".sms", has_text="778899")
    assert stacked.evaluate("e => getComputedStyle(e).overflow") == "auto"
    assert stacked.evaluate("e => e.clientHeight < e.scrollHeight")
    assert stacked.evaluate("e => getComputedStyle(e).direction") == "ltr"


def test_scripts_are_refused_by_the_policy(open_page, user):
    """Even where a page should let markup through, the browser runs nothing of it."""
    page = open_page()
    page.evaluate("""() => {
        const script = document.createElement('script')
        script.textContent = "document.title = 'owned'"
        document.body.append(script)
    }""")
    assert "owned" not in page.title()
    assert any("Content Security Policy" in said for said in open_page.complaints)


def test_everything_is_done_by_keyboard_alone(app, open_page, user, receiver):
    page = open_page()

    def tab_to(name):
        """Press Tab until the focus is on what is called so, and see that it shows."""
        for _ in range(40):
            page.keyboard.press("Tab")
            focus = page.evaluate("""() => {
                const e = document.activeElement
                const name = e.innerText || e.labels?.[0]?.innerText || ''
                return [name, getComputedStyle(e).outlineStyle]
            }""")
            if focus[0].strip().startswith(name):
                assert focus[1] != "none", name
                return
        raise AssertionError(f"Tab does not reach {name}")

    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type(user.key)
    page.keyboard.press("Enter")
    page.wait_for_url("**/profile")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # "Skip to the content"
    page.wait_for_url("**#main")
    page.goto("/profile/summary")
    tab_to("As a table")
    page.keyboard.press("Enter")
    expect(page.get_by_role("table")).to_be_visible()
    page.goto("/profile")
    tab_to("Edit")
    page.keyboard.press("Enter")
    page.wait_for_url("**/edit")
    tab_to("Webhook URL")
    page.keyboard.press("Control+A")
    page.keyboard.type(f"{receiver.url}?typed")
    tab_to("full")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Saved.")
    assert column(app, user, "webhook_url") == f"{receiver.url}?typed"
    assert column(app, user, "number_format") == "national"
    tab_to("Log out")
    page.keyboard.press("Enter")
    page.wait_for_url("**/login")


PAGES = (
    "/profile", "/profile?watch=1", f"/profile?number=%2B{NUMBER}&watch=9", "/profile/get-number",
    "/profile/messages", "/profile/messages?q=nothing&state=dead", "/profile/numbers",
    "/profile/summary", "/profile/edit", "/profile/webhooks", "/profile/key", "/docs", "/logout",
)  # fmt: skip


# Colours are the same at every width
@pytest.mark.parametrize(
    ("viewport", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"]
)
def test_pages_fit_and_are_accessible(app, open_page, user, make_user, viewport, scheme):
    """No sideways scrolling, and no finding of axe-core, with all that can be opened."""
    page = open_page(viewport=viewport, scheme=scheme)
    findings = [("/login", *found) for found in look(page)]
    log_in(page, user.key)
    findings += [("hidden", *found) for found in look(page)]
    page.get_by_role("button", name="Show codes and texts").click()
    for path in PAGES:
        page.goto(path)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        findings += [(path, *found) for found in look(page)]
    with app.app_context():
        transact(lambda tx: setattr(db.session.get(User, user.id), "webhook_disabled_at", utcnow()))
    page.goto("/profile/webhooks")
    findings += [("disabled", *found) for found in look(page)]
    page.goto("/profile/edit")
    page.get_by_label("Webhook URL").fill("ftp://x")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("must begin with")).to_be_visible()
    findings += [("error", *found) for found in look(page)]
    page.get_by_role("button", name="Log out", exact=True).click()
    log_in(page, make_user(name="New").key)
    expect(page.get_by_role("link", name="Receive a code")).to_be_visible()
    findings += [("empty", *found) for found in look(page)]
    assert findings == []


def look(page):
    width = page.evaluate("document.documentElement.scrollWidth")
    if width > page.viewport_size["width"]:
        yield "too wide", width
    for finding in Axe().run(page).response["violations"]:
        yield finding["id"], finding["nodes"][0]["html"][:200]


@pytest.fixture
def sms(client, assign, user, make_provider):
    """Let an SMS come in."""
    path = make_provider("sms")
    return lambda text, to=NUMBER, **fields: client.post(
        path, json={"to": to, "text": text} | fields
    )


def codes(page):
    return page.locator("code.otp")


def test_a_watched_inbox_shows_an_sms_without_being_loaded_again(open_page, user, sms):
    """And what becomes of its webhook; codes that were hidden stay so."""
    page = open_page()
    log_in(page, user.key)
    page.get_by_role("link", name="Watch").click()
    expect(page.get_by_role("status")).to_contain_text("Watching")
    page.evaluate("window.isTheSame = true")
    page.locator("body").press("Tab")
    expect(codes(page)).to_have_count(1)
    sms("code 555001", **{"from": "AMZ"})
    expect(codes(page)).to_have_count(2)
    newest = page.get_by_role("listitem").filter(has_text="from AMZ")
    expect(newest).to_contain_text("webhook delivered", timeout=20_000)
    assert "555001" not in page.content()
    assert page.evaluate("window.isTheSame")
    page.get_by_role("button", name="Show codes and texts").click()
    expect(page.get_by_role("status")).to_contain_text("Watching")
    sms("code 555002")
    expect(codes(page)).to_have_text(["555002", "555001", "123456"])
    page.get_by_role("link", name="Stop").click()
    expect(page.get_by_role("link", name="Watch")).to_be_visible()
    assert open_page.complaints == []


def test_what_is_opened_selected_or_focused_stays_so_while_an_sms_comes(open_page, user, sms):
    page = open_page("/profile?watch=1")
    page.get_by_label("API key").fill(user.key)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Show codes and texts").click()
    page.locator("summary", has_text="owned").click()
    page.get_by_role("button", name="Copy the code").focus()
    sms("code 555001")
    expect(codes(page)).to_have_text(["555001", "123456"])
    expect(page.locator(".sms", has_text="owned")).to_be_visible()
    assert page.evaluate("document.activeElement.id").startswith("copy-code-")
    # A code is selected as a whole, and nothing takes the selection away
    codes(page).last.click()
    assert codes(page).last.evaluate("e => getComputedStyle(e).userSelect") == "all"
    page.evaluate("getSelection().selectAllChildren(document.querySelector('code.otp'))")
    with page.expect_response("**/profile/watch**"):
        sms("code 555002")
    expect(codes(page)).to_have_text(["555001", "123456"])
    assert page.evaluate("String(getSelection())") == "555001"
    page.evaluate("getSelection().removeAllRanges()")
    expect(codes(page)).to_have_text(["555002", "555001", "123456"])


def test_a_watched_inbox_ends_at_the_login_when_the_session_has_ended(open_page, user, flask):
    page = open_page()
    log_in(page, user.key)
    page.get_by_role("link", name="Watch").click()
    expect(page.get_by_role("status")).to_contain_text("Watching")
    flask("users", "rotate-key", user.id, "--json")
    page.wait_for_url("**/login", timeout=60_000)


def test_a_code_is_copied_by_one_click(open_page, user):
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    log_in(page, user.key)
    page.get_by_role("button", name="Show codes and texts").click()
    button = page.get_by_role("button", name="Copy the code")
    button.click()
    expect(button).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "123456"
    expect(button).to_have_text("Copy")
    # Where a page may not write there, what is to be copied is selected
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject() }")
    button.click()
    expect(button).to_have_text("Selected")
    assert page.evaluate("String(getSelection()).trim()") == "123456"


@pytest.mark.parametrize("has_script", [True, False])
def test_a_number_is_got_and_its_code_awaited(chromium, make_app, user, client, sms, has_script):
    """By a double click, which gets one number; with and without JavaScript."""
    with sandbox() as main, serving(make_app(MAIN_SERVER_URL=main)) as url:
        context = chromium.new_context(java_script_enabled=has_script, base_url=url)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto("/profile/get-number")
        page.get_by_label("API key").fill(user.key)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url("**/profile/get-number")
        if has_script:
            assert list(look(page)) == []
        page.get_by_label("Country").select_option("United Kingdom")
        assert page.locator("optgroup[data-country]").count() > 1
        if has_script:
            assert page.locator("optgroup[data-country]:not([hidden])").count() == 1
        page.get_by_role("button", name="Get a number").dblclick()
        page.wait_for_url("**/profile?number=**watch=**")
        number = page.locator("#number").inner_text().strip()
        expect(page.get_by_text(f"{number} is yours.")).to_be_visible()
        page.get_by_role("link", name="Find").click()
        page.get_by_role("link", name="Numbers").click()
        expect(page.locator("a.number")).to_have_count(2)  # the fixture's and this one
        page.get_by_role("link", name=number).click()
        page.get_by_role("link", name="Watch").click()
        sms("code 660011", to=number)
        expect(codes(page)).to_have_count(1, timeout=20_000)
        page.get_by_role("button", name="Show codes and texts").click()
        expect(codes(page)).to_have_text("660011")
        context.close()


def test_without_javascript_everything_is_there(chromium, site, user):
    context = chromium.new_context(java_script_enabled=False, base_url=site)
    page = context.new_page()
    page.goto("/")
    log_in(page, user.key)
    page.get_by_role("button", name="Show codes and texts").click()
    expect(codes(page)).to_have_text("123456")
    expect(page.locator("button.copy").first).to_be_hidden()
    page.get_by_role("link", name="Find").click()
    page.get_by_label("Number, sender or text").fill("owned")
    page.get_by_role("button", name="Find").click()
    expect(codes(page)).to_have_text("123456")
    page.get_by_role("link", name="Webhook log").click()
    page.locator("summary", has_text="attempt").first.click()
    expect(page.get_by_text("Sent last:")).to_be_visible()
    context.close()
