"""A crowd of callers beside a few others, one async process: JSON on stdin and on stdout.

The crowd calls again and again, and heeds Retry-After. Once it stands, the others call at a steady
pace, and only what they and the crowd see from then on is counted. Times are in ms.
"""

import asyncio
import contextlib
import json
import re
import resource
import sys
import time
from collections import Counter

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
RETRY_AFTER = re.compile(rb"retry-after: *(\d+)", re.IGNORECASE)


def p95(seconds):
    ordered = sorted(seconds)
    return 1000 * ordered[len(ordered) * 95 // 100] if ordered else 0.0


async def call(port, request):
    """One request on a connection of its own: (status, Retry-After or 0, body)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length, later = LENGTH.search(head), RETRY_AFTER.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        return int(head[9:12]), int(later[1]) if later else 0, body
    finally:
        writer.close()


class Crowd:
    """`members` make the requests `crowd` as their `kind` does, and then `others` beside them."""

    def __init__(self, port, crowd, others, kind, members, settle, calls, pause):
        self.port, self.kind, self.members = port, kind, members
        self.crowd = [request.encode() for request in crowd]
        self.others = {name: request.encode() for name, request in others.items()}
        self.settle, self.calls, self.pause = settle, calls, pause
        self.turn, self.counting = 0, False
        self.statuses, self.refused, self.times = Counter(), [], {name: [] for name in others}
        self.told = {}

    def request(self, template):
        self.turn += 1
        return template.replace(b"{n}", b"%010d" % self.turn)

    async def caller(self, n):
        while True:
            started = time.monotonic()
            try:
                status, later, _ = await call(self.port, self.request(self.crowd[n]))
            except (OSError, asyncio.IncompleteReadError) as e:
                status, later = type(e).__name__, 1
            if self.counting:
                self.statuses[status] += 1
                if status == 503:
                    self.refused.append(time.monotonic() - started)
            await asyncio.sleep(later)

    async def waiter(self, n):
        """Follows the SMS of one user: each call goes on after the last id of the one before."""
        after = b"0"
        while True:
            request = self.crowd[n].replace(b"{after}", after)
            status, _, body = await call(self.port, request)
            after = max(re.findall(rb'"id": ?(\d+)', body), key=int, default=after)
            self.statuses[status] += self.counting
            for turn in re.findall(rb"code is 49(\d{10})", body):
                if (sent := self.told.get(int(turn))) and self.counting:
                    self.times.setdefault("waiter", []).append(time.monotonic() - sent)

    async def once(self, n):
        status, *_ = await call(self.port, self.request(self.crowd[n]))
        self.statuses[status] += 1
        await asyncio.Event().wait()

    async def dripping(self, n):
        """Sends the request without end, a byte a second after its first bytes, and comes again."""
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(self.crowd[n])
                with contextlib.suppress(TimeoutError):
                    while True:
                        if await asyncio.wait_for(self.gone(reader), 1):
                            break
                writer.close()

    async def gone(self, reader):
        return not await reader.read(1)

    async def other(self, name):
        started = time.monotonic()
        request = self.request(self.others[name])
        self.told[self.turn] = started
        status, *_ = await call(self.port, request)
        self.times[name].append(time.monotonic() - started)
        if status != 200:
            self.statuses[f"{name} {status}"] += 1

    async def run(self):
        kind = getattr(self, self.kind)
        crowd = [asyncio.ensure_future(kind(n % len(self.crowd))) for n in range(self.members)]
        await asyncio.sleep(self.settle)
        self.counting, started, calls = True, time.monotonic(), []
        for _ in range(self.calls):
            calls += [asyncio.ensure_future(self.other(name)) for name in self.others]
            await asyncio.sleep(self.pause)
        await asyncio.gather(*calls)
        seconds = time.monotonic() - started
        self.counting = False
        for member in crowd:
            member.cancel()
        return {
            "p95": {name: p95(times) for name, times in self.times.items()},
            "refused": p95(self.refused),
            "rate": self.statuses[200] / seconds,
            "statuses": {str(status): count for status, count in self.statuses.items()},
        }


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    print(json.dumps(asyncio.run(Crowd(**json.load(sys.stdin)).run())))
