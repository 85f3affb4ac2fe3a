"""/openapi.json: valid, complete, and true of the running service."""

import os
import subprocess

from openapi_spec_validator import validate

from tests.databases import on_sqlite
from tests.fixtures import BIN
from tests.peers import sandbox


@on_sqlite
def test_the_document_is_valid_openapi_3_1(client):
    response = client.get("/openapi.json")
    assert response.json["openapi"].startswith("3.1")
    validate(response.json)


@on_sqlite
def test_every_call_of_the_api_is_described_and_no_other(app, client):
    """By the methods that it takes; /openapi.json itself is none of the calls."""
    taken = {}
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(("/api/", "/healthz")):
            key = "{ingest_key}" if rule.rule.startswith("/api/ingest") else "{api_key}"
            path = rule.rule.replace("<path:key>", key).rstrip("/")
            taken.setdefault(path, set()).update(rule.methods)
    described = client.get("/openapi.json").json["paths"]
    assert described.keys() == taken.keys()
    assert {"/api/init/{api_key}", "/api/ingest/{ingest_key}", "/healthz"} <= taken.keys()
    for path, methods in described.items():
        assert {method.upper() for method in methods} <= taken[path], path


def test_schemathesis_finds_nothing(serve, tmp_path, make_user, make_provider, assign):
    """Hundreds of calls, good and bad, made up from the document, against gunicorn."""
    user, ingest = make_user(), make_provider()
    assign(user.id)
    config = tmp_path / "schemathesis.toml"
    config.write_text(f"""
        [parameters]
        "path.api_key" = "{user.key}"
        "path.ingest_key" = "{ingest.rpartition("/")[2]}"
        # Only looked at with the system key; and each wait would be waited
        "query.user_id" = {user.id}
        "query.wait" = 0
        [checks]
        # What the contract answers when the main server fails; the log tells of others, below
        not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 500]
        [[operations]]
        # It takes GET as well, from the gateways that know nothing else
        include-path-regex = "/api/ingest"
        checks.allow_header_conformance.enabled = false
        [[operations]]
        # An Idempotency-Key that was used with another country
        include-path-regex = "/api/get-number"
        checks.positive_data_acceptance.expected-statuses = [200, 400, 401, 404, 500]
        [auth.openapi.bearer]
        bearer = "{user.key}"
    """)
    with sandbox() as main_server:
        _, url = serve(MAIN_SERVER_URL=main_server, WEB_CONCURRENCY="1")
        done = subprocess.run(
            [
                BIN / "schemathesis", "--config-file", config, "run", f"{url}/openapi.json",
                "--generation-deterministic", "--max-examples", "20", "--continue-on-failure",
                "--no-color",
            ],
            capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"NO_COLOR": "1"},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-1000:]
    log = (tmp_path / "log").read_text()
    assert "unexpected_error" not in log
