"""What reading an SMS costs, against a bare regex, and how the time grows with the text.

`python -m benchmarks.otp`; ends with 1 when a text of 1,600 characters takes 5 ms, or when twice a
text takes more than 2.4 times its time.
"""

import re
import sys
import time

from service.sms import otp
from tests.sms import otp_accuracy
from tests.sms.otp_repeats import REPEATS, filled

LIMIT = 5  # ms of CPU for 1,600 characters
GROWTH = 2.4
BARE = re.compile(r"\b\d{4,8}\b")


def cpu_ms(*calls):
    """For each call the least of 25 readings: what it costs when nothing is in the way."""
    times = [[] for _ in calls]
    for _ in range(25):
        for call, readings in zip(calls, times, strict=True):
            started = time.thread_time()
            call()
            readings.append(1000 * (time.thread_time() - started))
    return [min(readings) for readings in times]


def usual():
    texts = [m["text"] for path in otp_accuracy.FILES.values() for m in otp_accuracy.read(path)]
    each = sorted(cpu_ms(lambda t=text: otp.extract(t))[0] for text in texts)
    median, p99 = each[len(each) // 2], each[len(each) * 99 // 100]
    print(f"a message: median {1000 * median:.0f} µs, p99 {1000 * p99:.0f} µs")
    ours, bare = cpu_ms(
        lambda: [otp.extract(text) for text in texts], lambda: [BARE.search(text) for text in texts]
    )
    print(f"{len(texts)} messages: {ours / bare:.0f} times the time of a bare regex")


def main():
    usual()
    costs = {}
    for repeat in REPEATS:
        whole, half = filled(repeat, otp.MAX_TEXT), filled(repeat, otp.MAX_TEXT // 2)
        costs[repeat] = cpu_ms(lambda t=half: otp.extract(t), lambda t=whole: otp.extract(t))
    for repeat, (half, whole) in sorted(costs.items(), key=lambda item: -item[1][1])[:8]:
        print(f"1,600 characters of {repeat!r:24} {whole:5.2f} ms, 800: {half:5.2f} ms")
    slowest = max(whole for _, whole in costs.values())
    growth = {repeat: whole / half for repeat, (half, whole) in costs.items()}
    steepest = max(growth, key=growth.get)
    print(f"slowest of {len(costs)} classes: {slowest:.2f} ms (limit {LIMIT} ms)")
    print(f"twice the text: at most {growth[steepest]:.2f} times the time, {steepest!r} ({GROWTH})")
    sys.exit(slowest >= LIMIT or growth[steepest] > GROWTH)


if __name__ == "__main__":
    main()
