"""The cases in which others are slow: a main server, receivers, clients; or many."""

import json
import re
import subprocess
import sys

import requests

from benchmarks import harness

USERS = 100
OTHER = USERS + 1  # whose calls are measured
STEADY = {"calls": 200, "pause": 0.05, "settle": 6}


def crowd(bench, server, members, kind="caller", others=None, **spec):
    """Run `benchmarks.crowd` against `server`; what it measured."""
    spec = STEADY | {"port": server.port, "members": members, "kind": kind} | spec
    spec["others"] = others if others is not None else {"sms": harness.ingest(OTHER)}
    if bench.quick:
        spec |= {"calls": min(spec["calls"], 80)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.crowd"], cwd=harness.ROOT, check=True,
        input=json.dumps(spec).encode(), stdout=subprocess.PIPE,
    )  # fmt: skip
    return json.loads(done.stdout)


def serve(bench, engine, path="", hooks=None):
    hooks = hooks or [f"{bench.url}/hook"] * (USERS + 1)
    server = bench.serve("ours", bench.database(engine, hooks), path=path)
    server.wait_for_workers(2)
    return server


def numbers():
    return [harness.get_number(n) for n in range(1, USERS + 1)]


def main_server(bench, table, engine):
    """A main server that takes 2 s, and one that never answers."""
    for members, rate, at_most in ((100, 0.98, 200), (400, 0.8, 800)):
        told = crowd(bench, serve(bench, engine, "/after-2"), members, crowd=numbers())
        case = f"{members} callers of a main server that takes 2 s"
        table.row(f"{case}: rate / ideal", engine, [told["rate"] / (members / 2)], at_least=rate)
        table.row("    SMS p95 meanwhile", engine, [told["p95"]["sms"]], at_most, unit=" ms")
    others = {"sms": harness.ingest(OTHER), "healthz": harness.get("/healthz")}
    server = serve(bench, engine, "/hole")
    told = crowd(bench, server, 1000, crowd=numbers(), others=others, calls=500)
    print(f"1,000 callers of a main server that never answers: {told['statuses']}")
    table.row("    SMS p95 meanwhile", engine, [told["p95"]["sms"]], 300, unit=" ms")
    table.row("    /healthz p95", engine, [told["p95"]["healthz"]], 100, unit=" ms")
    table.row("    refusals p95", engine, [told["refused"]], 300, unit=" ms")
    table.row("    memory a process", engine, server.memory_mb(), 130, unit=" MB")


def receivers(bench, table, engine):
    """24 receivers that take 4 s, and 60 SMS at once for them."""
    hooks = [f"{bench.url}/after-4/hook"] * 24 + [f"{bench.url}/hook"] * (USERS - 23)
    server = serve(bench, engine, hooks=hooks)
    others = {"number": harness.get_number(USERS), "sms": harness.ingest(OTHER)}
    told = crowd(
        bench, server, 60, "once", others, crowd=[harness.ingest(n) for n in range(1, 25)],
        settle=0.3, calls=60,
    )  # fmt: skip
    print(f"24 receivers that take 4 s, 60 SMS at once: {told['statuses']}")
    table.row("    get-number p95", engine, [told["p95"]["number"]], 200, unit=" ms")
    table.row("    another's SMS + webhook p95", engine, [told["p95"]["sms"]], 300, unit=" ms")


def tests(bench, table, engine):
    """One user who sends 40 test events at once to a receiver that takes 4 s."""
    hooks = [f"{bench.url}/after-4/hook"] * 2 + [f"{bench.url}/hook"] * (USERS - 1)
    server = serve(bench, engine, hooks=hooks)
    base, browser = f"http://127.0.0.1:{server.port}", requests.Session()

    def token(path):
        page = browser.get(f"{base}{path}", timeout=30).text
        return re.search(r'name="csrf_token" value="([^"]+)"', page)[1]

    form = {"csrf_token": token("/login"), "api_key": harness.user_key(1)}
    browser.post(f"{base}/login", data=form, timeout=30)
    body = f"csrf_token={token('/profile/edit')}"
    cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.cookies)
    request = (
        f"POST /profile/test HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nCookie: {cookies}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )
    told = crowd(
        bench,
        server,
        40,
        "once",
        {"init": harness.init(OTHER)},
        crowd=[request],
        settle=0.3,
        calls=60,
    )
    print(f"one user, 40 test events at once: {told['statuses']}")
    table.row("    another's init p95", engine, [told["p95"]["init"]], 100, unit=" ms")


def waiters(bench, table, engine):
    """500 calls that wait for SMS, of 100 users, each of which gets some."""
    server = serve(bench, engine)
    following = [
        "GET /api/messages?wait=25&after={after} HTTP/1.1\r\nHost: bench\r\n"
        f"Authorization: Bearer {harness.user_key(n)}\r\n\r\n"
        for n in range(1, USERS + 1)
    ]
    others = {f"sms {n}": harness.ingest(n, "Your code is 49{n}") for n in range(1, USERS, 10)}
    others = {"sms": harness.ingest(OTHER)} | others
    before = bench.queries(engine)
    told = crowd(bench, server, 500, "waiter", {}, crowd=following, calls=10, pause=1, settle=0)
    # Each call has a first look of its own, with its key's
    asked = (bench.queries(engine) - before - 3 * 500) / 10
    told = crowd(bench, server, 500, "waiter", others, crowd=following, calls=20, pause=0.5)
    sms = max(ms for name, ms in told["p95"].items() if name.startswith("sms"))
    print(f"500 calls wait for SMS: {told['statuses']}")
    table.row("    SMS p95", engine, [sms], 200, unit=" ms")
    table.row(
        "    from SMS to waiter p95", engine, [told["p95"].get("waiter", 1e6)], 1000, unit=" ms"
    )
    if engine == "mariadb":
        table.row("    queries a second while nothing comes", engine, [asked], 10)


def clients(bench, table, engine):
    """1,000 clients that drip a head, and 200 that stop within a body."""
    server = serve(bench, engine)
    head = "GET /healthz HTTP/1.1\r\nX-Long: "
    half = harness.ingest(1)[:-20]
    told = crowd(bench, server, 1200, "dripping", crowd=[head] * 5 + [half])
    print("1,000 dripping heads and 200 half-sent bodies")
    table.row("    SMS p95", engine, [told["p95"]["sms"]], 200, unit=" ms")


def crowds(bench, table, engine):
    """All of them; and the memory of a process that serves nobody."""
    idle = serve(bench, engine)
    table.row("memory a process, idle", engine, idle.memory_mb(), 80, unit=" MB")
    idle.stop()
    for case in (main_server, receivers, tests, waiters, clients):
        case(bench, table, engine)
