"""The SMS gateways in use: added, and found by their key."""

import json
from typing import Any, NamedTuple

from flask import current_app
from sqlalchemy import Row, bindparam, select

from service.auth import is_system_key
from service.database.engine import db
from service.database.models import Provider
from service.database.writing import Transaction
from service.errors import InvalidIngestKey
from service.keys import new_key, seal, sha256, unseal
from service.logs import note_caller
from service.sms.gateways import FORMATS
from service.sms.gateways.gateway import Gateway, Options
from service.sms.incoming import Sms

# Without the ORM: each SMS asks
_PROVIDERS = Provider.table()
_PROVIDER = select(_PROVIDERS).where(_PROVIDERS.c.key_hash == bindparam("key_hash"))
# The ids of the sources
_SYSTEM, _PREFIX = "system", "provider "


class Source(NamedTuple):
    """Where an SMS comes from, and how it is read; `id` keeps the message ids of gateways apart.

    `name` is what users see; None for the main server, whose SMS name their provider.
    """

    id: str
    gateway: Gateway
    options: Options
    name: str | None

    @property
    def format(self) -> str:
        return next(name for name, gateway in FORMATS.items() if gateway is self.gateway)

    @property
    def is_main_server(self) -> bool:
        return self.gateway is FORMATS["main-server"]

    def name_of(self, sms: Sms) -> str:
        """The provider name that users see for this SMS."""
        return self.name or sms.provider or "main-server"


def source_of(key: str | None) -> Source:
    """The active provider who holds `key`, or the main server; raises InvalidIngestKey."""
    if key is None:
        raise InvalidIngestKey
    if is_system_key(key):
        note_caller(source=_SYSTEM)
        secret = current_app.config["MAIN_SERVER_WEBHOOK_SECRET"]
        return Source(_SYSTEM, FORMATS["main-server"], Options(secret), None)
    provider = db.session.execute(_PROVIDER, {"key_hash": sha256(key)}).first()
    if provider is None or not provider.active:
        raise InvalidIngestKey
    note_caller(source=provider.name)
    id, gateway = f"{_PREFIX}{provider.id}", FORMATS[provider.format]
    return Source(id, gateway, _options_of(provider), provider.name)


def source_with_id(id: str) -> Source:
    """The source with this `id`, active or not; without the options, which only parsing needs."""
    if id == _SYSTEM:
        return Source(id, FORMATS["main-server"], Options(), None)
    provider = db.session.get(Provider, int(id.removeprefix(_PREFIX)))
    if provider is None:  # deleted by hand
        return Source(id, FORMATS["generic"], Options(), id)
    return Source(id, FORMATS[provider.format], Options(), provider.name)


def _options_of(provider: Row[Any]) -> Options:
    """The stored options, which are JSON, with the secret unsealed."""
    secret = provider.secret and unseal(provider.secret)
    return Options(secret, **json.loads(provider.options or "{}"))


def create(tx: Transaction, name: str, format: str, options: Options) -> tuple[Provider, str]:
    """A new provider and its ingest key, which cannot be read back later."""
    key = new_key("ing")
    stored = {name: value for name, value in options._asdict().items() if value}
    secret = stored.pop("secret", None)
    provider = Provider(
        name=name, format=format, key_hash=sha256(key), secret=secret and seal(secret),
        options=json.dumps(stored, default=dict),
    )  # fmt: skip
    tx.session.add(provider)
    tx.session.flush()
    return provider, key
