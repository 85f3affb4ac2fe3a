"""Whatever is wrong, a command and a server say it in one sentence, without a traceback."""

import re
import subprocess

import pytest

from tests.databases import on_sqlite
from tests.fixtures import BIN, ROOT
from tests.mariadb import free_port
from tests.peers import until

pytestmark = pytest.mark.server
AWAY = "the database does not answer"


def run(tmp_path, *command, **env):
    """(exit status, what it wrote) of a command with these settings alone."""
    env = {"PATH": str(BIN), "SECRET_KEY": "x" * 32} | env
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, env=env, check=False, timeout=100, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def sentence(told):
    """The one line that is no event of the log; it holds no password."""
    lines = [line for line in told.splitlines() if " request_id=" not in line]
    assert "Traceback" not in told and "geheim" not in told, told
    assert len(lines) == 1, told
    return lines[0]


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"PORT": "x"}, "PORT must be a whole number"),
        ({"DATABASE_URL": "mysql://u:ge@heim@h:x/n"}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgres://u:geheim@h/n"}, "DATABASE_URL must be sqlite"),
        ({"DATABASE_URL": "mysql://u:geheim:geheim@h:99999/n"}, "DATABASE_URL must be"),
        ({"DATABASE_URL": f"mysql://u:geheim@127.0.0.1:{free_port()}/n"}, AWAY),
        ({"DATABASE_URL": "mysql://u:geheim@no-such-host.invalid/n"}, AWAY),
        ({"DATABASE_URL": "sqlite:////no/such/folder/x"}, "the database's file cannot be opened"),
        ({"DATABASE_URL": "sqlite:///{folder}/empty"}, "flask db upgrade"),
        ({"DATABASE_URL": "sqlite:///{folder}/text"}, "the database's file is no sound database"),
        ({"SYSTEM_API_KEY": "geheim\x1b"}, "SYSTEM_API_KEY must hold"),
    ],
)
@pytest.mark.parametrize("command", ["users list", "webhooks deliver"])
def test_a_command_says_what_is_wrong(tmp_path, command, env, told):
    (tmp_path / "text").write_text("no database " * 1000)
    env = {name: value.format(folder=tmp_path) for name, value in env.items()}
    status, written = run(tmp_path, "flask", *command.split(), **env)
    line = sentence(written)
    assert status == 1
    assert line.startswith("Error: ") and told in line


def test_a_web_server_says_what_is_wrong_with_a_setting(tmp_path):
    status, written = run(tmp_path, "gunicorn", "wsgi:app", PORT="x")
    assert status == 1
    assert sentence(written) == "Error: PORT must be a whole number from 1 to 65535, not 'x'"


def test_help_is_help_alone(tmp_path):
    status, written = run(tmp_path, "flask", "users", "--help", SECRET_KEY="")
    assert status == 0
    assert written.startswith("Usage: ") and " request_id=" not in written


@pytest.mark.parametrize(
    ("user", "name", "told"),
    [
        ("root:geheim@", "mysql", "refuses the user"),
        ("nobody:geheim@", "mysql", "refuses the user"),
        (None, "no_such_name", "does not exist"),
    ],
)
def test_a_login_that_is_refused_is_told_as_such(tmp_path, mariadb_server, user, name, told):
    right = mariadb_server.url(name)
    url = right if user is None else re.sub(r"//[^@]*@", f"//{user}", right)
    status, written = run(tmp_path, "flask", "summary", DATABASE_URL=url)
    line = sentence(written)
    assert status == 1 and told in line, line


SHORT = {"SYSTEM_API_KEY": "short", "MAIN_SERVER_URL": "http://127.0.0.1:1"}
TOLD = 'event=misconfigured problem="SYSTEM_API_KEY has fewer than 16 characters'


@on_sqlite
def test_the_first_web_process_tells_what_is_misconfigured(serve, tmp_path):
    serve(WEB_CONCURRENCY="3", **SHORT)
    until(lambda: TOLD in (tmp_path / "log").read_text())
    assert (tmp_path / "log").read_text().count(TOLD) == 1


@on_sqlite
def test_the_worker_tells_what_is_misconfigured(tmp_path, database_url):
    env = {"PATH": str(BIN), "DATABASE_URL": database_url, "SECRET_KEY": "x" * 32} | SHORT
    command = [BIN / "flask", "webhooks", "deliver", "--watch"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        until(lambda: TOLD in (tmp_path / "log").read_text())
    finally:
        worker.terminate()
        assert worker.wait(60) == 0
