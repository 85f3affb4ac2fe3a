"""Fixtures: an app on a migrated database of its own, and factories for its records."""

import socket
from types import SimpleNamespace

import jinja2
import pytest
from werkzeug.routing import Rule

from config import Config
from service import create_app, keys
from service.database.engine import db
from service.database.models import Provider, User
from service.database.writing import transact
from service.keys import new_key, seal, sha256

pytest_plugins = ["tests.databases", "tests.fixtures"]

# Fixtures that start a server or a process
SERVERS = {"start", "mariadb_server", "tls_server", "chromium"}
SYSTEM_KEY = "system-key-of-the-tests"
SECRET_KEY = "secret key of the tests, 32 long."
MAIN = "http://main.test"


def pytest_collection_modifyitems(items):
    """Mark what needs a server, which the quick check leaves out."""
    for item in items:
        engine = item.callspec.params.get("database_url") if hasattr(item, "callspec") else None
        if engine == "mariadb" or SERVERS & set(item.fixturenames):
            item.add_marker("server")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing leaves this machine."""
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family != socket.AF_UNIX and not address[0].startswith(("127.", "::1")):
            raise AssertionError(f"a test called {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """What every app compiles, its routes and templates, is compiled once for all tests: that would
    be a sixth of their time. Gives Jinja's cache."""
    with pytest.MonkeyPatch.context() as patch:
        build, built = Rule._compile_builder, {}

        def build_once(rule, append_unknown=True):
            key = rule.rule, str(rule.defaults), append_unknown
            if key not in built:
                built[key] = build(rule, append_unknown)
            return built[key]

        patch.setattr(Rule, "_compile_builder", build_once)
        yield jinja2.FileSystemBytecodeCache(tmp_path_factory.mktemp("templates"))


@pytest.fixture
def make_app(database_url, compiled):
    """Make the app; keywords are environment variables."""
    apps = []

    def make(**env):
        defaults = {
            "DATABASE_URL": database_url,
            "MAIN_SERVER_URL": MAIN,
            "SYSTEM_API_KEY": SYSTEM_KEY,
            "SECRET_KEY": SECRET_KEY,
            "WEBHOOK_REQUIRE_HTTPS": "0",
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        env = {name: str(value) for name, value in (defaults | env).items()}
        apps.append(create_app(Config(env)))
        apps[-1].jinja_env.bytecode_cache = compiled
        return apps[-1]

    yield make
    for app in apps:
        with app.app_context():
            db.engine.dispose()


@pytest.fixture
def app(make_app):
    return make_app()


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def make_user(app):
    """Add a user; keywords are columns. Gives `id`, `key` and `secret`."""

    def make(**columns):
        key, secret = new_key("usr"), keys.new_secret()
        with app.app_context():
            defaults = {"name": "Ann", "key_hash": sha256(key), "webhook_secret": seal(secret)}
            user = User(**(defaults | columns))
            transact(lambda tx: db.session.add(user))
            return SimpleNamespace(id=user.id, key=key, secret=secret)

    return make


@pytest.fixture
def make_provider(app):
    """Add a provider; gives its ingest path."""

    def make(name="gw", format="generic", **columns):
        key = new_key("ing")
        with app.app_context():
            provider = Provider(name=name, format=format, key_hash=sha256(key), **columns)
            transact(lambda tx: db.session.add(provider))
        return f"/api/ingest/{key}"

    return make
