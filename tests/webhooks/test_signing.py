"""The secrets that sign: which are accepted, where they are set and where they are used."""

import base64
import hmac
import json
import time

import pytest

from config import Config, ConfigError
from service.keys import seal
from tests.conftest import SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import SMS
from tests.records import messages

KEY = b"\xfb\xef\xff" * 8 + b"k"  # in base64 with + and /, and padding
STANDARD = base64.b64encode(KEY).decode()
URL_SAFE = base64.urlsafe_b64encode(KEY).decode()
GOOD = [STANDARD, STANDARD.rstrip("="), URL_SAFE, URL_SAFE.rstrip("=")]
SHORT = base64.b64encode(KEY[:23]).decode()
BAD = [
    "whsec_", "whsec_=", "whsec_==", f"whsec_{SHORT}", f"whsec_{SHORT.rstrip('=')}", "whsec_short",
    STANDARD, f"WHSEC_{STANDARD}", f"whsec_{STANDARD}=", f"whsec_{STANDARD[:-1]}",
    f"whsec_{STANDARD[:12]} {STANDARD[12:]}", f"whsec_{STANDARD}\n", f"whsec_-{STANDARD[1:]}",
    "whsec_" + "A" * 33, f"whsec_{'é' * 40}", f"whsec_{STANDARD[:10]}={STANDARD[11:]}",
    "whsec_" + "!" * 40,
]  # fmt: skip


def signed(key, body):
    """A post that is signed with `key`, as Standard Webhooks says."""
    timestamp = str(int(time.time()))
    content = f"m.{timestamp}.{body}".encode()
    signature = base64.b64encode(hmac.digest(key, content, "sha256")).decode()
    headers = {
        "webhook-id": "m", "webhook-timestamp": timestamp, "webhook-signature": f"v1,{signature}",
    }  # fmt: skip
    return {"data": body, "headers": headers, "content_type": "application/json"}


BODY = json.dumps({"event": "otp_received", "data": SMS})


@on_sqlite
@pytest.mark.parametrize("secret", GOOD)
def test_a_secret_is_the_same_in_both_alphabets_padded_or_not(make_app, flask, app, secret):
    client = make_app(MAIN_SERVER_WEBHOOK_SECRET=f"whsec_{secret}").test_client()
    added = flask(
        "providers", "add", "main", "--format", "main-server", f"--secret=whsec_{secret}", "--json"
    )
    for path in (f"/api/ingest/{SYSTEM_KEY}", added["ingest_path"]):
        assert client.post(path, **signed(KEY, BODY)).status_code == 200
        for other in (b"", KEY[:-1], secret.encode()):
            assert client.post(path, **signed(other, BODY)).status_code == 401
    assert len(messages(app)) == 2


@on_sqlite
@pytest.mark.parametrize("secret", BAD)
def test_any_other_is_refused_where_it_is_set(flask, secret):
    if secret.strip() == secret:  # of a setting, spaces around do not count
        with pytest.raises(ConfigError, match=r"^MAIN_SERVER_WEBHOOK_SECRET must be whsec_ ") as e:
            Config({"MAIN_SERVER_WEBHOOK_SECRET": secret})
        assert secret.removeprefix("whsec_") not in str(e.value) or secret == "whsec_"
    add = ("providers", "add", "main", "--format", "main-server", f"--secret={secret}")
    assert "whsec_" in flask(*add, exit_code=2)
    assert flask("providers", "list", "--json") == []


@on_sqlite
@pytest.mark.parametrize("secret", BAD)
def test_one_that_is_stored_all_the_same_verifies_nothing(app, client, make_provider, secret):
    """As from before it was checked; above all the empty key, with which anybody could sign."""
    with app.app_context():
        path = make_provider(format="main-server", secret=seal(secret))
    for key in (b"", KEY, KEY[:23]):
        assert client.post(path, **signed(key, BODY)).status_code == 401
    assert messages(app) == []
