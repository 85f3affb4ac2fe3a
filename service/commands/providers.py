"""flask providers …: the SMS gateways that may post to /api/ingest."""

import json
import re
from typing import Any

import click
from flask.cli import AppGroup
from marshmallow import ValidationError
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from service.commands.output import as_json, row_of, show
from service.database.engine import db
from service.database.models import Provider
from service.database.writing import Transaction, transact
from service.fields import phone_digits
from service.sms.gateways import FORMATS
from service.sms.gateways.gateway import Options
from service.sms.providers import create

providers = AppGroup("providers", help="The SMS gateways that may post to /api/ingest.")


def provider_row(provider: Provider) -> dict[str, Any]:
    options = json.loads(provider.options or "{}")
    number = options.get("numbers", {}).get("")
    return row_of(provider, "id", "name", "format") | {"number": number, "active": provider.active}


@providers.command("add")
@click.argument("name")
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), required=True)
@click.option("--secret", help="What the gateway signs with, if its format has signatures.")
@click.option("--number", help="The gateway's number, if it does not name the recipient.")
@as_json
def providers_add(
    name: str, format_: str, secret: str | None, number: str | None, as_json: bool
) -> None:
    """Add an SMS gateway; its ingest key and what to paste there are shown this once."""
    _check_options(name, format_, secret)
    try:
        numbers = {"": phone_digits(number)} if number else {}
    except ValidationError as e:
        raise click.BadParameter(str(e.messages[0]), param_hint="--number") from e
    try:
        provider, key = transact(create, name, format_, Options(secret, numbers))
    except IntegrityError as e:
        raise click.BadParameter(f"there is a provider {name} already", param_hint="NAME") from e
    path = f"/api/ingest/{key}"
    show(provider_row(provider) | {"ingest_key": key, "ingest_path": path}, as_json)
    if not as_json:
        setup = FORMATS[format_].setup.replace("URL", f"https://YOUR-SERVICE{path}")
        click.echo(f"\n{setup}")


def _check_options(name: str, format_: str, secret: str | None) -> None:
    if not re.fullmatch(r"[\w.-]{1,64}", name):
        sentence = "must be 1 to 64 letters, digits, '.', '_' or '-'"
        raise click.BadParameter(sentence, param_hint="NAME")
    if format_ == "main-server" and secret and not secret.startswith("whsec_"):
        raise click.BadParameter("must start with whsec_", param_hint="--secret")
    if secret and "secret" not in FORMATS[format_].heeds:
        raise click.BadParameter(f"{format_} has no signatures", param_hint="--secret")
    if secret is not None:
        try:
            FORMATS[format_].check_secret(secret)
        except ValueError as e:
            raise click.BadParameter(str(e), param_hint="--secret") from e


@providers.command("list")
@as_json
def providers_list(as_json: bool) -> None:
    """List the SMS gateways."""
    rows = db.session.scalars(select(Provider).order_by(Provider.id))
    show([provider_row(provider) for provider in rows], as_json)


@providers.command("disable")
@click.argument("provider")
@as_json
def providers_disable(provider: str, as_json: bool) -> None:
    """Disable a gateway, given by name or id: its requests are refused."""
    show(provider_row(transact(_disable, provider)), as_json)


def _disable(tx: Transaction, provider: str) -> Provider:
    by = Provider.id == int(provider) if provider.isdecimal() else Provider.name == provider
    row = tx.session.scalar(select(Provider).where(by))
    if row is None:
        raise click.BadParameter(f"there is no provider {provider}", param_hint="PROVIDER")
    row.active = False
    return row
