"""Latency of webhooks to healthy receivers while one in ten is a black hole, as a ratio.

`python -m benchmarks.isolation`: both halves run in one process, 8 threads, as gunicorn would.
"""

import tempfile
import threading
import time
from pathlib import Path

from flask import Flask

from config import Config
from service import create_app
from service.database import migrating
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import PhoneNumber, Provider, User
from service.database.writing import transact
from service.keys import new_key, new_secret, seal, sha256
from tests.peers import raw_server, serving

USERS, ROUNDS, THREADS = 10, 40, 8


def measure(folder, hook, hole):
    """Sorted seconds of each SMS to a healthy receiver; user 0's is `hole` where given."""
    app = create_app(
        Config(
            {
                "DATABASE_URL": f"sqlite:///{folder}/{'hole' if hole else 'fine'}.sqlite3",
                "SECRET_KEY": "benchmark",
                "SYSTEM_API_KEY": "system",
                "WEBHOOK_REQUIRE_HTTPS": "0",
                "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
                "WEBHOOK_TIMEOUT": "2",
                "LOG_LEVEL": "ERROR",
            }
        )
    )
    ingest = new_key("ing")
    with app.app_context():
        migrating.upgrade(app)

        def add(tx):
            db.session.add(Provider(name="gw", format="generic", key_hash=sha256(ingest)))
            for n in range(USERS):
                user = User(name=str(n), key_hash=sha256(str(n)), webhook_secret=seal(new_secret()))
                user.webhook_url = hole if hole and n == 0 else hook
                db.session.add(user)
                db.session.flush()
                db.session.add(
                    PhoneNumber(
                        user_id=user.id, state="assigned", digits=f"19999999{n}", country_id=1,
                        assigned_at=utcnow(),
                    )
                )  # fmt: skip

        transact(add)
    jobs = [(n, r) for r in range(ROUNDS) for n in range(USERS)]
    took, lock = [], threading.Lock()

    def run():
        client = app.test_client()
        while True:
            with lock:
                if not jobs:
                    return
                n, r = jobs.pop(0)
            started = time.monotonic()
            sms = {"to": f"19999999{n}", "text": "code 1234", "id": f"{n}-{r}"}
            client.post(f"/api/ingest/{ingest}", json=sms)
            if n:
                took.append(time.monotonic() - started)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with app.app_context():
        db.engine.dispose()
    return sorted(took)


if __name__ == "__main__":
    receiver = Flask("receiver")
    receiver.add_url_rule("/", "hook", lambda: "", methods=["POST"])
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(receiver) as hook,
        raw_server(lambda connection, stopped: stopped.wait()) as hole,
    ):
        fine = measure(Path(folder), hook, None)
        holed = measure(Path(folder), hook, hole)
    for name, share in (("median", 0.5), ("95 %", 0.95), ("99 %", 0.99)):
        a, b = (times[int(len(times) * share)] for times in (fine, holed))
        print(f"{name:7} with a black hole: {b / a:.2f} of without ({a * 1000:.0f} ms)")
