"""What a deployment is made of: the Procfile, the image and the platforms' files, each tried."""

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import tomllib

import pytest
import requests
import yaml
from flask import Flask

from config import DATABASE_VARIABLES, Config
from service.sandbox import create_sandbox
from tests.conftest import SECRET_KEY, SYSTEM_KEY
from tests.databases import on_sqlite, skip_or_fail
from tests.fixtures import BIN, ROOT
from tests.mariadb import free_port
from tests.peers import serving, until

DEPLOY = ROOT / "deploy"
PROCFILE = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
FLY = tomllib.loads((DEPLOY / "fly.toml").read_text())
RENDER = yaml.safe_load((DEPLOY / "render.yaml").read_text())["services"]
HEROKU = json.loads((ROOT / "app.json").read_text())
# The instructions of the image itself, as (name, rest): those of the last stage
IMAGE = [
    tuple(line.split(" ", 1))
    for line in (DEPLOY / "Dockerfile").read_text().rpartition("\nFROM")[2].splitlines()[1:]
    if line and not line.startswith("#")
]


def instruction(name):
    [rest] = [rest for found, rest in IMAGE if found == name]
    return rest


def environment(database_url, port, **more):
    """What a platform gives to every process. Here they listen on 127.0.0.1 only."""
    return {
        "PATH": f"{BIN}:{os.environ['PATH']}", "PORT": str(port), "DATABASE_URL": database_url,
        "SYSTEM_API_KEY": SYSTEM_KEY, "SECRET_KEY": SECRET_KEY, "WEBHOOK_REQUIRE_HTTPS": "0",
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port}",
    } | more  # fmt: skip


@pytest.mark.server
def test_the_procfile_makes_a_deployment(start, empty_database_url, tmp_path):
    """Under honcho: the release, then a number, an SMS that the web process cannot deliver, and the
    worker, which can; then both stop in order."""
    if not (BIN / "honcho").exists():
        skip_or_fail("honcho is not installed")
    answers, port = [204, 500], free_port()
    receiver, sandbox = Flask("receiver"), create_sandbox(SYSTEM_KEY)
    receiver.add_url_rule("/hook", "hook", lambda: ("", answers.pop()), methods=["POST"])
    with serving(receiver) as hook, serving(sandbox) as main_server:
        env = environment(empty_database_url, port, MAIN_SERVER_URL=main_server)

        def run(*command):
            return subprocess.run(
                [BIN / command[0], *command[1:]], cwd=ROOT, env=env, capture_output=True, check=True
            ).stdout

        run("honcho", "start", "release")
        process, url = start("honcho", "start", "web", "worker", port=port, **env)
        sandbox.config["DELIVER_TO"] = f"{url}/api/ingest/{SYSTEM_KEY}"
        assert requests.get(f"{url}/healthz", timeout=30).status_code == 200
        user = json.loads(run("flask", "users", "add", "Ann", "--webhook-url", f"{hook}/hook",
                              "--json"))  # fmt: skip
        call = f"{url}/api/get-number/{user['api_key']}?country_id=2"
        sms = {"phone_number": requests.get(call, timeout=30).json()["data"]["phone_number"]}
        sent = requests.post(f"{main_server}/sms", json=sms, timeout=30).json()["data"]["answers"]
        assert sent[0]["data"]["webhook"] == "pending"
        until(lambda: not answers)
        process.send_signal(signal.SIGTERM)
        process.wait()
    log = (tmp_path / "log").read_text()
    assert "Shutting down: Master" in log
    assert {*re.findall(r"(\w+)\.1 stopped", log)} == {"web", "worker"}


@pytest.mark.server
def test_the_image_has_what_its_commands_need(start, empty_database_url, tmp_path):
    """Its COPY lines into a folder, and there its commands: release, web, health check."""
    app = tmp_path / "app"
    app.mkdir()
    taken = (ROOT / ".dockerignore").read_text().splitlines()
    for name, rest in IMAGE:
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert f"!{source}" in taken
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, app / source)
    port = free_port()
    env = environment(empty_database_url, port)
    health = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])

    def run(command):
        return subprocess.run(command, cwd=app, env=env, capture_output=True).returncode

    assert run(health) == 1  # nobody listens
    web = [BIN / part if n == 0 else part for n, part in enumerate(json.loads(instruction("CMD")))]
    process, _ = start("/usr/bin/env", "-C", app, *web, port=port, **env)
    assert run(health) == 1  # no schema yet
    assert run(COMPOSE["release"]["command"]) == 0
    assert run(health) == 0
    assert run(shlex.split(PROCFILE["worker"].removesuffix(" --watch"))) == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert "Using worker: WebWorker" in (tmp_path / "log").read_text()  # as gunicorn.conf.py says


# Starts a program (its arguments, and the socket's number) as systemd does, on a socket as number 3
ON_A_SOCKET = """
import os, sys
*command, socket = sys.argv[1:]
os.dup2(int(socket), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(command[0], command)
"""


