"""What the system tells of processes: the children of one, and the state of any (Linux)."""

import contextlib
import os
import re
import signal
from pathlib import Path

from tests.peers import until


def children(process):
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def status_of(pid, field):
    return re.search(rf"^{field}:\s+(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1]


@contextlib.contextmanager
def told_to_stop_meanwhile(process):
    """The only child stands still during the block, and has been told to stop when it goes on."""
    [worker] = children(process)
    os.kill(worker, signal.SIGSTOP)
    until(lambda: status_of(worker, "State")[0] == "T")
    yield
    process.send_signal(signal.SIGTERM)
    until(lambda: int(status_of(worker, "ShdPnd"), 16) & 1 << (signal.SIGTERM - 1))
    os.kill(worker, signal.SIGCONT)
