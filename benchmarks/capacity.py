"""What a number and an SMS cost: CPU of the web processes and of the database, and the rate.

`python -m benchmarks.capacity [sqlite] [mariadb] [galera]`: 8 callers, 2 gunicorn processes of 4
threads (for each of two services with galera), a sandbox main server and a receiver, all on this
machine; so the rates are what is left over for the service, the CPU times are its own.
"""

import contextlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import requests

from service.sandbox import create_sandbox
from tests.peers import serving
from tests.torture import CLIENTS, DATABASES, SYSTEM_KEY, USERS, Receiver, Service, prepare

EACH = 100  # of each kind, by each caller
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids):
    """CPU time that the processes have used, their dead children included."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(field) for field in fields[11:15])
    return total / TICK


def in_threads(call, turns):
    """Seconds that `call(n, turn)` took for all turns of all callers, each in its own thread."""

    def run(n):
        for turn in turns:
            call(n, turn)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(CLIENTS)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started


def measure(kind, folder):
    """(what, per second, web CPU ms, database CPU ms) for a number and for an SMS with webhook."""
    database, receiver = DATABASES[kind](folder), Receiver()
    with (
        contextlib.ExitStack() as stack,
        serving(create_sandbox(SYSTEM_KEY)) as main_server,
        serving(receiver.app) as hook,
    ):
        stack.callback(database.stop)
        _, users, provider_key = prepare(database.urls[0], f"{hook}/hook")
        service = Service(folder, database.urls, main_server)
        stack.callback(service.stop)
        numbers, sessions = [], [requests.Session() for _ in range(CLIENTS)]

        def number(n, turn):
            path = f"/api/get-number/{users[n % USERS]['key']}?country_id={1 + turn % 24}"
            answer = sessions[n].get(service.bases[n % len(service.bases)] + path, timeout=60)
            numbers.append(answer.json()["data"]["phone_number"])

        def sms(n, turn):
            path = f"{service.bases[n % len(service.bases)]}/api/ingest/{provider_key}"
            to = numbers[(turn * CLIENTS + n) % len(numbers)]
            body = {"to": to, "text": f"Your code is {turn:06}", "id": f"{n}-{turn}"}
            sessions[n].post(path, json=body, timeout=60).raise_for_status()

        web = [pid for p in service.processes[::2] for pid in service.children(p)]
        servers = [server.process.pid for server in database.servers]
        calls = {"number": number, "SMS + webhook": sms}
        for call in calls.values():  # the first calls open connections and fill caches
            in_threads(call, range(-5, 0))
        for name, call in calls.items():
            before = cpu_seconds(web), cpu_seconds(servers)
            seconds = in_threads(call, range(EACH))
            spent = cpu_seconds(web) - before[0], cpu_seconds(servers) - before[1]
            yield name, CLIENTS * EACH / seconds, *(1000 * s / CLIENTS / EACH for s in spent)


def main():
    row = "{:10}{:15}{:>10}{:>12}{:>18}"
    print(row.format("database", "", "a second", "web CPU ms", "database CPU ms"))
    for kind in sys.argv[1:] or DATABASES:
        with tempfile.TemporaryDirectory(prefix="capacity-") as folder:
            for name, rate, web, server in measure(kind, Path(folder)):
                figures = f"{rate:.0f}", f"{web:.1f}", f"{server:.2f}"
                print(row.format(kind, name, *figures), flush=True)


if __name__ == "__main__":
    main()
