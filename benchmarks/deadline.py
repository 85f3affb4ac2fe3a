"""How far past its deadline a call to each slow peer ends: `python -m benchmarks.deadline`."""

import time

from service import outbound
from tests.peers import SLOW, raw_server

SECONDS = 1.0

if __name__ == "__main__":
    with outbound.new_session() as session:
        for talk in SLOW:
            took = []
            for _ in range(5):
                with raw_server(talk) as url:
                    started = time.monotonic()
                    try:
                        outbound.call(session, "POST", url, seconds=SECONDS, limit=4096, data=b"x")
                    except outbound.CallFailed as e:
                        assert e.kind == "timeout"
                    took.append(time.monotonic() - started)
            print(f"{talk.__name__:24} worst of 5: {max(took) / SECONDS:.3f} of the deadline")
