"""The limits of a process."""

import threading
from collections import Counter

from service.limits import Gate
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
