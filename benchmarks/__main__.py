"""Measures the service against the floor of its stack, as ratios: `python -m benchmarks`.

`python -m benchmarks [CASE …] [--quick]`; ends with 1 when a goal is missed. What is compared runs
in turn, in short rounds, in one run: the times of a machine vary, the ratios hardly.
"""

import argparse
import contextlib
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from sqlalchemy import func, select, update

from benchmarks import harness, records, slow_peers
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Attempt, Delivery, User
from service.database.writing import transact
from tests import mariadb

ENGINES = ("sqlite", "mariadb")
EVERYBODY = range(1, harness.USERS + 1)
PAGES = (
    "", "/summary", "/numbers", "/messages", "/messages?text=4475", "/webhooks",
    "/webhooks?state=pending",
)  # fmt: skip
ROW = "{:50} {:8} {:>8} {:>15}  {:>8}  {}"


class Table:
    """The rows as they come, and whether one missed its goal."""

    def __init__(self):
        self.missed = 0
        print(ROW.format("case", "database", "median", "min-max", "goal", ""))

    def row(self, case, engine, values, at_most=None, at_least=None, unit=""):
        """A row: the median of `values` against the goal."""
        median = statistics.median(values)
        good = median <= at_most if at_least is None else median >= at_least
        goal = f"≤ {at_most:g}" if at_least is None else f"≥ {at_least:g}"
        self.missed += not good
        spread = f"{min(values):.2f}-{max(values):.2f}"
        verdict = "ok" if good else "MISSED"
        figure = f"{median:.2f}"
        print(ROW.format(case, engine, figure, spread, goal + unit, verdict), flush=True)

    def beside(self, results):
        """The median figures of each side of [{side: Result}], below its row."""
        for side in sorted(results[0], key=lambda side: side != "ours"):
            figures = [
                statistics.median(getattr(result[side], name) for result in results)
                for name in ("cpu", "rate", "p50", "p95", "p99", "longest")
            ]
            line = (
                "{:6.2f} ms CPU {:5.0f}/s   p50 {:4.0f}  p95 {:4.0f}  p99 {:4.0f}  max {:4.0f} ms"
            )
            print(f"    {side:14}{line.format(*figures)}", flush=True)

    def failed(self, case, engine, error):
        self.missed += 1
        print(ROW.format(case, engine, "-", "", "", f"MISSED: {error}"), flush=True)

    def skipped(self, case, engine, reason):
        print(ROW.format(case, engine, "-", "", "", f"skipped: {reason}"), flush=True)


def ratios(results, name, side, to):
    return [getattr(r[side], name) / getattr(r[to], name) for r in results]


# --- the cases ----------------------------------------------------------------------------


def against_the_floor(case, request, at_most):
    """A case that compares one call's CPU time with the floor's and with FastAPI's."""

    def run(bench, table, engine):
        requests = [request(n) for n in EVERYBODY]
        sides = {
            name: (bench.serve(name, bench.database(engine)), requests)
            for name in ("ours", "floor", "fastapi")
        }
        results = bench.alternate(bench.rounds(5), sides, seconds=bench.seconds(2))
        cpu = f"{case}: CPU a request"
        table.row(f"{cpu} / the floor's", engine, ratios(results, "cpu", "ours", "floor"), at_most)
        table.row(f"{cpu} / FastAPI's", engine, ratios(results, "cpu", "ours", "fastapi"), 0.35)
        table.beside(results)

    return run


def sixteen(bench, table, engine):
    """SMS of 16 callers, who wait for each other's writes, against one alone."""
    server = bench.serve("ours", bench.database(engine))
    requests = [harness.ingest(n) for n in EVERYBODY]
    bench.load(server, requests, callers=1, seconds=1)
    results = [
        {
            "one caller": bench.load(server, requests, callers=1, seconds=bench.seconds(2)),
            "16 callers": bench.load(server, requests, seconds=bench.seconds(4)),
        }
        for _ in range(bench.rounds(5))
    ]
    shares = [result["16 callers"].p95 / result["one caller"].p50 for result in results]
    table.row("16 callers of SMS: p95 / p50 of one", engine, shares, 4)
    table.beside(results)


