"""A real Kannel and the real service in a network namespace of their own; run by test_kannel.py.

`python -m tests.kannel FOLDER DATABASE_URL INGEST_KEY`, inside `unshare --net`: Kannel's port for
injected SMS listens on every interface, and in there is none but lo.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import requests

from tests.conftest import SECRET_KEY
from tests.fixtures import BIN, NUMBER, ROOT

SERVICE, SMSC = "http://127.0.0.1:8000", "http://127.0.0.1:13015"
UNSHARE = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--net", "--map-root-user"]
PATH = os.environ.get("PATH", "") + ":/usr/sbin"
SENT = [
    "Your code is 123456",
    "رمز التحقق الخاص بك هو 654321",
    "First line\nCode: 2222\nlast line",
    "Long: " + "0123456789 abcdef " * 12 + "code 777777",
]
WHILE_DOWN = ["Your code is 888888", "Your code is 999999"]

# What smsbox logs when the service has taken an SMS, and has no answer for its sender
SUCCESS = "No reply sent, denied."

CONFIG = """
group = core
admin-port = 13000
admin-password = x
smsbox-port = 13001
log-file = "{folder}/bearerbox.log"

group = smsc
smsc = http
smsc-id = injected
system-type = kannel
port = 13015
smsc-username = x
smsc-password = x
send-url = "http://127.0.0.1:1/"
connect-allow-ip = 127.0.0.1

group = smsbox
bearerbox-host = 127.0.0.1
sendsms-port = 13013
log-file = "{folder}/smsbox.log"
mo-recode = {mo_recode}
http-request-retry = 100
http-queue-delay = 1

group = sms-service
keyword = default
catch-all = yes
max-messages = 0
omit-empty = yes
post-url = "{url}?from=%p&to=%P&id=%I&smsc=%i"
"""


def missing():
    """Why the real Kannel cannot be run here; None when it can."""
    for program in ("bearerbox", "smsbox"):
        if not shutil.which(program, path=PATH):
            return f"{program} (Kannel) is not installed"
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        return "this machine allows no network namespace (unshare --net)"
    return None


def loopback_up():
    """`ip link set lo up`, without iproute2."""
    with socket.socket() as control:
        flags = struct.pack("16sh", b"lo", 0x1 | 0x8)  # IFF_UP | IFF_LOOPBACK
        fcntl.ioctl(control, 0x8914, flags)  # SIOCSIFFLAGS


class Programs(contextlib.ExitStack):
    """The processes, ended with the block."""

    def start(self, *command, ready, **env):
        process = subprocess.Popen(
            command, cwd=ROOT, env={"PATH": PATH} | env, start_new_session=True
        )
        self.callback(kill, process)
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", ready), timeout=5).close()
                return process
            time.sleep(0.1)
        raise AssertionError(f"{command[0]} does not answer")

    def service(self, database_url):
        command = [BIN / "gunicorn", "--bind", "127.0.0.1:8000", "wsgi:app"]
        return self.start(
            *command, ready=8000, DATABASE_URL=database_url, SECRET_KEY=SECRET_KEY,
            WEB_CONCURRENCY="1", WEBHOOK_REQUIRE_HTTPS="0",
        )  # fmt: skip


def inject(text):
    """An SMS arrives at Kannel, as from a network."""
    query = {"username": "x", "password": "x", "from": "AMZ", "to": f"+{NUMBER}"}
    query |= {"text": text.encode("utf-16-be"), "charset": "UTF-16BE", "coding": "2"}
    if text.isascii():
        query |= {"text": text, "charset": "UTF-8", "coding": "0"}
    requests.get(f"{SMSC}/", params=query, timeout=30).raise_for_status()


def run(folder, database_url, key, mo_recode):
    loopback_up()
    config = folder / "kannel.conf"
    url = f"{SERVICE}/api/ingest/{key}"
    config.write_text(CONFIG.format(folder=folder, url=url, mo_recode=mo_recode))
    with Programs() as programs:
        service = programs.service(database_url)
        programs.start(shutil.which("bearerbox", path=PATH), config, ready=13015)
        programs.start(shutil.which("smsbox", path=PATH), config, ready=13013)
        for text in SENT:
            inject(text)
        until_logged(folder, SUCCESS, len(SENT))
        kill(service)
        for text in WHILE_DOWN:
            inject(text)
        until_logged(folder, "Retrying request", 1)
        programs.service(database_url)
        until_logged(folder, SUCCESS, len(SENT) + len(WHILE_DOWN))
        time.sleep(3)  # what would be sent twice has the time to come


def kill(process):
    """kill -9 of a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def until_logged(folder, what, times):
    """Until Kannel's smsbox has logged `what` so many times."""
    log, end = folder / "smsbox.log", time.monotonic() + 60
    while log.read_text(errors="replace").count(what) < times:
        assert time.monotonic() < end, log.read_text(errors="replace")[-5000:]
        time.sleep(0.1)


if __name__ == "__main__":
    run(Path(sys.argv[1]), *sys.argv[2:])
