"""flask doctor --main-server, against main servers that keep to the contract or break it."""

import contextlib
import json
import re
import time
from email.utils import formatdate

import pytest

from service.sandbox import create_sandbox
from tests.conftest import SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import new_secret
from tests.peers import raw_server, serving

pytestmark = on_sqlite

INIT = {"countries": [{"id": 1, "phone_code": "1"}], "operators": []}
GOOD = {"status": "success", "data": INIT}
NO = {"status": "error", "message": "no"}


@contextlib.contextmanager
def main_server(right=(200, GOOD), wrong_init=(401, NO), wrong_number=(401, NO), ahead=0):
    """A main server that gives (status, body) to the right key, and to a wrong one; its clock is
    `ahead` of ours by so many seconds, or None for no clock. Gives (base URL, what was asked)."""
    asked = []

    def talk(connection, stopped):
        with connection.makefile("rb") as request:
            while (line := request.readline()).strip():
                if line.startswith(b"GET "):
                    path = line.split()[1].decode()
                    asked.append(path)
                    is_init, is_right = path.startswith("/api/init/"), path.endswith(SYSTEM_KEY)
            status, body = right if is_right else wrong_init if is_init else wrong_number
            body = (body if isinstance(body, str) else json.dumps(body)).encode()
            date = (
                "" if ahead is None else f"Date: {formatdate(time.time() + ahead, usegmt=True)}\r\n"
            )
            head = f"HTTP/1.1 {status} X\r\n{date}Content-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)

    with raw_server(talk) as url:
        yield url, asked


@pytest.fixture
def problems(make_app, flask):
    def run(url, **env):
        settings = {"MAIN_SERVER_URL": url, "MAIN_SERVER_WEBHOOK_SECRET": new_secret()} | env
        runner = make_app(**settings).test_cli_runner()
        result = runner.invoke(args=["doctor", "--main-server", "--json"])
        found = json.loads(result.stdout)
        assert result.exit_code == (0 if found["ok"] else 1)
        assert found["ok"] is (found["problems"] == [])
        return found["problems"]

    return run


def test_nothing_is_wrong_with_the_sandbox_or_with_a_deployment_of_our_own(
    problems, make_app, make_user
):
    with serving(create_sandbox(SYSTEM_KEY)) as sandbox:
        assert problems(sandbox) == []
        user = make_user()
        with serving(make_app(MAIN_SERVER_URL=sandbox)) as other:
            assert problems(other, SYSTEM_API_KEY=user.key) == []


def test_no_number_is_asked_for(problems):
    with main_server() as (url, asked):
        assert problems(url) == []
    init, *wrong = asked
    assert init == f"/api/init/{SYSTEM_KEY}"
    assert [path.rpartition("/")[0] for path in wrong] == ["/api/init", "/api/get-number"]
    assert all(SYSTEM_KEY not in path and "country_id" not in path for path in wrong)


def listing(countries, operators=()):
    """What lists these to the right key."""
    data = {"countries": countries, "operators": list(operators)}
    return {"right": (200, {"status": "success", "data": data})}


NO_DATA = 'init: the answer is not {"status":"success","data":{…}} in JSON'
NULLS = "; ".join(f"data.countries.{n}.id: Field may not be null." for n in range(3))
NO_CODE = [{"id": n, "phone_code": "?"} for n in range(1, 6)]
FAR = {"id": 7, "name": "x", "country_id": 2}


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"right": (401, NO)}, "init: it answers 401 (is SYSTEM_API_KEY right?)"),
        ({"right": (302, "")}, "init: it answers 302 (is MAIN_SERVER_URL right?)"),
        ({"right": (200, "<html>")}, NO_DATA),
        ({"right": (200, [])}, NO_DATA),
        ({"right": (200, {"status": "ok", "data": INIT})}, NO_DATA),
        ({"right": (200, {"status": "success", "data": []})}, NO_DATA),
        (
            {"right": (200, {"status": "success", "data": {"countries": []}})},
            "init: data.operators: Missing data for required field.",
        ),
        (listing([{"id": None}] * 5), f"init: {NULLS} (and 2 more)"),
        (listing([{"id": None}] * 3), f"init: {NULLS}"),
        (listing([]), "init: it lists no country"),
        (
            listing(NO_CODE),
            "init: countries without a phone_code, which `national` needs: 1, 2, 3, …",
        ),
        (listing(INIT["countries"] * 2), "init: countries with the same id: 1"),
        (
            listing(INIT["countries"], [FAR]),
            "init: operators of a country that is not listed: 7",
        ),
        ({"wrong_init": (200, GOOD)}, "init: it answers a wrong key with 200, and not with 401"),
        (
            {"wrong_number": (400, NO)},
            "get-number: it answers a wrong key with 400, and not with 401",
        ),
        (
            {"wrong_number": (401, "Unauthorized")},
            'get-number: its error is not {"status":"error","message":"…"} in JSON',
        ),
        (
            {"wrong_init": (401, {"status": "error"})},
            'init: its error is not {"status":"error","message":"…"} in JSON',
        ),
    ],
)
def test_what_is_not_the_contract_is_told(problems, answers, problem):
    with main_server(**answers) as (url, _):
        assert problems(url) == [problem]


@pytest.mark.parametrize(("ahead", "how"), [(150, "ahead of"), (-150, "behind")])
def test_a_clock_that_is_wrong_is_told(problems, ahead, how):
    with main_server(ahead=ahead) as (url, _):
        [found] = problems(url)
    assert re.fullmatch(
        rf"its clock is 1\d\d seconds {how} ours: at 300, its signatures are refused", found
    )


@pytest.mark.parametrize("ahead", [None, 30, -30])
def test_a_clock_that_is_nearly_right_is(problems, ahead):
    with main_server(ahead=ahead) as (url, _):
        assert problems(url) == []


def test_an_answer_that_is_cut_off_is_told(problems):
    def talk(connection, stopped):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")

    with raw_server(talk) as url:
        assert problems(url)[0] == "init: the answer breaks off, or has more than 8 MiB"


def test_one_that_does_not_answer_is_told_once(problems):
    assert problems("http://127.0.0.1:1") == ["it gives no answer: connect"]


def test_what_is_not_set_is_told(problems):
    unset = ["MAIN_SERVER_URL is not set", "SYSTEM_API_KEY is not set"]
    assert problems("", SYSTEM_API_KEY="") == unset
    with main_server() as (url, _):
        [found] = problems(url, MAIN_SERVER_WEBHOOK_SECRET="")
    assert "MAIN_SERVER_WEBHOOK_SECRET is not set" in found


def test_a_short_key_is_told(problems):
    with main_server() as (url, _):
        assert "fewer than 16 characters" in problems(url, SYSTEM_API_KEY="short")[0]