def slow(bench, table, engine):
    """100 callers of a main server that takes 300 ms, on 2 processes."""
    url = bench.database(engine)
    server = bench.serve("ours", url, path="/slow")
    requests, most = [harness.get_number(n) for n in EVERYBODY], 0

    def watch():
        nonlocal most
        most = max(most, bench.connections(url, server))

    bench.load(server, requests, callers=100, seconds=1)
    options = {"callers": 100, "seconds": bench.seconds(6), "watch": watch}
    results = [{"ours": bench.load(server, requests, **options)} for _ in range(bench.rounds(3))]
    case = "main server takes 300 ms"
    shares = [r["ours"].rate / (100 / 0.3) for r in results]
    table.row(f"{case}: rate / the ideal 333/s", engine, shares, at_least=0.9)
    table.row(f"{case}: p99", engine, [r["ours"].p99 for r in results], 450, unit=" ms")
    table.row(f"{case}: connections a process", engine, [most], 5)
    table.beside(results)


def holes(bench, table, engine):
    """SMS for 10 users, whose receivers are well; and for 10 others, one of them a black hole."""
    rounds = 1 if bench.quick else 3
    # A round with a hole has users of its own, whose circuits are closed
    hooks = [f"{bench.url}/hook"] * 10
    hooks += [f"{bench.url}/{'hook' if n % 10 else 'hole'}" for n in range(10 * rounds)]
    server = bench.serve("ours", bench.database(engine, hooks))
    # The first user's are not counted in either: what is asked is what becomes of the others
    sent = [[harness.ingest(10 * r + n) for n in range(1, 11)] for r in range(rounds + 1)]
    options = {"callers": 32, "aside": 1}
    bench.load(server, sent[0], **options, seconds=1)
    results = [
        {
            "all well": bench.load(server, sent[0], **options, seconds=bench.seconds(5)),
            "one hole": bench.load(server, sent[r], **options, seconds=7),
        }
        for r in range(1, rounds + 1)
    ]
    case = "1 of 10 receivers is a black hole: others'"
    for name, goal in (("p95", {"at_most": 1.2}), ("rate", {"at_least": 0.8})):
        values = ratios(results, name, "one hole", "all well")
        table.row(f"{case} {name}", engine, values, **goal)
    table.beside(results)


def million(bench, table, engine):
    """A million numbers and a million SMS stored, against none."""
    empty, full = bench.database(engine), bench.database(engine)
    urls = {"full": full, "empty": empty}
    count = 100_000 if bench.quick else 1_000_000
    with harness.service_app(full):
        records.add(count)
    servers = {name: bench.serve("ours", url) for name, url in urls.items()}
    calls = (harness.get_number, harness.ingest, harness.messages)
    for call in calls:
        case = f"{count:,} numbers and SMS: p50 of {call.__name__}"
        requests = [call(n) for n in EVERYBODY]
        sides = {name: (server, requests) for name, server in servers.items()}
        try:
            results = bench.alternate(bench.rounds(7), sides, callers=1, seconds=bench.seconds(1))
        except harness.CallsFailed as e:
            if call is not harness.messages or e.statuses != {404}:
                raise
            table.skipped(case, engine, "GET /api/messages answers 404")
            continue
        table.row(case, engine, ratios(results, "p50", "full", "empty"), 1.15)
        table.beside(results)

    took = {name: [] for name in urls}
    for _ in range(bench.rounds(7)):
        for name, url in urls.items():
            with harness.service_app(url) as app:
                took[name].append(median_of_command(app, "numbers", "holder", harness.digits(1)))
    shares = [full / empty for full, empty in zip(took["full"], took["empty"], strict=True)]
    table.row(f"{count:,} numbers and SMS: flask numbers holder", engine, shares, 1.15)
    print(f"    full {statistics.median(took['full']):.1f} ms")


def median_of_command(app, *args):
    """The median time of a command, without the start of its process (ms)."""
    runner, times = app.test_cli_runner(), []
    for _ in range(10):
        started = time.perf_counter()
        result = runner.invoke(args=args)
        assert result.exit_code == 0, result.output
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def pages(bench, table, engine):
    """The pages of a user with a million numbers and SMS; in the browser's own connection."""
    url, count = bench.database(engine), 100_000 if bench.quick else 1_000_000
    with harness.service_app(url):
        records.add(count, deliveries=True, users=1)
    server = bench.serve("ours", url)
    cookie = harness.log_in(server, 1)
    for path in PAGES:
        request = harness.get(f"/profile{path}", Cookie=cookie)
        results = [
            {"ours": bench.load(server, [request], callers=1, seconds=bench.seconds(1))}
            for _ in range(bench.rounds(3))
        ]
        case = f"{count:,} numbers and SMS of one user: /profile{path}"
        table.row(case, engine, [result["ours"].p50 for result in results], 150, unit=" ms")


