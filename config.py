"""The settings of one deployment, read once from the environment and `.env`."""

import ipaddress
import os
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import load_dotenv
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError


class ConfigError(Exception):
    """A setting has an unusable value; the message names the setting."""


class Config:
    """Settings from `env` (a mapping of strings); raises ConfigError for a bad value.

    An empty variable counts as not set: PaaS dashboards leave such.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        read = _Reader(env)

        # Database: SQLite (a relative name is in instance/) or MySQL, in any notation of add-ons
        url = read.first(DATABASE_VARIABLES) or "sqlite:///service.sqlite3"
        self.SQLALCHEMY_DATABASE_URI, self.SQLALCHEMY_ENGINE_OPTIONS, hosts = database(url)
        # ... the nodes of a cluster, as (name, port); the URL has the first
        self.DATABASE_HOSTS = hosts

        # Main server: its base URL, and the secret shared with it
        self.MAIN_SERVER_URL = read.url("MAIN_SERVER_URL")
        self.SYSTEM_API_KEY = read.secret("SYSTEM_API_KEY")
        # ... former ones, which are still accepted from callers, but never sent
        self.SYSTEM_API_KEY_FALLBACKS = read.secrets("SYSTEM_API_KEY_FALLBACKS")
        # ... our user's id there, when the main server is one of us
        self.MAIN_SERVER_USER_ID = read.optional_integer("MAIN_SERVER_USER_ID", 1)
        # ... `whsec_…`: when set, the main server's OTPs must be signed with it
        self.MAIN_SERVER_WEBHOOK_SECRET = read.webhook_secret("MAIN_SERVER_WEBHOOK_SECRET")
        # ... the total seconds that a call to it may take
        self.UPSTREAM_TIMEOUT = read.seconds("UPSTREAM_TIMEOUT", 10)
        # ... how many seconds its country list is cached (0 = not at all)
        self.INIT_CACHE_SECONDS = read.seconds("INIT_CACHE_SECONDS", 60, zero=True)

        # Webhooks: the total seconds of one attempt
        self.WEBHOOK_TIMEOUT = read.seconds("WEBHOOK_TIMEOUT", 5)
        # ... plain http refused
        self.WEBHOOK_REQUIRE_HTTPS = read.envbool("WEBHOOK_REQUIRE_HTTPS", True)
        # ... non-public networks that webhooks may reach, as CIDRs
        self.WEBHOOK_ALLOWED_NETWORKS = read.networks("WEBHOOK_ALLOWED_NETWORKS")

        # Both: a file of certificates (PEM) that are trusted besides the public ones
        self.CA_BUNDLE = read.certificates("CA_BUNDLE")

        # Web: signs browser sessions, encrypts webhook secrets
        self.SECRET_KEY = read.secret("SECRET_KEY")
        # ... former ones, which still open what was signed or encrypted under them
        self.SECRET_KEY_FALLBACKS = read.secrets("SECRET_KEY_FALLBACKS")
        # ... how many proxies in front set X-Forwarded-*
        self.TRUSTED_PROXIES = read.integer("TRUSTED_PROXIES", 0, 0, 10)

        # ... opens GET /metrics to callers from elsewhere than this machine
        self.METRICS_TOKEN = read.secret("METRICS_TOKEN")

        # Housekeeping: how many days messages and delivery logs are kept
        self.RETENTION_DAYS = read.integer("RETENTION_DAYS", 30, 1, 3650)
        # ... what is logged: DEBUG, INFO, WARNING or ERROR
        self.LOG_LEVEL = read.choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))

        # gunicorn.conf.py: where to listen, how many processes, calls at once in each
        self.PORT = read.integer("PORT", 8000, 1, 65535)
        self.WEB_CONCURRENCY = read.integer("WEB_CONCURRENCY", 2, 1, 64)
        self.WORKER_CONNECTIONS = read.integer("WORKER_CONNECTIONS", 1000, 20, 10000)

    @classmethod
    def from_environment(cls) -> "Config":
        """The settings of this process; `.env` beside this file supplies what is not set."""
        load_dotenv(Path(__file__).with_name(".env"))
        return cls(os.environ)


# DATABASE_URL, else the variable of a MySQL add-on
DATABASE_VARIABLES = (
    "DATABASE_URL",
    "JAWSDB_URL",
    "JAWSDB_MARIA_URL",
    "CLEARDB_DATABASE_URL",
    "MYSQL_URL",
)
# Connections of each process: small plans allow ten, for two web processes and a worker. None is
# held across a call to others, so a few serve many threads.
POOL_SIZE = 3
# ... for one of which a call waits so many seconds
POOL_SECONDS = 5
POOL = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_timeout": POOL_SECONDS}
MYSQL_DRIVERS = ("mysql", "mysql2", "mysql+pymysql", "mariadb", "mariadb+pymysql")
# How far `ssl-mode` trusts the server: (certificate checked, name checked)
SSL_MODES = {
    "required": (False, False),
    "verify_ca": (True, False),
    "verify_identity": (True, True),
}


def database(text: str) -> tuple[URL | str, dict[str, Any], list[tuple[str, int]]]:
    """The SQLAlchemy URL, engine options and [(host, port)] for a database URL.

    Raises ConfigError. A cluster's nodes are separated by commas: `mysql://user:password@a,b/name`.
    Of the query string only `ssl-mode` and `ssl-ca` count: add-ons put in the options of other
    drivers (`reconnect=true`), which PyMySQL refuses.
    """
    url, *others = _nodes(text)
    if url.drivername == "sqlite":
        in_memory = url.database in (None, "", ":memory:")  # one connection, and no pool
        return text, {} if in_memory else dict(POOL), []
    hosts = [(node.host or "", node.port or 3306) for node in (url, *others)]
    whole = url.database and all(host and port < 2**16 for host, port in hosts)
    if url.drivername not in MYSQL_DRIVERS or not whole:
        raise ConfigError("DATABASE_URL must be sqlite:///… or mysql://user:password@host/name")
    query = {key.lower().replace("_", "-"): value for key, value in url.query.items()}
    connect: dict[str, Any] = {
        "charset": "utf8mb4",
        "connect_timeout": 5,
        "read_timeout": 30,
        "write_timeout": 30,
        "init_command": "SET SESSION innodb_lock_wait_timeout=10",
    } | _tls(query)
    options: dict[str, Any] = {
        "connect_args": connect,
        "isolation_level": "READ COMMITTED",
        "pool_recycle": 280,  # add-ons close connections that are idle for 5 minutes
        "pool_reset_on_return": None,  # every session ends its transaction itself
    } | POOL
    return url.set(drivername="mysql+pymysql", query={}), options, hosts


def _nodes(text: str) -> list[URL]:
    """One URL for each of the comma-separated hosts."""
    scheme, _, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    try:
        return [
            make_url(f"{scheme}://{user}{at}{host.strip()}{slash}{path}")
            for host in hosts.split(",")
        ]
    except (ArgumentError, ValueError) as e:
        raise ConfigError("DATABASE_URL is not a database URL") from e


def _tls(query: Mapping[str, Any]) -> dict[str, Any]:
    """PyMySQL's options for `ssl-mode`.

    One TLS context serves all connections: building one takes ten times as long as connecting.
    """
    ca = query.get("ssl-ca")
    mode = query.get("ssl-mode", query.get("sslmode", "verify_ca" if ca else "preferred"))
    mode = str(mode).lower().replace("-", "_")
    if mode == "disabled":
        return {"ssl_disabled": True}
    if mode == "preferred":
        return {}  # PyMySQL's default: TLS if the server offers it
    if mode not in SSL_MODES:
        known = ", ".join(["disabled", "preferred", *SSL_MODES])
        raise ConfigError(f"DATABASE_URL: ssl-mode must be one of {known}")
    check_certificate, check_name = SSL_MODES[mode]
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as e:
        raise ConfigError("DATABASE_URL: ssl-ca is not a file of certificates") from e
    context.check_hostname = check_name
    context.verify_mode = ssl.CERT_REQUIRED if check_certificate else ssl.CERT_NONE
    return {"ssl": context}


class _Reader:
    """Reads and checks the settings, each with its ConfigError."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env

    def text(self, name: str) -> str | None:
        return self.env.get(name, "").strip() or None

    def secret(self, name: str) -> str | None:
        value = self.text(name)
        if value and not value.isprintable():
            # The value is not repeated
            raise ConfigError(f"{name} must hold no character that cannot be printed")
        return value

    def secrets(self, name: str) -> list[str]:
        return [part.strip() for part in (self.secret(name) or "").split(",") if part.strip()]

    def first(self, names: Iterable[str]) -> str | None:
        return next((value for name in names if (value := self.text(name))), None)

    def choice(self, name: str, default: str, allowed: Iterable[str]) -> str:
        value = (self.text(name) or default).upper()
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        return value

    def envbool(self, name: str, default: bool) -> bool:
        value = (self.text(name) or ("1" if default else "0")).lower()
        if value in ("1", "true", "yes", "on"):
            return True
        if value in ("0", "false", "no", "off"):
            return False
        raise ConfigError(f"{name} must be 1 or 0, not {value!r}")

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.text(name)
        return default if value is None else self._whole(name, value, low, high)

    def optional_integer(self, name: str, low: int, high: int = 2**31 - 1) -> int | None:
        value = self.text(name)
        return None if value is None else self._whole(name, value, low, high)

    @staticmethod
    def _whole(name: str, value: str, low: int, high: int) -> int:
        # isdecimal() alone takes Arabic digits, int() alone takes "1_0"
        if not (value.isascii() and value.isdecimal() and low <= int(value[:20]) <= high):
            raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
        return int(value)

    def seconds(self, name: str, default: float, zero: bool = False) -> float:
        value = self.text(name) or str(default)
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not (seconds > 0 or (zero and seconds == 0)) or seconds > 86400:
            raise ConfigError(f"{name} must be a number of seconds, not {value!r}")
        return seconds

    def url(self, name: str) -> str | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            good = bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
        except ValueError:
            good = False
        if not good or parts.query or parts.fragment or "@" in parts.netloc:
            # The value is not repeated: it may hold a password
            raise ConfigError(f"{name} must be a base URL such as https://main.example.com")
        return value.rstrip("/")

    def webhook_secret(self, name: str) -> str | None:
        value = self.text(name)
        if value is None:
            return None
        from service.webhooks.signing import key_of  # here, since `service` imports this module

        try:
            key_of(value)
        except ValueError as e:
            raise ConfigError(f"{name} {e}") from e
        return value

    def certificates(self, name: str) -> str | None:
        path = self.text(name)
        try:
            if path:
                ssl.create_default_context(cafile=path)
        except OSError as e:  # an SSLError too
            raise ConfigError(f"{name} must be a file of certificates (PEM): {e.strerror}") from e
        return path

    def networks(self, name: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        text = self.text(name) or ""
        try:
            return tuple(ipaddress.ip_network(part) for part in text.replace(",", " ").split())
        except ValueError as e:
            raise ConfigError(f"{name} must be CIDR networks: {e}") from e
