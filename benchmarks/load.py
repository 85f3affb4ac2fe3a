"""The callers, a process of their own: JSON on stdin says what to call, JSON on stdout how it went.

A thread each on a raw keep-alive connection, so that they cost little beside what they measure.
"""

import itertools
import json
import re
import socket
import sys
import threading
import time

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
TIMEOUT = 60


def exchange(sock, request):
    """Send `request` and read the whole answer; its status."""
    sock.sendall(request)
    received = sock.recv(65536)
    while True:
        head, end, body = received.partition(b"\r\n\r\n")
        if end and len(body) >= int(LENGTH.search(head)[1]):
            return int(head[9:12])
        more = sock.recv(65536)
        if not more:
            raise ConnectionError("the answer was cut off")
        received += more


def run(port, requests, callers, seconds=None, total=None, first=0, aside=0):
    """Call until `seconds` are over or `total` requests are done; what the calls came to.

    The requests are taken in turn; `{n}` in one becomes a number never used twice. The first
    `aside` of them are made but not counted.
    """
    templates = [request.encode() for request in requests]
    turns = itertools.count(first)
    until = time.monotonic() + (seconds or 1e9)
    last = first + (total or 10**12)
    times, failed, ended = [], [], []

    def caller():
        sock = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < until and (turn := next(turns)) < last:
            request = templates[turn % len(templates)].replace(b"{n}", b"%010d" % turn)
            started = time.monotonic()
            try:
                status = exchange(sock, request)
            except OSError as e:
                failed.append(repr(e))
                sock = socket.create_connection(("127.0.0.1", port), TIMEOUT)
                continue
            now = time.monotonic()
            if status != 200:
                failed.append(status)
            elif turn % len(templates) >= aside:
                times.append(now - started)
                ended.append(now)

    threads = [threading.Thread(target=caller) for _ in range(callers)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    share = {f"p{p}": 1000 * times[len(times) * p // 100] for p in (50, 95, 99) if times}
    share["longest"] = 1000 * max(times, default=0)
    seconds = max(ended, default=started + 1) - started
    turn = next(turns)
    return {
        "done": len(times),
        "rate": len(times) / seconds,
        "failed": failed[:5],
        "next": turn,
    } | share


if __name__ == "__main__":
    print(json.dumps(run(**json.load(sys.stdin))))
