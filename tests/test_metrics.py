"""GET /metrics: what is counted, from whose calls, and who may read it."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import requests

from service import limits, metrics
from service.database.columns import utcnow
from service.database.models import Delivery, PhoneNumber, User
from tests.conftest import SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import NUMBER
from tests.peers import sandbox, until
from tests.records import change


def figures(text):
    """The samples by name and labels."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_what_the_database_tells(app, client, make_user, make_provider, assign, receiver):
    user = make_user(webhook_url=receiver.url)
    id = assign(user.id)
    receiver.answers += [500, 200]
    path = make_provider()
    for text in ("code 111111", "code 222222"):
        client.post(path, json={"to": NUMBER, "text": text})
    client.post(path, json={"to": "15550001111", "text": "nobody's"})
    change(app, Delivery, 1, next_attempt_at=utcnow() - timedelta(minutes=5))
    change(app, User, user.id, webhook_disabled_at=utcnow())
    change(app, PhoneNumber, id, state="unknown")
    shown = figures(client.get("/metrics").text)
    assert shown['otp_deliveries{state="pending"}'] == 1
    assert shown['otp_deliveries{state="delivered"}'] == 1
    assert shown['otp_deliveries{state="dead"}'] == 0
    assert shown["otp_deliveries_due"] == 1
    assert 300 <= shown["otp_delivery_oldest_due_seconds"] < 600
    assert (shown["otp_circuits_open"], shown["otp_messages_unmatched"]) == (1, 1)
    assert shown["otp_numbers_unknown"] == 1


@on_sqlite
def test_the_database_is_asked_at_most_every_five_seconds(app, client, make_provider, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def unmatched():
        return figures(client.get("/metrics").text)["otp_messages_unmatched"]

    assert unmatched() == 0
    client.post(make_provider(), json={"to": NUMBER, "text": "hi"})
    assert unmatched() == 0
    now += metrics.DATABASE_SECONDS
    assert unmatched() == 1


@on_sqlite
def test_calls_to_the_main_server_and_the_shares_in_use(make_app, make_user):
    user = make_user()
    with sandbox() as url:
        app = make_app(MAIN_SERVER_URL=url)
        client = app.test_client()
        name = 'otp_main_server_calls_total{endpoint="get-number",result="200"}'
        before = figures(client.get("/metrics").text).get(name, 0)
        assert client.get(f"/api/get-number/{user.key}?country_id=1").status_code == 200
        shown = figures(client.get("/metrics").text)
        assert shown[name] == before + 1
        assert shown['otp_main_server_seconds_count{endpoint="get-number"}'] >= 1
        in_use = 'otp_share_in_use{share="receivers"}'
        idle = shown[in_use]
        with app.app_context(), limits.share("receivers").take(1):
            assert figures(client.get("/metrics").text)[in_use] == idle + 1
        assert figures(client.get("/metrics").text)[in_use] == idle
        assert shown['otp_share_places{share="receivers"}'] == 150


@on_sqlite
@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("192.0.2.1", {}, 401),
        ("", {}, 401),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.1"}, 401),
        ("127.0.0.1", {"Forwarded": "for=192.0.2.1"}, 401),
        ("192.0.2.1", {"Authorization": "Bearer t0ken of ours"}, 200),
        ("192.0.2.1", {"Authorization": "Bearer t0ken"}, 401),
        ("192.0.2.1", {"Authorization": "Bearer "}, 401),
        ("192.0.2.1", {"Authorization": f"Bearer {SYSTEM_KEY}"}, 401),
    ],
)
def test_who_may_read_them(make_app, address, headers, status):
    client = make_app(METRICS_TOKEN="t0ken of ours").test_client()
    answer = client.get("/metrics", headers=headers, environ_base={"REMOTE_ADDR": address})
    assert answer.status_code == status
    assert ("otp_deliveries" in answer.text) is (status == 200)


@on_sqlite
def test_without_a_token_nobody_from_elsewhere_reads_them(client):
    for given in ("", "None"):
        headers = {"Authorization": f"Bearer {given}"}
        there = client.get("/metrics", headers=headers, environ_base={"REMOTE_ADDR": "192.0.2.1"})
        assert there.status_code == 401


@pytest.mark.server
@on_sqlite
def test_several_processes_count_together(serve, make_user):
    """Whichever is asked; what it holds now each tells of itself."""
    user = make_user()
    with sandbox() as main_server:
        _, url = serve(MAIN_SERVER_URL=main_server, WEB_CONCURRENCY="2")

        def get_number(_):
            path = f"{url}/api/get-number/{user.key}?country_id=1"
            return requests.get(path, headers={"Connection": "close"}, timeout=60).status_code

        def shown():
            return requests.get(f"{url}/metrics", headers={"Connection": "close"}, timeout=60).text

        def processes():
            return set(re.findall(r'otp_share_in_use{pid="([0-9]+)",share="waiters"}', shown()))

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(get_number, range(40))) == {200}
        until(lambda: len(processes()) == 2)
        name = 'otp_main_server_calls_total{endpoint="get-number",result="200"}'
        for _ in range(8):
            assert figures(shown())[name] == 40
        # Of a process that has ended, what it was doing is no longer shown, but what it has done is
        [dead, _] = sorted(processes())
        os.kill(int(dead), signal.SIGKILL)
        until(lambda: len(processes() - {dead}) == 2 and dead not in processes())
        assert figures(shown())[name] == 40
