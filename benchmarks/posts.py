"""The floor of the delivery worker, pooled posts in a loop: `python -m benchmarks.posts URL N`.

Prints how many it made a second.
"""

import sys
import time

import requests

BODY = b'{"event":"otp_received","data":{"phone_number":"+447400000001","otp_code":"493817"}}'


def main(url, count):
    with requests.Session() as session:
        started = time.monotonic()
        for _ in range(count):
            session.post(url, data=BODY, headers={"webhook-id": "msg_1"}, timeout=5)
        print(count / (time.monotonic() - started))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
