"""The settings of one deployment, read once from the environment and `.env`."""

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import load_dotenv


class ConfigError(Exception):
    """A setting has a value that cannot be used; the sentence names the setting."""


class Config:
    """Settings from `env` (a mapping of strings); raises ConfigError for a bad value.

    A variable that is set but empty counts as not set, as PaaS dashboards leave them.
    """

    def __init__(self, env):
        read = _Reader(env)

        # Database: any SQLAlchemy URL; SQLite names are relative to instance/
        self.SQLALCHEMY_DATABASE_URI = read.text("DATABASE_URL", "sqlite:///service.sqlite3")

        # Main server: its base URL, and the secret shared with it
        self.MAIN_SERVER_URL = read.url("MAIN_SERVER_URL")
        self.SYSTEM_API_KEY = read.text("SYSTEM_API_KEY")
        # ... our user's id there, when the main server is one of us
        self.MAIN_SERVER_USER_ID = read.integer("MAIN_SERVER_USER_ID", None, 1)
        # ... `whsec_…`: when set, the main server's OTPs must be signed with it
        self.MAIN_SERVER_WEBHOOK_SECRET = read.webhook_secret("MAIN_SERVER_WEBHOOK_SECRET")
        # ... total seconds one call to it may take
        self.UPSTREAM_TIMEOUT = read.seconds("UPSTREAM_TIMEOUT", 10)
        # ... seconds that its country list is kept (0 = not at all)
        self.INIT_CACHE_SECONDS = read.seconds("INIT_CACHE_SECONDS", 60, zero=True)

        # Webhooks: total seconds of one try
        self.WEBHOOK_TIMEOUT = read.seconds("WEBHOOK_TIMEOUT", 5)
        # ... plain http refused
        self.WEBHOOK_REQUIRE_HTTPS = read.envbool("WEBHOOK_REQUIRE_HTTPS", True)
        # ... networks that may be called although they are not public, as CIDRs
        self.WEBHOOK_ALLOWED_NETWORKS = read.networks("WEBHOOK_ALLOWED_NETWORKS")

        # Web: signs browser sessions, encrypts webhook secrets
        self.SECRET_KEY = read.text("SECRET_KEY")
        # ... how many proxies in front set X-Forwarded-*
        self.TRUSTED_PROXIES = read.integer("TRUSTED_PROXIES", 0, 0, 10)

        # Housekeeping: days that messages and logs of deliveries are kept
        self.RETENTION_DAYS = read.integer("RETENTION_DAYS", 30, 1, 3650)
        # ... what is logged: DEBUG, INFO, WARNING or ERROR
        self.LOG_LEVEL = read.choice("LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"))

        # gunicorn.conf.py: where to listen, how many processes, threads in each
        self.PORT = read.integer("PORT", 8000, 1, 65535)
        self.WEB_CONCURRENCY = read.integer("WEB_CONCURRENCY", 2, 1, 64)
        self.THREADS = read.integer("THREADS", 8, 1, 256)

    @classmethod
    def from_environment(cls):
        """The process's own settings; `.env` beside this file fills what is not set."""
        load_dotenv(Path(__file__).with_name(".env"))
        return cls(os.environ)


class _Reader:
    def __init__(self, env):
        self.env = env

    def text(self, name, default=None):
        return self.env.get(name, "").strip() or default

    def choice(self, name, default, allowed):
        value = self.text(name, default).upper()
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        return value

    def envbool(self, name, default):
        value = self.text(name, "1" if default else "0").lower()
        if value in ("1", "true", "yes", "on"):
            return True
        if value in ("0", "false", "no", "off"):
            return False
        raise ConfigError(f"{name} must be 1 or 0, not {value!r}")

    def integer(self, name, default, low, high=2**31 - 1):
        value = self.text(name)
        if value is None:
            return default
        # isdecimal() alone takes Arabic digits, int() alone takes "1_0"
        if not (value.isascii() and value.isdecimal() and low <= int(value[:20]) <= high):
            raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
        return int(value)

    def seconds(self, name, default, zero=False):
        value = self.text(name, str(default))
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not (seconds > 0 or (zero and seconds == 0)) or seconds > 86400:
            raise ConfigError(f"{name} must be a number of seconds, not {value!r}")
        return seconds

    def url(self, name):
        value = self.text(name)
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good or parts.query or parts.fragment or "@" in parts.netloc:
            # The value is not repeated: it may hold a password
            raise ConfigError(f"{name} must be a base URL such as https://main.example.com")
        return value.rstrip("/")

    def webhook_secret(self, name):
        value = self.text(name)
        if value is not None and not value.startswith("whsec_"):
            raise ConfigError(f"{name} must start with whsec_")
        return value

    def networks(self, name):
        try:
            return tuple(
                ipaddress.ip_network(part) for part in self.text(name, "").replace(",", " ").split()
            )
        except ValueError as e:
            raise ConfigError(f"{name} must be CIDR networks: {e}") from e
