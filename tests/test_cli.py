"""The operator's commands."""

import json
import subprocess

import pytest
from flask_migrate import check, downgrade, upgrade
from sqlalchemy import delete, inspect

from config import ConfigError
from service.gateways import FORMATS
from service.models import Delivery, Message, User, count, db, transact, utcnow
from tests.conftest import SYSTEM_KEY
from tests.databases import on_mariadb
from tests.fixtures import BIN, ROOT
from tests.peers import sandbox


def test_users_add_shows_the_key_once_and_stores_its_hash(app, client, flask):
    user = flask("users", "add", "Ann", "--daily-limit", 5, "--json")
    assert (user["id"], user["name"], user["daily_limit"]) == (1, "Ann", 5)
    assert user["webhook_secret"].startswith("whsec_")
    assert client.get(f"/api/get-number/{user['api_key']}").json["message"] == (
        "country_id is required"
    )
    with app.app_context():
        assert user["api_key"] not in str(vars(db.session.get(User, 1)))
    assert user["api_key"] not in flask("users", "list")


def test_users_set_changes_what_is_given(flask):
    flask("users", "add", "Boss", "--json")
    flask("users", "add", "Ann", "--pending", "--inactive", "--json")
    changed = flask(
        "users", "set", 2, "--active", "--approved", "--manager", 1, "--webhook-url",
        "http://127.0.0.1/x", "--number-format", "national", "--daily-limit", 3, "--json",
    )  # fmt: skip
    assert changed == {
        "id": 2, "name": "Ann", "active": True, "approved": True, "manager": 1,
        "number_format": "national", "daily_limit": 3, "webhook_url": "http://127.0.0.1/x",
    }  # fmt: skip
    again = flask("users", "set", 2, "--manager", "none", "--webhook-url", "none", "--json")
    assert again == changed | {"manager": None, "webhook_url": None}
    assert flask("users", "set", 2, "--pending", "--json")["approved"] is False
    assert [user["id"] for user in flask("users", "list", "--json")] == [1, 2]


def test_users_rotate_key_stops_the_old_one(client, flask):
    old = flask("users", "add", "Ann", "--json")["api_key"]
    new = flask("users", "rotate-key", 1, "--json")["api_key"]
    assert client.get(f"/api/get-number/{old}").status_code == 401
    assert client.get(f"/api/get-number/{new}").status_code == 400


@pytest.mark.parametrize(
    "args",
    [
        ("users", "add", "Ann", "--manager", "9"),
        ("users", "add", "Ann", "--webhook-url", "ftp://x/"),
        ("users", "add", "Ann", "--webhook-url", "http://user:pass@x/"),
        ("users", "add", "Ann", "--webhook-url", "http://x:99999/"),
        ("users", "add", "Ann", "--number-format", "e164"),
        ("users", "add", "Ann", "--daily-limit", "-1"),
        ("users", "set", "9", "--active"),
        ("users", "rotate-key", "x"),
        ("providers", "add", "gw", "--format", "pigeon"),
        ("providers", "add", "a b", "--format", "generic"),
        ("providers", "add", "gw", "--format", "main-server", "--secret", "x"),
        ("providers", "disable", "nobody"),
    ],
)
def test_a_wrong_value_is_told_and_changes_nothing(flask, args):
    assert "Error" in flask(*args, exit_code=2)
    assert flask("users", "list", "--json") == flask("providers", "list", "--json") == []


def test_webhook_url_must_be_https_unless_told_otherwise(make_app, flask):
    runner = make_app(WEBHOOK_REQUIRE_HTTPS=1).test_cli_runner()
    args = ("users", "add", "Ann", "--webhook-url")
    assert "https" in flask(*args, "http://127.0.0.1/", exit_code=2, runner=runner)
    flask(*args, "https://127.0.0.1/", runner=runner)


def test_providers_add_list_disable(client, flask):
    added = flask("providers", "add", "gw", "--format", "generic", "--json")
    assert added["ingest_path"] == f"/api/ingest/{added['ingest_key']}"
    sms = {"to": "12025550123", "text": "hi"}
    assert client.post(added["ingest_path"], json=sms).status_code == 200
    flask("providers", "add", "gw", "--format", "generic", exit_code=2)
    assert flask("providers", "disable", "gw", "--json")["active"] is False
    assert client.post(added["ingest_path"], json=sms).status_code == 401
    expected = {"id": 1, "name": "gw", "format": "generic", "number": None, "active": False}
    assert flask("providers", "list", "--json") == [expected]


@pytest.mark.parametrize("format_", FORMATS)
def test_providers_add_prints_what_to_paste(flask, format_):
    key = flask("providers", "add", "gw", "--format", format_)
    url = "https://YOUR-SERVICE/api/ingest/ing_"
    assert url in key.partition("\n\n")[2]


def test_providers_add_checks_number_and_secret(flask):
    add = ("providers", "add", "phone", "--format", "android-sms-gateway")
    assert "international form" in flask(*add, "--number", "me", exit_code=2)
    assert flask(*add, "--number", "+1 202 555 0123", "--json")["number"] == "12025550123"
    generic = ("providers", "add", "g", "--format", "generic", "--secret", "s")
    assert "generic has no signatures" in flask(*generic, exit_code=2)