def national(bench, table, engine):
    """Messages by the national form of a number, of a user with a million and of one with 100."""
    servers, count = {}, 100_000 if bench.quick else 1_000_000
    for name, numbers in (("few", 100), ("many", count)):
        url = bench.database(engine)
        with harness.service_app(url):
            records.add(numbers, users=1)
        servers[name] = bench.serve("ours", url)
    requests = [harness.messages(1, f"7500{n:06}") for n in range(1, 100)]
    sides = {name: (server, requests) for name, server in servers.items()}
    results = bench.alternate(bench.rounds(7), sides, callers=1, seconds=bench.seconds(1))
    case = f"messages by national form, of {count:,} numbers / of 100"
    table.row(case, engine, ratios(results, "p50", "many", "few"), 1.15)
    table.beside(results)


def worker(bench, table, engine):
    """Due deliveries drained by the worker, against posts in a loop, made before and after."""
    count = 500 if bench.quick else 20_000
    url = bench.database(engine)

    def posts():
        command = [sys.executable, "-m", "benchmarks.posts", f"{bench.url}/hook", str(count // 4)]
        return float(subprocess.check_output(command, cwd=harness.ROOT))

    with harness.service_app(url):
        records.add(count, deliveries=True)
        before = posts()
        process = bench.start("flask", "webhooks", "deliver", env=bench.service_env(url))
        process.process.wait()
        after = posts()
        done = select(func.count()).select_from(Delivery).where(Delivery.state == "delivered")
        assert db.session.scalar(done) == count, process.log.read_text()[-2000:]
        seconds = (
            db.session.scalar(select(func.max(Delivery.delivered_at)))
            - db.session.scalar(select(func.min(Attempt.started_at)))
        ).total_seconds()
    rate = count / seconds
    case = f"{count:,} due deliveries: rate / a bare loop's"
    table.row(case, engine, [rate / before, rate / after], at_least=0.8)
    print(f"    worker {rate:.0f}/s   loop {before:.0f}/s, {after:.0f}/s")


def probes(bench, table, engine):
    """SMS of others while an endpoint for which many deliveries wait fails or passes a probe."""
    for count in (10_000,) if bench.quick else (100_000, 1_000_000):
        for path, what in (("fail", "fails"), ("hook", "passes")):
            hooks = [f"{bench.url}/{path}"] + [f"{bench.url}/hook"] * (harness.USERS - 1)
            url = bench.database(engine, hooks)
            with harness.service_app(url):
                records.add(count, deliveries=True, users=1)
            server = bench.serve("ours", url)
            others = [harness.ingest(n) for n in EVERYBODY[1:]]
            bench.load(server, others, callers=1, seconds=1)
            before = bench.load(server, others, callers=1, seconds=bench.seconds(3))
            with harness.service_app(url):
                half_open = update(User).where(User.id == 1)
                half_open = half_open.values(webhook_failures=5, webhook_open_until=utcnow())
                transact(lambda tx, half_open=half_open: tx.execute(half_open))
            env = bench.service_env(url)
            process = bench.start("flask", "webhooks", "deliver", "--watch", env=env)
            during = bench.load(server, others, callers=1, seconds=bench.seconds(6))
            process.stop()
            server.stop()
            case = f"an endpoint with {count:,} waiting {what} a probe"
            table.row(f"{case}: longest SMS", engine, [during.longest], 50, unit=" ms")
            table.beside([{"meanwhile": during, "before": before}])


def hot_row(bench, table, engine):
    """16 callers that write one user's summary, and 16 users', against no summaries at all."""
    servers = {name: bench.serve(name, bench.database(engine)) for name in ("ours", "no summaries")}
    for users, who in ((EVERYBODY[:1], "one user"), (EVERYBODY, "16 users")):
        requests = [request(n) for n in users for request in (harness.get_number, harness.ingest)]
        sides = {name: (server, requests) for name, server in servers.items()}
        results = bench.alternate(bench.rounds(5), sides, seconds=bench.seconds(2))
        values = ratios(results, "rate", "ours", "no summaries")
        case = f"16 callers on {who}: rate / without summaries"
        table.row(case, engine, values, at_least=0.8)
        table.beside(results)


def tree(bench, table, engine):
    """A deployment whose main server is another one, against one alone."""
    alone = bench.serve("ours", bench.database(engine))
    # The lower deployment has the key of a user that it has not itself
    key, upper_url = harness.user_key(17), bench.database(engine, [f"{bench.url}/hook"] * 17)
    upper = bench.serve("ours", upper_url)
    lower = bench.serve(
        "ours", bench.database(engine),
        MAIN_SERVER_URL=f"http://127.0.0.1:{upper.port}", SYSTEM_API_KEY=key,
    )  # fmt: skip
    hook = f"http://127.0.0.1:{lower.port}/api/ingest/{key}"
    with harness.service_app(upper_url):
        transact(lambda tx: tx.execute(update(User).values(webhook_url=hook)))
    for call, two in ((harness.get_number, lower), (harness.ingest, upper)):
        requests = [call(n) for n in EVERYBODY]
        sides = {"one": (alone, requests), "two": (two, requests)}
        case = f"two levels: {call.__name__}:"
        single = bench.alternate(bench.rounds(5), sides, callers=1, seconds=bench.seconds(2))
        table.row(f"{case} p50 / one level's", engine, ratios(single, "p50", "two", "one"), 2.5)
        table.beside(single)
        crowd = bench.alternate(bench.rounds(5), sides, seconds=bench.seconds(2))
        rates = ratios(crowd, "rate", "two", "one")
        table.row(f"{case} rate / one level's", engine, rates, at_least=0.4)
        table.beside(crowd)


def memory(bench, table, engine):
    """One worker's memory after many requests, and how much of it came in the second half."""
    half = 1000 if bench.quick else 25_000
    server = bench.serve("ours", bench.database(engine), WEB_CONCURRENCY="1")
    requests = [harness.init(n) for n in EVERYBODY]
    requests += [harness.get_number(1), harness.ingest(1)]
    sizes = []
    for _ in range(2):
        bench.load(server, requests, total=half)
        sizes += server.memory_mb()
    case = f"memory after {2 * half:,} requests"
    table.row(case, engine, sizes[1:], 80, unit=" MB")
    growth = [100 * (sizes[1] / sizes[0] - 1)]
    table.row(f"{case}: growth in the 2nd half", engine, growth, 5, unit=" %")


def install(bench, table, engine):
    """How long `import service` takes, and what requirements.txt installs."""
    code = "import time; t = time.perf_counter(); import service; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    took = [float(subprocess.check_output(command, cwd=harness.ROOT)) for _ in range(7)]
    table.row("import service", "", took, 0.5, unit=" s")
    table.row("installed, without bytecode", "", [_installed_mb()], 60, unit=" MB")


def _installed_mb():
    names, size = [], 0
    for line in (harness.ROOT / "requirements.in").read_text().splitlines():
        if not line.startswith("#"):
            names.append(Requirement(line).name)
    for name in names:  # grows while it is walked through: what is needed by what is needed
        distribution = metadata.distribution(name)
        size += sum(path.locate().stat().st_size for path in distribution.files if _is_there(path))
        for needed in map(Requirement, distribution.requires or ()):
            same = re.sub(r"[-_.]+", "-", needed.name).lower()
            if (not needed.marker or needed.marker.evaluate({"extra": ""})) and same not in names:
                names.append(same)
    return size / 1e6


def _is_there(path):
    return path.suffix != ".pyc" and path.locate().is_file()


# name: (the case, the engines it runs on)
CASES = {
    "init": (against_the_floor("init from cache", harness.init, 1), ENGINES),
    "get-number": (against_the_floor("get-number", harness.get_number, 1.2), ENGINES),
    "ingest": (against_the_floor("ingest + webhook", harness.ingest, 1.5), ENGINES),
    "sixteen": (sixteen, ("sqlite",)),
    "slow": (slow, ENGINES),
    "holes": (holes, ENGINES),
    "crowds": (slow_peers.crowds, ENGINES),
    "million": (million, ENGINES),
    "pages": (pages, ENGINES),
    "national": (national, ENGINES),
    "worker": (worker, ENGINES),
    "probes": (probes, ENGINES),
    "hot-row": (hot_row, ("mariadb",)),
    "tree": (tree, ENGINES),
    "memory": (memory, ("sqlite",)),
    "install": (install, ("",)),
}


def run(bench, table, name, engine):
    case, _ = CASES[name]
    if engine == "mariadb" and (reason := mariadb.missing()):
        table.skipped(name, engine, reason)
        return
    with contextlib.ExitStack() as bench.stack:
        try:
            case(bench, table, engine)
        except harness.CallsFailed as e:
            table.failed(name, engine, e)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}; ratios over short rounds")
    table = Table()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        contextlib.ExitStack() as stack,
    ):
        bench = harness.Bench(Path(folder), stack, options.quick)
        for name in options.cases or CASES:
            for engine in CASES[name][1]:
                run(bench, table, name, engine)
    print(f"{table.missed} missed; took {(time.monotonic() - started) / 60:.1f} minutes")
    sys.exit(bool(table.missed))


if __name__ == "__main__":
    main()
