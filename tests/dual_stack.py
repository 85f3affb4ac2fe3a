"""The service on its own choice of addresses, called at each family's; see test_web_worker.py.

`python -m tests.dual_stack DATABASE_URL`, inside `unshare --net`: in there is only loopback.
"""

import http.client
import socket
import sys

import requests

from tests.conftest import SECRET_KEY
from tests.fixtures import BIN
from tests.forms import token
from tests.kannel import Programs, loopback_up


def run(database_url):
    loopback_up()
    env = {"DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY, "WEB_CONCURRENCY": "1"}
    with Programs() as programs:
        programs.start(BIN / "gunicorn", "wsgi:app", ready=8000, **env)
        for host in ["127.0.0.1", "::1"][: 1 + socket.has_dualstack_ipv6()]:
            # Not with requests, which looks for IPv6 once, when it is imported
            call = http.client.HTTPConnection(host, 8000, timeout=100)
            call.request("GET", "/healthz")
            print(f"answered {call.getresponse().status} at {host}\n", end="", flush=True)
        browser = requests.Session()
        login = "http://127.0.0.1:8000/login"
        form = {"csrf_token": token(browser, login), "api_key": "wrong"}
        browser.post(login, data=form, timeout=100)


if __name__ == "__main__":
    run(sys.argv[1])
