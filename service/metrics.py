"""Numbers to watch: what a process counts of itself, which all processes add up."""

import os
import threading
import time
from collections.abc import Callable, Iterator

from flask import Flask, current_app
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

# Set by gunicorn.conf.py before this module is imported: where the processes leave their counts
# (https://prometheus.github.io/client_python/multiprocess/)
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# How long what the database was asked for is shown
DATABASE_SECONDS = 5

_own = CollectorRegistry()
MAIN_SERVER_CALLS = Counter(
    "otp_main_server_calls", "Calls to the main server", ["endpoint", "result"], registry=_own
)
MAIN_SERVER_SECONDS = Histogram(
    "otp_main_server_seconds", "The time of a call to the main server", ["endpoint"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10), registry=_own,
)  # fmt: skip
# Of each process, which the label pid names
IN_USE = Gauge(
    "otp_share_in_use", "Calls that wait, by whom they wait for", ["share"],
    multiprocess_mode="liveall", registry=_own,
)  # fmt: skip
PLACES = Gauge(
    "otp_share_places", "How many calls of a process may wait for whom", ["share"],
    multiprocess_mode="max", registry=_own,
)  # fmt: skip

# What the database tells: the name, the help, the labels, and the values by label
Reading = tuple[str, str, list[str], list[tuple[list[str], float]]]


class FromDatabase(Collector):
    """What the database is asked for, at most every DATABASE_SECONDS."""

    def __init__(self, read: Callable[[], list[Reading]]) -> None:
        self._read, self._lock = read, threading.Lock()
        self._known: list[Reading] = []
        self._until = 0.0

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._lock:
            if time.monotonic() >= self._until:
                self._known = self._read()
                self._until = time.monotonic() + DATABASE_SECONDS
            known = self._known
        for name, text, labels, values in known:
            family = GaugeMetricFamily(name, text, labels=labels)
            for of, value in values:
                family.add_metric(of, value)
            yield family


def init_app(app: Flask, read: Callable[[], list[Reading]]) -> None:
    """`read` asks the database."""
    app.extensions["metrics"] = FromDatabase(read)


def exposition() -> bytes:
    """The text that Prometheus reads (its exposition format, version 0.0.4)."""
    from_database: FromDatabase = current_app.extensions["metrics"]
    whole = CollectorRegistry()
    whole.register(from_database)
    text = generate_latest(whole)
    if FOLDER not in os.environ:
        return text + generate_latest(_own)
    counted = CollectorRegistry()
    MultiProcessCollector(counted)
    return text + generate_latest(counted)
