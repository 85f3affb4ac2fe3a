"""The same in a browser; `page` is the fixture of pytest-playwright:

    SERVICE=https://... KEY=usr_... APP=https://... pytest test_sign_up_in_a_browser.py

APP is your application's address.
"""

import os

from playwright.sync_api import Page, expect
from wait_for_code import Number


def test_sign_up(page: Page):
    number = Number(country_id=2)
    page.goto(os.environ["APP"])
    page.get_by_label("Phone number").fill(number.full)
    page.get_by_role("button", name="Send me a code").click()
    page.get_by_label("Code").fill(number.next_code())
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_text("Welcome")).to_be_visible()
