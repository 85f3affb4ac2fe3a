"""Processes, databases, load and CPU time for the benchmarks: all on 127.0.0.1, stopped by pid."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from requests import Session

from config import Config
from service import create_app, keys
from service.database import migrating
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import PhoneNumber, Provider, User
from service.database.writing import transact
from service.keys import seal, sha256
from tests.mariadb import MariaDB, free_port
from tests.processes import children

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TICK = os.sysconf("SC_CLK_TCK")
SYSTEM_KEY = "system-key-of-the-benchmarks"
INGEST_KEY = "ing_benchmarks"
USERS = 16
# Only what a round measures: no process is replaced by a fresh one in the middle of it
GUNICORN = ("gunicorn", "--max-requests", "0")
# What answers on the port: ours, the floor of the same stack, the same job on another stack
APPS = {
    "ours": (*GUNICORN, "--bind", "127.0.0.1:PORT", "wsgi:app"),
    "floor": (*GUNICORN, "--bind", "127.0.0.1:PORT", "benchmarks.floor:app"),
    "fastapi": (
        "uvicorn", "benchmarks.fastapi_app:app", "--host", "127.0.0.1", "--port", "PORT",
        "--workers", "2",
    ),
    "no summaries": (*GUNICORN, "--bind", "127.0.0.1:PORT", "benchmarks.no_summaries:app"),
}  # fmt: skip


class Process:
    """A command of this environment, its output in `folder`; PORT in it is a free port."""

    def __init__(self, folder, command, env):
        self.port = free_port()
        self.log = folder / f"{Path(command[0]).name}-{self.port}.log"
        command = [str(part).replace("PORT", str(self.port)) for part in command]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [BIN / command[0], *command[1:]], cwd=ROOT, env=env, stdout=log, stderr=log
            )

    def wait_until_it_answers(self, seconds=30):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            time.sleep(0.05)
        raise RuntimeError(f"it does not start:\n{self.log.read_text()[-2000:]}")

    def wait_for_workers(self, count):
        while len(self.workers()) < count:
            time.sleep(0.05)
        time.sleep(1)  # until they serve

    def workers(self):
        return children(self.process)

    def cpu_seconds(self):
        """CPU time used so far, that of ended workers included."""
        total = sum(_times(self.process.pid))
        for pid in self.workers():
            total += sum(_times(pid)[:2])
        return total / TICK

    def memory_mb(self):
        """Resident memory of each worker."""
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in self.workers()]
        return [int(text.partition("VmRSS:")[2].split()[0]) / 1024 for text in texts]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            for pid in [*self.workers(), self.process.pid]:
                os.kill(pid, 9)
            self.process.wait()


def _times(pid):
    """Clock ticks: user, system, the same of ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(field) for field in fields[11:15]]


@dataclass
class Result:
    """What one round of load came to: times in ms."""

    cpu: float
    rate: float
    p50: float
    p95: float
    p99: float
    longest: float
    seconds: float


class CallsFailed(Exception):
    """Some calls were not answered 200; `statuses` are some of those."""

    def __init__(self, statuses, log):
        super().__init__(f"calls failed: {statuses}\n{log.read_text()[-2000:]}")
        self.statuses = statuses


