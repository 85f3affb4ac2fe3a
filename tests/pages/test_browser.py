"""The pages in a real Chromium: by mouse, by keyboard, on a phone, in the dark."""

import os
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from service.database.engine import db
from service.database.models import Delivery, User
from service.database.writing import transact
from tests.databases import skip_or_fail
from tests.fixtures import NUMBER
from tests.peers import serving

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
    expect(page.get_by_role("heading", name="Ann")).to_be_visible()

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
    row = page.get_by_role("listitem").filter(has_text="otp_received")
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
    arabic = page.locator(".sms", has_text="771203")
    assert arabic.evaluate("e => getComputedStyle(e).direction") == "rtl"
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
    "/profile", "/profile/numbers", "/profile/messages", "/profile/edit", "/profile/webhooks",
    "/profile/key", "/docs", "/logout",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pages_fit_and_are_accessible(open_page, user, viewport, scheme):
    """No sideways scrolling, and no serious finding of axe-core, with all that can be opened."""
    page = open_page(viewport=viewport, scheme=scheme)
    findings = [("/login", *found) for found in look(page)]
    log_in(page, user.key)
    page.get_by_role("button", name="Show codes and texts").click()
    for path in PAGES:
        page.goto(path)
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        findings += [(path, *found) for found in look(page)]
    page.goto("/profile/edit")
    page.get_by_label("Webhook URL").fill("ftp://x")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("must begin with")).to_be_visible()
    findings += [("error", *found) for found in look(page)]
    assert findings == []


def look(page):
    width = page.evaluate("document.documentElement.scrollWidth")
    if width > page.viewport_size["width"]:
        yield "too wide", width
    for finding in Axe().run(page).response["violations"]:
        if finding["impact"] in ("serious", "critical"):
            yield finding["id"], finding["nodes"][0]["html"][:200]


def test_without_javascript_everything_is_there(chromium, site, user):
    context = chromium.new_context(java_script_enabled=False, base_url=site)
    page = context.new_page()
    page.goto("/")
    log_in(page, user.key)
    page.get_by_role("button", name="Show codes and texts").click()
    assert "123456" in page.content()
    context.close()
