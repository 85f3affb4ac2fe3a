"""A main server and a webhook receiver that cost little: `python -m benchmarks.stubs PORT`.

Below `/slow` every answer takes 300 ms, below `/after-N` N seconds; below `/hole` none comes,
below `/fail` a 500.
"""

import asyncio
import itertools
import json
import re
import sys

from service.sandbox import COUNTRIES, operators

SLOW_SECONDS = 0.3
AFTER = re.compile(rb"/after-(\d+)/")
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
DIGITS = itertools.count(447_000_000_000)


def answer(body):
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def success(data):
    return json.dumps({"status": "success", "data": data}).encode()


FAILURE = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
COUNTRY_LIST = [{"id": id, "name": c[0], "phone_code": c[1]} for id, c in COUNTRIES.items()]
INIT = answer(success({"countries": COUNTRY_LIST, "operators": operators()}))
OPERATOR = {"id": 201, "name": "EE", "country_id": 2}


class Peer(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.received = transport, b""

    def data_received(self, data):
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not end or (length and len(body) < int(length[1])):
            return
        self.received = b""
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/hole"):
            return
        if path.startswith(b"/fail"):
            self.answer(path, FAILURE)
            return
        if b"/api/get-number/" in path:
            number = {"phone_number": f"+{next(DIGITS)}", "operator": OPERATOR}
            self.answer(path, answer(success(number)))
        elif b"/api/init/" in path:
            self.answer(path, INIT)
        else:
            self.answer(path, answer(b""))

    def answer(self, path, data):
        if path.startswith(b"/slow"):
            asyncio.get_running_loop().call_later(SLOW_SECONDS, self.transport.write, data)
        elif after := AFTER.match(path):
            asyncio.get_running_loop().call_later(int(after[1]), self.transport.write, data)
        else:
            self.transport.write(data)


async def main(port):
    server = await asyncio.get_running_loop().create_server(Peer, "127.0.0.1", port, backlog=2000)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