def unit(name):
    """The settings of a unit of systemd, but for those that come twice."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(DEPLOY / "systemd" / name)
    return {key: value for section in parser.sections() for key, value in parser[section].items()}


def test_the_units_are_what_systemd_accepts_and_the_document_shows(tmp_path):
    shown = (ROOT / "docs/operating.md").read_text()
    assert f"```ini\n{(DEPLOY / 'systemd/otp-web.service').read_text()}```" in shown
    if not shutil.which("systemd-analyze"):
        skip_or_fail("systemd-analyze is not installed")
    units = []
    for path in (DEPLOY / "systemd").iterdir():
        units.append(tmp_path / path.name)
        text = (
            path.read_text().replace("/srv/otp/.venv/bin", str(BIN)).replace("/srv/otp", str(ROOT))
        )
        units[-1].write_text(text.replace("User=otp\n", ""))
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.server
def test_a_restart_on_a_socket_that_stays_refuses_nobody(database_url, tmp_path):
    """As systemd has one (https://www.freedesktop.org/software/systemd/man/sd_listen_fds.html)."""
    env = environment(database_url, 1) | {"LISTEN_FDS": "1"}
    del env["GUNICORN_CMD_ARGS"]
    answers, is_over = [], threading.Event()
    command = [sys.executable, "-c", ON_A_SOCKET, BIN / "gunicorn", "wsgi:app"]
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as address:
        url = f"http://127.0.0.1:{address.getsockname()[1]}/healthz"

        def start():
            return subprocess.Popen(
                [*command, str(address.fileno())], cwd=ROOT, env=env, pass_fds=[address.fileno()],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

        def call():
            while not is_over.is_set():
                try:
                    answers.append(requests.get(url, timeout=60).status_code)
                except requests.RequestException as e:
                    answers.append(type(e).__name__)

        def ten_more():
            count = len(answers)
            until(lambda: len(answers) > count + 10)

        caller = threading.Thread(target=call)
        with (tmp_path / "log").open("wb") as log:
            process = start()
            caller.start()
            try:
                for _ in range(2):
                    ten_more()
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(60) == 0
                    process = start()
                ten_more()
            finally:
                is_over.set()
                caller.join()
                process.send_signal(signal.SIGTERM)
                process.wait(60)
    assert set(answers) == {200}, (tmp_path / "log").read_text()


def test_the_image_runs_as_nobody_special():
    names = [name for name, _ in IMAGE]
    assert int(instruction("USER")) > 0
    assert names.index("USER") > max(n for n, name in enumerate(names) if name in ("RUN", "COPY"))


def test_every_platform_runs_the_procfiles_commands():
    web, worker = RENDER
    release = PROCFILE["release"]
    assert shlex.join(json.loads(instruction("CMD"))) == PROCFILE["web"]
    assert shlex.join(COMPOSE["release"]["command"]) == release and "command" not in COMPOSE["web"]
    assert shlex.join(COMPOSE["worker"]["command"]) == PROCFILE["worker"]
    assert FLY["deploy"]["release_command"] == web["preDeployCommand"] == release
    assert FLY["processes"] == {name: PROCFILE[name] for name in ("web", "worker")}
    assert worker["dockerCommand"] == PROCFILE["worker"] and "dockerCommand" not in web
    assert set(HEROKU["formation"]) == {"web", "worker"}
    assert web["healthCheckPath"] == FLY["http_service"]["checks"][0]["path"] == "/healthz"
    for name in ("web", "worker"):
        program = unit(f"otp-{name}.service")["ExecStart"]
        assert program == f"/srv/otp/.venv/bin/{PROCFILE[name]}"
    assert {service["dockerfilePath"] for service in RENDER} == {"./deploy/Dockerfile"}


def test_every_platform_waits_for_the_last_answers():
    """Longer than gunicorn does: see graceful_timeout in gunicorn.conf.py."""
    config = Config({})
    needed = 2 * config.UPSTREAM_TIMEOUT + config.WEBHOOK_TIMEOUT + 30
    periods = [COMPOSE["web"]["stop_grace_period"], FLY["kill_timeout"]]
    periods += [unit(f"otp-{name}.service")["TimeoutStopSec"] for name in ("web", "worker")]
    seconds = [int(period.removesuffix("s")) for period in periods]
    assert min(seconds + [service["maxShutdownDelaySeconds"] for service in RENDER]) >= needed


def test_what_the_platforms_set_are_settings():
    known = {*vars(Config({})), *DATABASE_VARIABLES}
    web, worker = ({entry["key"] for entry in service["envVars"]} for service in RENDER)
    for names in (COMPOSE["web"]["environment"], web, worker, HEROKU["env"], FLY["env"]):
        assert set(names) <= known
    assert {"DATABASE_URL", "MAIN_SERVER_URL", "SYSTEM_API_KEY", "SECRET_KEY"} <= web & worker


@on_sqlite
def test_a_deployment_with_nothing_set_says_so_on_its_first_page(make_app):
    def said(is_own=False, **env):
        app = make_app(**env)
        if is_own:  # as when SECRET_KEY is not set, without making one
            app.config["SECRET_KEY_IS_OWN"] = True
        page = app.test_client().get("/", follow_redirects=True).text
        return re.findall(r"not set up yet:\s+(.*?)</p>", page)

    nothing = {"SYSTEM_API_KEY": "", "MAIN_SERVER_URL": ""}
    assert said(True, **nothing) == ["SYSTEM_API_KEY, MAIN_SERVER_URL and SECRET_KEY are not set."]
    assert said(**nothing) == ["SYSTEM_API_KEY and MAIN_SERVER_URL are not set."]
    assert said(MAIN_SERVER_URL="") == ["MAIN_SERVER_URL is not set."]
    assert said() == []
