"""What is common to the lists: cut ones say so, and a reader that goes away ends them quietly."""

import os
import subprocess
from datetime import timedelta

import pytest

from service.database.columns import utcnow
from tests.databases import on_sqlite
from tests.fixtures import BIN, ROOT


@on_sqlite
@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize("name", ["numbers list", "messages list", "webhooks list", "audit"])
def test_a_list_that_was_cut_says_so(
    app, flask, client, make_user, make_provider, assign, receiver, name, form
):
    user = make_user(webhook_url=receiver.url)
    path = make_provider()
    for n in range(3):
        digits = f"1202555012{n}"
        assign(user.id, digits)
        client.post(path, json={"to": digits, "text": "code 123456"})
        flask("users", "rotate-key", user.id)
    runner = app.test_cli_runner()
    count = len(flask(*name.split(), "--json"))
    told = {
        limit: runner.invoke(args=[*name.split(), "--limit", str(limit), *form]).stderr
        for limit in (count - 1, count)
    }
    assert told == {count - 1: f"these are the newest {count - 1}; there are more: --limit N\n",
                    count: ""}  # fmt: skip


@pytest.mark.server
@pytest.mark.parametrize("command", ["users list", "users list --json", "summary --csv"])
def test_a_reader_that_goes_away_ends_a_command_quietly(database_url, command):
    """As `flask … | head` does."""
    env = {"PATH": str(BIN), "DATABASE_URL": database_url, "SECRET_KEY": "x" * 32}
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [BIN / "flask", *command.split()], cwd=ROOT, env=env, check=False, stdout=writes,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, b"")


@on_sqlite
def test_nobody_has_held_a_number_in_the_future(flask):
    later = f"{utcnow() + timedelta(minutes=2):%Y-%m-%dT%H:%MZ}"
    told = flask("numbers", "holder", "+12025550123", "--at", later, exit_code=2)
    assert f"{later} is in the future" in told


@on_sqlite
def test_csv_and_json_are_two_formats(app):
    result = app.test_cli_runner().invoke(args=["summary", "--csv", "--json"])
    assert result.exit_code == 2 and "give --csv or --json" in result.output


@on_sqlite
def test_who_is_removed_is_named_in_the_question(app, make_user):
    make_user(name="Ann")
    result = app.test_cli_runner().invoke(args=["users", "remove", "1"], input="n\n")
    assert "Remove user 1 (Ann), with 0 attempts" in result.output