def test_summary_counts_in_all_per_day_and_per_user(make_app, flask, make_user):
    user = make_user()
    with sandbox() as url:
        client = make_app(MAIN_SERVER_URL=url).test_client()
        path = f"/api/get-number/{user.key}?country_id=1"
        number = client.get(path).json["data"]["phone_number"]
        assert client.get(f"{path}&operator_id=9001").status_code == 404
        assert client.get(f"{path}&operator_id=9004").status_code == 500
    sms = {"event": "otp_received", "data": {"phone_number": number, "sms_text": "code 1234"}}
    client.post(f"/api/ingest/{SYSTEM_KEY}", json=sms)
    data = flask("summary", "--json")
    counts = {"requests": 3, "numbers": 1, "sms": 1, "otps": 1, "webhooks_delivered": 0}
    assert data["total"] == counts | {"unmatched": 0}
    silent = {"without_sms": 0, "share_without_sms": 0}
    assert data["users"] == [counts | {"user_id": user.id, "name": "Ann"} | silent]
    assert [day["numbers"] for day in data["days"]] == [1]
    assert data["states"] == {"phone_numbers assigned": 1, "phone_numbers unknown": 1}
    assert "numbers=1" in flask("summary")


def test_a_command_prints_its_answer_alone(database_url):
    """What it logs, that there is no SECRET_KEY for one, is on stderr."""
    env = {"PATH": str(BIN), "DATABASE_URL": database_url, "SECRET_KEY": ""}
    command = [BIN / "flask", "summary", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
    assert isinstance(json.loads(done.stdout), dict)
    assert b"event=no_secret_key" in done.stderr


def test_a_key_that_cannot_be_kept_stops_the_start_with_a_sentence(make_app, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("flask.Flask.auto_find_instance_path", lambda self: str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="SECRET_KEY is not set, and none can be kept"):
        make_app(SECRET_KEY="")


def test_doctor_finds_nothing_wrong_with_a_good_deployment(make_app, flask):
    with sandbox() as url:
        runner = make_app(MAIN_SERVER_URL=url).test_cli_runner()
        assert flask("doctor", "--json", runner=runner) == {"ok": True, "problems": []}


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"MAIN_SERVER_URL": ""}, "MAIN_SERVER_URL is not set"),
        ({"SYSTEM_API_KEY": ""}, "SYSTEM_API_KEY is not set"),
        ({"SYSTEM_API_KEY": "wrong"}, "the main server answered 401 (is SYSTEM_API_KEY wrong?)"),
        (
            {"SECRET_KEY": ""},
            "SECRET_KEY is not set: the one in instance/secret_key serves this machine only",
        ),
    ],
)
def test_doctor_says_what_is_misconfigured_and_exits_1(make_app, flask, env, problem):
    with sandbox() as url:
        runner = make_app(**{"MAIN_SERVER_URL": url} | env).test_cli_runner()
        found = flask("doctor", "--json", exit_code=1, runner=runner)
        assert found == {"ok": False, "problems": [problem]}


def test_doctor_on_a_paas_disk_with_an_old_schema(make_app, flask, monkeypatch, empty_database_url):
    monkeypatch.setenv("DYNO", "web.1")
    with sandbox() as url:
        app = make_app(MAIN_SERVER_URL=url, DATABASE_URL=empty_database_url)
        output = flask("doctor", exit_code=1, runner=app.test_cli_runner())
    assert "flask db upgrade" in output
    assert ("SQLite on a disk" in output) == empty_database_url.startswith("sqlite")


@on_mariadb
def test_doctor_counts_the_connections(make_app, flask, mariadb_server):
    with sandbox() as url:
        runner = make_app(MAIN_SERVER_URL=url, WEB_CONCURRENCY=4).test_cli_runner()
        assert flask("doctor", "--json", runner=runner)["ok"]
        mariadb_server.run("SET GLOBAL max_connections=10")
        try:
            output = flask("doctor", exit_code=1, runner=runner)
        finally:
            mariadb_server.run("SET GLOBAL max_connections=200")
    assert "5 processes (WEB_CONCURRENCY and a worker) of 3 connections are more than" in output


def test_migrations_go_up_and_down_and_leave_no_drift(make_app, empty_database_url):
    with make_app(DATABASE_URL=empty_database_url).app_context():
        upgrade()
        downgrade(revision="base")
        assert inspect(db.engine).get_table_names() == ["alembic_version"]
        upgrade()
        check()


def test_demo_once_makes_the_round_trip(flask):
    output = flask("demo", "--once")
    assert "4. webhook: delivered, signed, and exactly as documented" in output


def test_summary_shows_whose_numbers_never_receive_an_sms(
    flask, app, client, make_user, make_provider, assign
):
    """What shows misuse; it stays when the messages have been purged."""
    ann, ben = make_user(), make_user(name="Ben")
    for user, numbers in ((ann, ("15550001", "15550002")), (ben, ("15550003", "15550004"))):
        for number in numbers:
            assign(user.id, number)
            with app.app_context():
                transact(lambda user=user: count(user.id, utcnow(), numbers=1))
    path = make_provider("gw")
    for number in ("15550001", "15550002", "15550003"):
        client.post(path, json={"to": number, "text": "code 1234"})
    with app.app_context():
        transact(lambda: [db.session.execute(delete(m)) for m in (Delivery, Message)])
    [first, second] = flask("summary", "--sort", "share_without_sms", "--json")["users"]
    assert (first["user_id"], first["name"]) == (ben.id, "Ben")
    assert (first["without_sms"], first["share_without_sms"]) == (1, 0.5)
    assert (second["user_id"], second["without_sms"], second["share_without_sms"]) == (ann.id, 0, 0)
    users = flask("summary", "--json")["users"]
    assert [row["user_id"] for row in users] == [ann.id, ben.id]
    assert "share_without_sms=0.5" in flask("summary", "--sort", "without_sms")
    flask("summary", "--sort", "beauty", exit_code=2)