class Bench:
    """What runs for the benchmarks, in `folder`: the peers and MariaDB until `stack` ends.

    The rest until the end of the case, whose own stack main sets.
    """

    def __init__(self, folder, stack, quick):
        self.folder, self.stack, self.quick = folder, stack, quick
        self.whole = stack
        self._next, self._files = 0, 0
        self._mariadb = None
        self.peers = self.start("python", "-m", "benchmarks.stubs", "PORT", env=self.env())
        self.peers.wait_until_it_answers()
        self.url = f"http://127.0.0.1:{self.peers.port}"

    def rounds(self, many):
        return 2 if self.quick else many

    def seconds(self, long):
        return min(0.7, long) if self.quick else long

    def env(self, **more):
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return kept | {"PYTHONPATH": str(ROOT)} | more

    def start(self, *command, env):
        process = Process(self.folder, command, env)
        self.stack.callback(process.stop)
        return process

    def service_env(self, database, path="", **more):
        """What ours and the floors are told; the main server is the stub's at `path`."""
        return self.env(
            DATABASE_URL=database, MAIN_SERVER_URL=self.url + path, SYSTEM_API_KEY=SYSTEM_KEY,
            SECRET_KEY="benchmarks", WEBHOOK_REQUIRE_HTTPS="0", INIT_CACHE_SECONDS="3600",
            WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8", WEB_CONCURRENCY="2",
            BENCH_HOOK=f"{self.url}/hook",
        ) | more  # fmt: skip

    def serve(self, name, database, path="", **more):
        server = self.start(*APPS[name], env=self.service_env(database, path, **more))
        return server.wait_until_it_answers()

    # --- databases ------------------------------------------------------------------------

    def database(self, engine, hooks=()):
        """The URL of a new database with USERS users, or one for each of the URLs `hooks`."""
        self._files += 1
        if engine == "mariadb":
            if not self._mariadb:
                (self.folder / "mariadb").mkdir()
                self._mariadb = MariaDB(self.folder / "mariadb").start()
                self.whole.callback(self._mariadb.stop)
            self._mariadb.run(f"CREATE DATABASE bench{self._files}")
            url = self._mariadb.url(f"bench{self._files}")
        else:
            url = f"sqlite:///{self.folder}/bench{self._files}.sqlite3"
        with service_app(url) as app:
            migrating.upgrade(app)
            transact(lambda tx: self._add_users(hooks or [f"{self.url}/hook"] * USERS))
        return url

    def _add_users(self, hooks):
        db.session.add(Provider(name="gw", format="generic", key_hash=sha256(INGEST_KEY)))
        secret = seal(keys.new_secret())
        for n, hook in enumerate(hooks, 1):
            user = User(id=n, name=str(n), key_hash=sha256(user_key(n)), webhook_url=hook)
            user.webhook_secret = secret
            number = PhoneNumber(user_id=n, state="assigned", digits=digits(n), country_id=2)
            number.assigned_at = utcnow()
            db.session.add(user)
            db.session.flush()
            db.session.add(number)

    def queries(self, engine):
        """How many SELECTs MariaDB has answered so far; 0 on SQLite."""
        if engine != "mariadb":
            return 0
        return int(self._mariadb.run("SHOW GLOBAL STATUS LIKE 'Com_select'")[0][1])

    def connections(self, url, process):
        """How many connections to the database at `url` each worker of `process` has open."""
        if not url.startswith("sqlite"):
            name = url.rpartition("/")[2].partition("?")[0]
            sql = f"SELECT COUNT(*) FROM information_schema.processlist WHERE db='{name}'"
            return self._mariadb.run(sql)[0][0] / len(process.workers())
        file, counts = url.removeprefix("sqlite:///"), []
        for pid in process.workers():
            links = []
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    links.append(os.readlink(entry))
            counts.append(links.count(file))
        return max(counts)

    # --- load -----------------------------------------------------------------------------

    def load(self, server, requests, callers=16, watch=lambda: None, **options):
        """One round of `requests` on `server`: a Result; `watch` is called now and then."""
        spec = {"port": server.port, "requests": requests, "callers": callers}
        spec |= {"first": self._next} | options
        before, started = server.cpu_seconds(), time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            process.stdin.write(json.dumps(spec).encode())
            process.stdin.close()
            while process.poll() is None:
                watch()
                time.sleep(0.05)
            told = json.loads(process.stdout.read())
        finally:
            process.kill()
            process.wait()
        self._next = told["next"] + callers
        if told["failed"] or not told["done"]:
            raise CallsFailed(set(told["failed"]), server.log)
        cpu = 1000 * (server.cpu_seconds() - before) / told["done"]
        times = (told[p] for p in ("p50", "p95", "p99", "longest"))
        return Result(cpu, told["rate"], *times, time.monotonic() - started)

    def alternate(self, rounds, sides, **options):
        """[{side: Result} a round]; `sides` are {name: (server, requests)}, in turn first."""
        for server, requests in sides.values():
            self.load(server, requests, seconds=0.7)  # opens connections, fills caches
        results = []
        for n in range(rounds):
            order = list(sides) if n % 2 else list(reversed(sides))
            results.append({name: self.load(*sides[name], **options) for name in order})
        return results


@contextlib.contextmanager
def service_app(url):
    """The service's own code on the database at `url`, to prepare and to look into it."""
    app = create_app(
        Config({"DATABASE_URL": url, "SECRET_KEY": "benchmarks", "LOG_LEVEL": "ERROR"})
    )
    with app.app_context():
        try:
            yield app
        finally:
            db.session.remove()
            db.engine.dispose()


def user_key(n):
    return f"usr_benchmark{n}"


def digits(n):
    return f"4474{n:08}"


def get(path, **headers):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\n{lines}\r\n"


def log_in(server, n):
    """The cookie of a browser that user `n` is logged in with."""
    url = f"http://127.0.0.1:{server.port}/login"
    with Session() as browser:
        token = re.search(r'name="csrf_token" value="([^"]+)"', browser.get(url, timeout=10).text)
        form = {"csrf_token": token[1], "api_key": user_key(n)}
        browser.post(url, data=form, timeout=10).raise_for_status()
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.cookies)


def init(n):
    return get(f"/api/init/{user_key(n)}")


def get_number(n):
    return get(f"/api/get-number/{user_key(n)}?country_id=2")


def messages(n, phone_number=None):
    query = f"limit=20&phone_number={phone_number or digits(n)}"
    return (
        f"GET /api/messages?{query} HTTP/1.1\r\nHost: bench\r\n"
        f"Authorization: Bearer {user_key(n)}\r\n\r\n"
    )


def ingest(n, text="Your code is 493817"):
    """An SMS with a code to user `n`; the braces in it are the load generator's."""
    body = json.dumps({"to": digits(n), "text": text, "id": "{n}"})
    length = len(body.replace("{n}", "0123456789"))
    return (
        f"POST /api/ingest/{INGEST_KEY} HTTP/1.1\r\nHost: bench\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
