"""Whose key it is: where it may stand, which one counts, and for whom the system key speaks."""

import pytest

from service.database.engine import db
from service.database.models import User
from tests.conftest import SYSTEM_KEY
from tests.databases import on_sqlite
from tests.fixtures import SMS
from tests.records import change, messages

pytestmark = on_sqlite

MISSING = (401, "Missing or invalid credentials")
INVALID = (401, "Invalid api_key")


def answer(response):
    return response.status_code, response.json.get("message", response.json.get("data"))


@pytest.fixture
def ann(make_user, assign):
    """A user who is told from all others by the one number that she has."""
    user = make_user()
    assign(user.id)
    return user


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/{key}", {}),
        ("", {"Authorization": "Bearer {key}"}),
        ("/", {"Authorization": "bearer   {key} "}),
        ("", {"X-API-Key": "{key}"}),
        ("/", {"X-API-Key": " {key} "}),
        # The path counts before Bearer, and that before X-API-Key
        ("/{key}", {"Authorization": "Bearer wrong", "X-API-Key": "wrong"}),
        ("", {"Authorization": "Bearer {key}", "X-API-Key": "wrong"}),
        # What is empty, or of another scheme, is not given
        ("/", {"Authorization": "Bearer", "X-API-Key": "{key}"}),
        ("", {"Authorization": "Bearer  ", "X-API-Key": "{key}"}),
        ("", {"Authorization": "Basic QW5uOmE=", "X-API-Key": "{key}"}),
        ("", {"Authorization": "", "X-API-Key": "{key}"}),
    ],
)
def test_where_a_key_may_stand(client, ann, path, headers):
    headers = {name: value.format(key=ann.key) for name, value in headers.items()}
    response = client.get(f"/api/numbers{path.format(key=ann.key)}", headers=headers)
    assert response.status_code == 200
    assert len(response.json["data"]["numbers"]) == 1


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("", {}, MISSING),
        ("/", {"X-API-Key": "  ", "Authorization": "Bearer "}, MISSING),
        ("", {"Authorization": "{key}"}, MISSING),
        ("", {"Authorization": "Basic {key}"}, MISSING),
        ("?api_key={key}", {}, MISSING),
        ("/wrong", {"Authorization": "Bearer {key}"}, INVALID),
        ("", {"Authorization": "Bearer wrong", "X-API-Key": "{key}"}, INVALID),
        ("/{key}x", {}, INVALID),
        ("/{key}/", {}, INVALID),
        ("", {"X-API-Key": "{hash}"}, INVALID),
    ],
)
def test_what_is_no_key(client, app, ann, path, headers, expected):
    """What is stored of a key, its hash, is none either."""
    with app.app_context():
        known = {"key": ann.key, "hash": db.session.get(User, ann.id).key_hash}
    headers = {name: value.format(**known) for name, value in headers.items()}
    assert answer(client.get(f"/api/numbers{path.format(**known)}", headers=headers)) == expected


@pytest.mark.parametrize("call", ["numbers", "messages", "summary"])
def test_the_system_key_speaks_for_the_user_that_it_names(client, app, ann, make_user, call):
    other = make_user(name="Ben")

    def read(user_id, key=SYSTEM_KEY):
        return answer(client.get(f"/api/{call}/{key}?user_id={user_id}"))

    assert read("") == (400, "user_id is required with api_key")
    assert read(0) == (400, "user_id must be between 1 and 2147483647")
    assert read("1&user_id=1") == (400, "user_id was given more than once")
    assert read(999) == (404, "Target user not found or inactive")
    assert read(ann.id) == answer(client.get(f"/api/{call}/{ann.key}"))
    # A user's own key speaks for nobody else, whatever user_id says
    for user_id in (other.id, "x", 0, 999):
        assert read(user_id, ann.key) == read(ann.id)
    for columns in ({"active": False}, {"active": True, "approved": False}):
        change(app, User, ann.id, **columns)
        assert read(ann.id) == (404, "Target user not found or inactive")
        assert answer(client.get(f"/api/{call}/{ann.key}")) == INVALID


def test_the_system_key_is_compared_as_a_whole(client, ann):
    query = f"?user_id={ann.id}"
    for key in (SYSTEM_KEY[:-1], SYSTEM_KEY + "x", SYSTEM_KEY.upper(), "é", "%ff", "%00"):
        assert answer(client.get(f"/api/numbers/{key}{query}")) == INVALID
    for key in ("é", "\xff"):
        assert answer(client.get("/api/numbers", headers={"X-API-Key": key})) == INVALID
        post = client.post("/api/ingest", json=SMS, headers={"X-API-Key": key})
        assert answer(post) == (401, "Invalid ingest_key")


def test_without_a_system_key_none_is_the_system_key(app, make_app, ann):
    client = make_app(SYSTEM_API_KEY="").test_client()
    for key in ("None", "%20", "x"):
        assert answer(client.get(f"/api/numbers/{key}?user_id={ann.id}")) == INVALID
        assert client.post(f"/api/ingest/{key}", json=SMS).status_code == 401
    assert client.get(f"/api/numbers/{ann.key}").status_code == 200
    assert messages(app) == []


def test_an_ingest_key_is_no_users_key_nor_a_users_one_of_a_provider(client, ann, make_provider):
    path = make_provider()
    ingest_key = path.rpartition("/")[2]
    assert answer(client.get(f"/api/numbers/{ingest_key}")) == INVALID
    for headers in ({}, {"X-API-Key": ann.key}, {"Authorization": f"Bearer {ann.key}"}):
        assert answer(client.post("/api/ingest", json=SMS, headers=headers)) == (
            401, "Invalid ingest_key",
        )  # fmt: skip
    for headers in ({"X-API-Key": ingest_key}, {"Authorization": f"Bearer {ingest_key}"}):
        assert client.post("/api/ingest/", json=SMS, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("manager", "expected"),
    [
        (None, (400, "country_id is required")),
        ({}, (400, "country_id is required")),
        ({"approved": False}, (400, "country_id is required")),
        ({"active": False}, (403, "Manager inactive. Contact support.")),
    ],
)
@pytest.mark.parametrize("system", [True, False])
def test_a_manager_who_is_inactive_stops_numbers_and_nothing_else(
    client, make_user, manager, expected, system
):
    manager_id = None if manager is None else make_user(**manager).id
    user = make_user(manager_id=manager_id)
    path = f"{SYSTEM_KEY}?user_id={user.id}" if system else user.key
    assert answer(client.get(f"/api/get-number/{path}")) == expected
    assert client.get(f"/api/numbers/{path}").status_code == 200
