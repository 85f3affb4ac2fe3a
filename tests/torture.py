"""Crash torture: real processes under load, killed at random, then every promise is checked."""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import requests
from flask import Flask, request
from sqlalchemy import func, select

from config import Config
from service import create_app, keys
from service.database import migrating
from service.database.engine import db
from service.database.models import (
    Delivery,
    Message,
    PhoneNumber,
    Provider,
    SystemSummary,
    User,
    UserSummary,
)
from service.database.writing import transact
from service.keys import new_key, seal, sha256
from service.sandbox import create_sandbox
from tests.conftest import SECRET_KEY
from tests.mariadb import MariaDB, cluster, free_port
from tests.peers import serving
from tests.processes import children

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SYSTEM_KEY = "system-key-of-the-torture"
CLIENTS = 8
USERS = 4
# Seconds within which somebody must be answered again after a kill
ANSWERS_AGAIN = 15


class Service:
    """gunicorn (2 workers) and a delivery worker for each of `urls`, restarted when killed."""

    def __init__(self, folder, urls, main_server):
        self.env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {
            "MAIN_SERVER_URL": main_server, "SYSTEM_API_KEY": SYSTEM_KEY, "SECRET_KEY": SECRET_KEY,
            "WEBHOOK_REQUIRE_HTTPS": "0", "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
            "WEBHOOK_TIMEOUT": "2", "UPSTREAM_TIMEOUT": "1", "WEB_CONCURRENCY": "2",
        }  # fmt: skip
        self.log = (folder / "service.log").open("ab")
        self.ports = [free_port() for _ in urls]
        self.commands = []
        for url, port in zip(urls, self.ports, strict=True):
            web = ["gunicorn", "--bind", f"127.0.0.1:{port}", "wsgi:app"]
            self.commands += [(url, web), (url, ["flask", "webhooks", "deliver", "--watch"])]
        self.processes = [self.start(*command) for command in self.commands]
        self.bases = [f"http://127.0.0.1:{port}" for port in self.ports]
        for base in self.bases:
            until(lambda base=base: answers(base), "the service does not start")

    def start(self, url, command):
        return subprocess.Popen(
            [BIN / command[0], *command[1:]], cwd=ROOT, env=self.env | {"DATABASE_URL": url},
            stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def kill_web_worker(self):
        """kill -9 of one of gunicorn's processes; gunicorn starts another."""
        workers = children(random.choice(self.processes[::2]))
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(random.choice(workers), signal.SIGKILL)

    def kill_all_web(self):
        """kill -9 of gunicorn and all its processes, as when a machine dies."""
        self._restart(2 * random.randrange(len(self.ports)))

    def kill_delivery_worker(self):
        self._restart(2 * random.randrange(len(self.ports)) + 1)

    def _restart(self, n):
        process = self.processes[n]
        for pid in [process.pid, *children(process)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        self.processes[n] = self.start(*self.commands[n])

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
        self.log.close()


def answers(base):
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{base}/api/none", timeout=5).status_code == 404


def until(condition, failure, seconds=120):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, failure
        time.sleep(0.1)
    return value


class Receiver:
    """The users' webhook: keeps every (webhook-id, body); now and then it fails on purpose."""

    def __init__(self):
        self.received = Counter()
        self.app = Flask("receiver")
        self.app.add_url_rule("/hook", "hook", self.hook, methods=["POST"])

    def hook(self):
        if random.random() < 0.02:
            return "", 503
        self.received[request.headers["webhook-id"], request.get_data()] += 1
        return "", 204


class Client(threading.Thread):
    """One caller: number, SMS, number, SMS …; repeats what failed, with the same id."""

    def __init__(self, n, bases, user, provider_key, stop):
        super().__init__()
        self.n, self.bases, self.user, self.stop = n, bases, user, stop
        self.ingest = f"/api/ingest/{provider_key}"
        self.numbers, self.sms = [], []
        self.statuses, self.answered_at = Counter(), []

    def run(self):
        for turn in range(10**6):
            if self.stop.is_set():
                return
            country = 1 + (self.n + turn) % 24
            keyed = {"headers": {"Idempotency-Key": f"{self.n}-{turn}"}} if turn % 2 else {}
            path = f"/api/get-number/{self.user['key']}?country_id={country}"
            number = self.call("get", path, again=bool(keyed), **keyed)
            if number is None:
                continue
            self.numbers.append((number["id"], self.user["id"], number["phone_number"]))
            sms_id, code = f"sms-{self.n}-{turn}", f"{random.randrange(10**6):06}"
            body = {"to": number["phone_number"], "text": f"Your code is {code}", "id": sms_id}
            if stored := self.call("post", self.ingest, again=True, json=body):
                self.sms.append((stored["id"], body, code))

    def call(self, method, path, again, **kwargs):
        """`data` of a 200; what fails is repeated, on another server, if `again`."""
        while not self.stop.is_set():
            base = random.choice(self.bases)
            try:
                answer = requests.request(method, base + path, timeout=60, **kwargs)
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    self.answered_at.append((base, time.monotonic()))
                    return answer.json()["data"]
                # Or 503, while the database stands still and all connections wait for it
                assert answer.status_code in (500, 503), answer.text
            except requests.RequestException:
                self.statuses["no answer"] += 1
            if not again:
                return None
            time.sleep(0.1)
        return None


class Database:
    """Where it runs: `urls` for the service, its `servers`, and how to kill one (None: not)."""

    def __init__(self, urls, servers=(), kill=None):
        self.urls, self.servers, self.kill = urls, servers, kill

    def stop(self):
        for server in self.servers:
            server.stop()


def sqlite(folder):
    return Database([f"sqlite:///{folder / 'torture.sqlite3'}"])


def mariadb(folder):
    server = MariaDB(folder).start()
    server.run("CREATE DATABASE torture")

    def kill():
        server.kill()
        server.start()

    return Database([server.url("torture")], [server], kill)


def galera(folder):
    """Three nodes; each of two services has another one first. One node at a time is killed."""
    nodes = cluster(folder, 3)
    nodes[0].run("CREATE DATABASE torture")
    hosts = [f"127.0.0.1:{node.port}" for node in nodes]

    def kill():
        node = random.choice(nodes)
        node.kill()
        time.sleep(random.uniform(5, 8))  # the others go on without it for a while
        node.start()
        node.wait_until_synced()

    orders = (hosts, hosts[1:] + hosts[:1])
    urls = [f"mysql://root@{','.join(order)}/torture" for order in orders]
    return Database(urls, nodes, kill)


DATABASES = {"sqlite": sqlite, "mariadb": mariadb, "galera": galera}


def prepare(url, hook):
    """The schema, the users and a provider; gives the app, the users and the provider's key."""
    app = create_app(Config({"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY, "LOG_LEVEL": "ERROR"}))
    users, provider_key = [], new_key("ing")
    with app.app_context():
        migrating.upgrade(app)
        for n in range(USERS):
            key = new_key("usr")
            user = User(
                name=f"user {n}", key_hash=sha256(key), webhook_url=hook,
                webhook_secret=seal(keys.new_secret()),
            )  # fmt: skip
            transact(lambda tx, user=user: db.session.add(user))
            users.append({"id": user.id, "key": key})
        provider = Provider(name="gw", format="generic", key_hash=sha256(provider_key))
        transact(lambda tx: db.session.add(provider))
    return app, users, provider_key


def torture(kind, kills, folder):
    """Run the load until `kills` processes were killed; the figures. Raises AssertionError."""
    database, receiver, stop = DATABASES[kind](folder), Receiver(), threading.Event()
    with (
        contextlib.ExitStack() as stack,
        serving(create_sandbox(SYSTEM_KEY)) as main_server,
        serving(receiver.app) as hook,
    ):
        stack.callback(database.stop)
        app, users, provider_key = prepare(database.urls[0], f"{hook}/hook")
        service = Service(folder, database.urls, main_server)
        stack.callback(service.stop)
        clients = [
            Client(n, service.bases, users[n % USERS], provider_key, stop) for n in range(CLIENTS)
        ]
        started = time.monotonic()
        for client in clients:
            client.start()
        try:
            killed = kill_at_random(service, database, kills, clients)
        finally:
            stop.set()
            for client in clients:
                client.join()
        seconds = time.monotonic() - started
        pause = max(longest_pause(clients, base) for base in service.bases)
        with app.app_context():
            settle()
            found = check(clients, receiver)
            db.session.remove()  # or its connection is not among those that are closed
            db.engine.dispose()
    statuses = sum((client.statuses for client in clients), Counter())
    figures = {"database": kind, "kills": dict(killed), "seconds": round(seconds)}
    figures |= {"answers": {str(k): n for k, n in statuses.items()}, "longest_pause": pause}
    assert pause < ANSWERS_AGAIN, figures
    return figures | found


def kill_at_random(service, database, kills, clients):
    """Kill one process after another, each time when the clients have got some answers."""
    ways = [service.kill_web_worker] * 4 + [service.kill_delivery_worker] * 2
    ways += [service.kill_all_web]
    killed = Counter()
    while sum(killed.values()) < kills:
        way = random.choice(ways)
        if database.kill and sum(killed.values()) % 5 == 4:
            way = database.kill
        name = "kill_database" if way is database.kill else way.__name__
        way()
        killed[name] += 1
        before = sum(len(client.answered_at) for client in clients)
        until(
            lambda before=before: sum(len(c.answered_at) for c in clients) > before + CLIENTS,
            f"no answers after {name}",
        )
        time.sleep(random.uniform(0, 0.3))
    return killed


def longest_pause(clients, base):
    """Seconds between one 200 of that server and the next, whoever got it."""
    times = sorted(at for client in clients for by, at in client.answered_at if by == base)
    return round(max(b - a for a, b in itertools.pairwise(times)), 2)


def settle():
    """Wait until the workers have ended every delivery."""

    def all_ended():
        open_ = db.session.scalar(
            select(func.count()).select_from(Delivery).where(Delivery.state == "pending")
        )
        db.session.commit()
        return not open_

    until(all_ended, "deliveries stay pending", 240)


def check(clients, receiver):
    """Every promise, against the rows; gives how many of each there were."""
    rows = {row.id: row for row in db.session.scalars(select(PhoneNumber))}
    numbers = [number for client in clients for number in client.numbers]
    for id, user_id, phone_number in numbers:
        row = rows[id]
        assert (row.user_id, f"+{row.digits}", row.state) == (user_id, phone_number, "assigned")
    assert len({id for id, *_ in numbers}) == len(numbers), "one number answered to two calls"

    messages = {row.id: row for row in db.session.scalars(select(Message))}
    texts = Counter((row.digits, row.sms_text) for row in messages.values())
    deliveries = {row.message_id: row for row in db.session.scalars(select(Delivery))}
    sms = [sent for client in clients for sent in client.sms]
    for id, body, code in sms:
        row = messages[id]
        assert (f"+{row.digits}", row.sms_text, row.otp_code) == (body["to"], body["text"], code)
        assert texts[row.digits, row.sms_text] == 1, "an SMS is there twice"
        delivery = deliveries[id]
        assert delivery.state == "delivered", (delivery.state, delivery.last_result)
        assert receiver.received[delivery.webhook_id, delivery.body] >= 1, "a webhook is lost"
    assert len({id for id, *_ in sms}) == len(sms)

    assigned = Counter(row.user_id for row in rows.values() if row.state == "assigned")
    received = Counter(row.user_id for row in messages.values())
    coded = Counter(row.user_id for row in messages.values() if row.otp_code)
    delivered = Counter(row.user_id for row in deliveries.values() if row.state == "delivered")
    counted = {"numbers": assigned, "sms": received, "otps": coded, "webhooks_delivered": delivered}
    for name, truth in counted.items():
        for model in (UserSummary, SystemSummary):
            total = db.session.scalar(select(func.sum(getattr(model, name))))
            assert total == truth.total(), (model.__tablename__, name)
        by_user = select(UserSummary.user_id, func.sum(getattr(UserSummary, name)))
        sums = dict(db.session.execute(by_user.group_by(UserSummary.user_id)).all())
        assert {k: n for k, n in sums.items() if n} == truth, name
    return {
        "acknowledged": {"numbers": len(numbers), "sms": len(sms)},
        "webhooks": {"ids": len(receiver.received), "received": receiver.received.total()},
        "states": dict(Counter(row.state for row in rows.values())),
        "lost": 0,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("databases", nargs="+", choices=DATABASES)
    parser.add_argument("--kills", type=int, default=100)
    options = parser.parse_args()
    for kind in options.databases:
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            print(json.dumps(torture(kind, options.kills, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
