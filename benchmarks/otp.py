"""What reading an SMS costs: µs a message of the corpus, and for 10,000 characters of one class.

`python -m benchmarks.otp`; ends with 1 when a class takes 10 ms or more.
"""

import statistics
import sys
import time

from service.sms import otp
from tests.sms import otp_accuracy

LENGTH = 10_000
LIMIT = 10  # ms of CPU
CLASSES = (
    "a", "A", "1", "é", "ж", "ع", "中", "๑", " ", "\n", "-", ".", ",", ":", "#", "*", "%", "/", "@",
    "€", "\u200f", "\ufdfa", "1 ", "1-", "1,", "1.", "12:", "a1", "A1-", "@a", "a.", "www.", "*1",
    "+1 ", "(1) ", "code ", "code: 1234 ", "otp", "kod", "kód", "пин", "код 1234. ", "1 min ",
    "http://a", "@x.io #1", "验证码", "no. 1 ", "is is ", "0 000 ", "1/1/", "5 € ",
    "use 4938 ", "sent to 1 ", "card is 1 ", "【1a】", "*12*a",
)  # fmt: skip


def cpu_ms(text):
    """The least of five readings: what it costs when nothing else is in the way."""
    times = []
    for _ in range(5):
        started = time.thread_time()
        otp.extract(text)
        times.append(1000 * (time.thread_time() - started))
    return min(times)


def main():
    texts = [m["text"] for path in otp_accuracy.FILES.values() for m in otp_accuracy.read(path)]
    each = sorted(cpu_ms(text) * 1000 for text in texts)
    median = statistics.median(each)
    print(
        f"a message of the corpus: median {median:.0f} µs, p99 {each[len(each) * 99 // 100]:.0f} µs"
    )
    costs = {name: cpu_ms((name * LENGTH)[:LENGTH]) for name in CLASSES}
    for name, cost in sorted(costs.items(), key=lambda item: -item[1])[:8]:
        print(f"{LENGTH:,} characters of {name!r:14} {cost:6.2f} ms")
    slowest = max(costs.values())
    print(f"slowest of {len(costs)} classes: {slowest:.2f} ms (limit {LIMIT} ms)")
    sys.exit(slowest >= LIMIT)


if __name__ == "__main__":
    main()
