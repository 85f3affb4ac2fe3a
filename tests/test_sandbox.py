"""The sandbox main server."""

import re
import shlex

import pytest
import requests

from service.sandbox import COUNTRIES, MAGIC, create_sandbox
from tests.conftest import SYSTEM_KEY
from tests.fixtures import ROOT
from tests.mariadb import free_port
from tests.peers import sandbox, serving
from tests.records import messages


def test_it_has_a_realistic_table():
    client = create_sandbox(SYSTEM_KEY).test_client()
    data = client.get(f"/api/init/{SYSTEM_KEY}").json["data"]
    assert len(data["countries"]) >= 20
    assert len(data["operators"]) - len(MAGIC) >= 60
    for id, (_, code, *_) in COUNTRIES.items():
        answer = client.get(f"/api/get-number/{SYSTEM_KEY}?country_id={id}").json["data"]
        number = answer["phone_number"]
        assert number.startswith(f"+{code}")
        assert 10 <= len(number) - 1 <= 13
        assert answer["operator"]["country_id"] == id


@pytest.mark.parametrize("path", ["init/x", "get-number/x?country_id=1"])
def test_it_wants_its_key(path):
    assert create_sandbox(SYSTEM_KEY).test_client().get(f"/api/{path}").status_code == 401


@pytest.fixture
def world(make_app, make_user):
    """The service and the sandbox together; gives get(operator_id) and sms(number)."""

    class World:
        def get(self, operator_id):
            path = f"/api/get-number/{user.key}?country_id=2&operator_id={operator_id}"
            return app.test_client().get(path)

        def wait_for_sms(self):
            path = f"/api/messages/{user.key}?wait=25"
            return app.test_client().get(path).json["data"]["messages"]

        def sms(self, number):
            sms = {"phone_number": number, "sms_text": "Your code is 2468"}
            return requests.post(f"{self.url}/sms", json=sms, timeout=30).json()["data"]

    user, world = make_user(), World()
    sandbox_app = create_sandbox(SYSTEM_KEY, delay=0.2)
    with serving(sandbox_app) as world.url:
        app = world.app = make_app(MAIN_SERVER_URL=world.url)
        with serving(app) as url:
            sandbox_app.config["DELIVER_TO"] = f"{url}/api/ingest/{SYSTEM_KEY}"
            yield world


@pytest.mark.parametrize(
    ("operator_id", "status"), [(9001, 404), (9002, 200), (9003, 500), (9004, 500)]
)
def test_magic_operators_of_numbers(world, operator_id, status):
    assert world.get(operator_id).status_code == status


def test_magic_operator_answers_after_the_delay(make_app, make_user):
    """Which is longer than the service waits here."""
    with sandbox(delay=60) as url:
        client = make_app(MAIN_SERVER_URL=url, UPSTREAM_TIMEOUT="0.5").test_client()
        path = f"/api/get-number/{make_user().key}?country_id=2"
        assert client.get(f"{path}&operator_id=9002").status_code == 500
        assert client.get(path).status_code == 200


def test_magic_operator_sends_an_sms_twice(world):
    number = world.get(9005).json["data"]["phone_number"]
    answers = [answer["data"] for answer in world.sms(number)["answers"]]
    assert [answer["duplicate"] for answer in answers] == [False, True]
    assert answers[0]["otp_code"] == "2468"


def test_magic_operator_re_assigns_a_number_and_sends_its_sms_late(world):
    first = world.get(9006).json["data"]
    assert world.sms(first["phone_number"]) == {"sent": "later"}
    second = world.get(9006).json["data"]
    assert first["phone_number"] == second["phone_number"]
    assert len(world.wait_for_sms()) == 1
    # It was sent before the second assignment, and is the first one's
    assert [message.phone_number_id for message in messages(world.app)] == [first["id"]]


def test_an_sms_to_a_number_that_was_not_granted_is_404():
    with sandbox() as url:
        answer = requests.post(f"{url}/sms", data={"phone_number": "1"}, timeout=30)
    assert answer.status_code == 404


@pytest.mark.server
@pytest.mark.parametrize("document", ["README.md", "docs/main-server.md"])
def test_it_is_started_as_the_documents_say(start, document):
    text = (ROOT / document).read_text()
    [command] = re.findall(
        r"^ *(flask --app 'service\.sandbox:[^']+' run --port )5001$", text, re.M
    )
    port = free_port()
    _, url = start(*shlex.split(command), str(port), port=port)
    key = re.search("SYSTEM_API_KEY=([a-z-]+)", text)[1]
    assert requests.get(f"{url}/api/init/{key}", timeout=30).status_code == 200
