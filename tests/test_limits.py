"""The limits of a process."""

import contextlib
import itertools
import threading
import time
from collections import Counter

from gevent import socket as gevent_socket
from gevent.pool import Pool

from service.limits import Gate
from service.web_worker import WebWorker
from tests.peers import until


class Calls:
    """Calls that come through a gate, go outside, and come back, each when it is told to."""

    def __init__(self, gate):
        self.gate, self.where, self.go = gate, Counter(), {}
        self.threads = []
        for place in ("before", "outside", "after"):
            self.go[place] = threading.Semaphore(0)

    def start(self, n):
        for _ in range(n):
            self.threads.append(threading.Thread(target=self._run))
            self.threads[-1].start()

    def _run(self):
        with self.gate.inside():
            self._stay("before")
            with self.gate.outside():
                self._stay("outside")
            self._stay("after")
        self.where["done"] += 1

    def _stay(self, place):
        self.where[place] += 1
        self.go[place].acquire()
        self.where[place] -= 1

    def leave(self, place, n):
        for _ in range(n):
            self.go[place].release()

    def are(self, **where):
        until(lambda: {k: v for k, v in self.where.items() if v} == where)


def test_a_gate_lets_few_run_and_neither_crowd_waits_for_the_other():
    calls = Calls(Gate(before=3, after=2))
    calls.start(8)
    calls.are(before=3)
    calls.leave("before", 3)
    calls.are(before=3, outside=3)
    calls.leave("before", 5)
    calls.are(outside=8)
    calls.leave("outside", 8)
    calls.are(after=2)
    calls.start(4)  # they do not wait for the six that want to come back
    calls.are(after=2, before=3)
    calls.leave("after", 5)
    calls.are(after=2, before=3, done=5)
    calls.leave("before", 4)
    calls.leave("outside", 4)
    calls.leave("after", 7)
    calls.are(done=12)
    for thread in calls.threads:
        thread.join()


def test_an_error_outside_gives_the_place_back():
    gate = Gate(before=1, after=1)
    for _ in range(3):
        try:
            with gate.inside(), gate.outside():
                raise ValueError
        except ValueError:
            pass
    with gate.inside():
        pass


def test_whose_request_has_arrived_is_not_sent_away():
    """In a crowd it may be unread for a while: the next one that has sent nothing goes."""
    worker, now = WebWorker.__new__(WebWorker), time.monotonic()
    worker.worker_connections, worker.pool, worker.resting = 10, Pool(10), {}
    with contextlib.ExitStack() as stack:
        pairs = [gevent_socket.socketpair() for _ in range(3)]
        for sock in itertools.chain(*pairs):
            stack.callback(sock.close)
        (arrived, sender), (silent, _), (recent, _) = pairs
        sender.sendall(b"G")
        worker.owing = {arrived: now - 9, silent: now - 8, recent: now + 9}
        for left in ([arrived, recent], [arrived, recent]):  # the last one is not slow yet
            worker.make_room()
            assert list(worker.owing) == left
        assert silent.recv(1) == b""
