"""The scripts of docs/gateways.md for SMS modems, run as smstools and gammu-smsd run them."""

import os
import re
import shutil
import subprocess

import pytest

from tests.databases import on_sqlite, skip_or_fail
from tests.fixtures import NUMBER, ROOT
from tests.peers import serving, until
from tests.records import messages

DATA = ROOT / "tests/sms/data/smstools"
SCRIPTS = re.findall(
    r"```sh\n(#!/bin/sh\n.*?)```", (ROOT / "docs/gateways.md").read_text(), re.DOTALL
)
ORDER = "Dear customer, thank you for your order of this year. " * 3


@pytest.fixture
def script(app, make_provider, tmp_path):
    """Give the script for a program, with its settings made, and run it."""
    for program in ("sh", "sed", "curl"):
        if not shutil.which(program):
            skip_or_fail(f"{program} is not installed")
    path = tmp_path / "sms-forward"
    with serving(app) as url:

        def run(program, *args, **env):
            [text] = [text for text in SCRIPTS if program in text]
            text = text.replace("https://YOUR-SERVICE/api/ingest/INGEST_KEY", url + ingest_path)
            path.write_text(text.replace("NUMBER=447400849540", f"NUMBER={NUMBER}"))
            path.chmod(0o755)
            # gammu-smsd closes all files of what it runs
            command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", path, *args]
            env = {"PATH": os.environ["PATH"]} | env
            subprocess.run(command, env=env, check=True, timeout=30)

        ingest_path = make_provider("modem")
        yield run


# Files as smstools 3.1.21 wrote them, for PDUs from a simulated modem
@on_sqlite
@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("iso", "Contraseña: 493817, 5 €", "493817"),
        ("lines", "Your code is 493817\nDo not share it.", "493817"),
        ("ucs2", "رمز 100003 🔑", "100003"),
        ("joined", f"{ORDER}Your code is 493817.", "493817"),
    ],
)
def test_smstools(app, script, tmp_path, name, text, code):
    file = tmp_path / f"GSM1.{name}"
    shutil.copy(DATA / file.name, file)
    script("smstools", "SENT", file)
    script("smstools", "RECEIVED", file)
    until(lambda: not file.exists())
    [message] = messages(app)
    assert (message.digits, message.sms_text, message.otp_code) == (NUMBER, text, code)
    shutil.copy(DATA / file.name, file)
    script("smstools", "RECEIVED", file)  # the same file again is the same SMS
    until(lambda: not file.exists())
    assert len(messages(app)) == 1


# The environments in which gammu-smsd 1.42 ran its RunOnReceive
ONE = {"SMS_MESSAGES": "1", "DECODED_PARTS": "0"}
TWO = {"SMS_MESSAGES": "2", "SMS_1_TEXT": "Your code is 493", "SMS_2_TEXT": "817"}
CASES = [
    (ONE | {"SMS_1_TEXT": "Contraseña: 493817\nsee $HOME"}, "Contraseña: 493817\nsee $HOME"),
    (ONE | {"SMS_1_TEXT": "رمز 493817 🔑"}, "رمز 493817 🔑"),
    (TWO | {"DECODED_PARTS": "1", "DECODED_1_TEXT": "My code: 493817"}, "My code: 493817"),
    (TWO | {"DECODED_PARTS": "0"}, "Your code is 493817"),
]


@on_sqlite
@pytest.mark.parametrize(("env", "text"), CASES)
def test_gammu_smsd(app, script, env, text):
    name = "IN20261126_104001_00_BANK_00.txt"
    script("gammu-smsd", name, **{"SMS_1_NUMBER": "BANK", "LC_ALL": "C.UTF-8"} | env)
    [message] = until(lambda: messages(app))
    assert (message.digits, message.sms_text, message.otp_code) == (NUMBER, text, "493817")
