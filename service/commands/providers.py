"""flask providers …: the SMS gateways that may post to /api/ingest."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from flask.cli import AppGroup
from marshmallow import ValidationError
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from service import audit
from service.commands.arguments import ROW_ID
from service.commands.output import Row, as_json, row_of, show
from service.database.engine import db
from service.database.models import Provider
from service.database.writing import Transaction, transact
from service.keys import seal
from service.sms.gateways import FORMATS, generic, recipients
from service.sms.gateways.gateway import Options
from service.sms.providers import create

MAX_SECRET = 256
# Of each option, the part of Options that it sets, and why a format has no use for it
UNHEEDED = {
    "secret": ("secret", "has no signatures"),
    "number": ("numbers", "names the recipient itself"),
    "field": ("fields", "has its own fields"),
    "reply": ("reply", "has its own answer"),
}

providers = AppGroup("providers", help="The SMS gateways that may post to /api/ingest.")


def provider_row(provider: Provider) -> dict[str, Any]:
    options = json.loads(provider.options or "{}")
    numbers = options.get("numbers", {})
    return row_of(provider, "id", "name", "format") | {
        "number": numbers.get(recipients.BARE),
        "numbers": numbers or None,
        "fields": options.get("fields"),
        "reply": options.get("reply"),
        "active": provider.active,
    }


def show_providers(rows: Row | Sequence[Row], as_json: bool) -> None:
    """Print rows; people read numbers and fields as they are given to `providers add`."""
    if not as_json:
        rows = _as_given(rows) if isinstance(rows, Mapping) else [_as_given(row) for row in rows]
    show(rows, as_json)


def _as_given(row: Row) -> Row:
    lists = {
        name: ",".join(f"{k}={v}" if k else v for k, v in row[name].items())
        for name in ("numbers", "fields")
        if row[name]
    }
    return {name: value for name, value in row.items() if name != "number"} | lists


@providers.command("add")
@click.argument("name")
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), required=True)
@click.option("--secret", help="What the gateway signs with, if its format has signatures.")
@click.option(
    "--number", "numbers", multiple=True, metavar="[SIM=]NUMBER",
    help="The gateway's number, if it may not name the recipient; once for each SIM: 2=NUMBER.",
)  # fmt: skip
@click.option(
    "--field", "fields", multiple=True, metavar="NAME=PATH",
    help=f"Where a field is, such as sms_text=data.text. NAME: {', '.join(generic.FIELDS)}.",
)  # fmt: skip
@click.option(
    "--reply", type=click.Choice(["empty"]),
    help="Answer nothing: for a gateway that sends our answer to the SMS's sender.",
)  # fmt: skip
@as_json
def providers_add(
    name: str, format_: str, secret: str | None, numbers: tuple[str, ...],
    fields: tuple[str, ...], reply: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Add an SMS gateway; its ingest key and what to paste there are shown this once."""
    gateway = FORMATS[format_]
    _check(name, format_, {"secret": secret, "number": numbers, "field": fields, "reply": reply})
    options = Options(secret, _numbers(numbers), _fields(fields), reply)
    try:
        provider, key = transact(_add, name, format_, options)
    except IntegrityError as e:
        raise click.BadParameter(f"there is a provider {name} already", param_hint="NAME") from e
    path = f"/api/ingest/{key}"
    row = provider_row(provider) | {"ingest_key": key, "ingest_path": path}
    show_providers(row, as_json)
    if not as_json:
        setup = gateway.setup if isinstance(gateway.setup, str) else gateway.setup(options)
        click.echo("\n" + setup.replace("URL", f"https://YOUR-SERVICE{path}"))


def _add(tx: Transaction, name: str, format_: str, options: Options) -> tuple[Provider, str]:
    namesake = tx.session.scalar(select(Provider).where(Provider.name == name, ~Provider.active))
    if namesake:  # whose name is free
        namesake.name = f"{name[:40]}.{namesake.id}"
        tx.session.flush()
    audit.record(tx, "provider_added", provider=name, format=format_)
    return create(tx, name, format_, options)


def _check(name: str, format_: str, given: Mapping[str, Any]) -> None:
    """Raise BadParameter for a wrong name, and for options that the format does not take."""
    if not re.fullmatch(r"[\w.-]{1,64}", name) or name.isdecimal():
        sentence = "must be 1 to 64 letters, digits, '.', '_' or '-', and not digits alone"
        raise click.BadParameter(sentence, param_hint="NAME")
    _check_options(format_, given)


def _check_options(format_: str, given: Mapping[str, Any]) -> None:
    """Raise BadParameter for an option that the format does not use, and a secret that is none."""
    for option, (part, why) in UNHEEDED.items():
        if given[option] not in (None, ()) and part not in FORMATS[format_].heeds:
            raise click.BadParameter(f"{format_} {why}", param_hint=f"--{option}")
    secret = given["secret"]
    if secret is None:
        return
    try:
        FORMATS[format_].check_secret(secret)
        if not secret.strip() or len(secret) > MAX_SECRET:
            raise ValueError(f"must be 1 to {MAX_SECRET} characters")
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="--secret") from e


def _numbers(given: Iterable[str]) -> dict[str, str]:
    """The digits of the numbers, by SIM; raises BadParameter."""
    numbers: dict[str, str] = {}
    for text in given:
        try:
            sim, digits = recipients.parse_number(text)
        except ValidationError as e:
            raise click.BadParameter(str(e.messages[0]), param_hint="--number") from e
        # A number without a SIM is that of SIM 1
        if (sim or "1") in {known or "1" for known in numbers}:
            raise click.BadParameter(f"SIM {sim or 1} has two numbers", param_hint="--number")
        numbers[sim] = digits
    return numbers


def _fields(given: Iterable[str]) -> dict[str, str]:
    """The paths of the fields; raises BadParameter."""
    fields: dict[str, str] = {}
    for text in given:
        name, _, path = text.partition("=")
        try:
            generic.check_field(name, path)
            if name in fields:
                raise ValueError(f"{name} is given twice")
        except ValueError as e:
            raise click.BadParameter(str(e), param_hint="--field") from e
        fields[name] = path
    return fields


@providers.command("list")
@as_json
def providers_list(as_json: bool) -> None:
    """List the SMS gateways."""
    rows = db.session.scalars(select(Provider).order_by(Provider.id))
    show_providers([provider_row(provider) for provider in rows], as_json)


@providers.command("set")
@click.argument("provider")
@click.option("--secret", help="What the gateway signs with from now on; `none` for no signature.")
@click.option("--number", "numbers", multiple=True, metavar="[SIM=]NUMBER", help="All its numbers.")
@click.option("--field", "fields", multiple=True, metavar="NAME=PATH", help="All its fields.")
@click.option("--reply", type=click.Choice(["empty", "default"]))
@as_json
def providers_set(
    provider: str, secret: str | None, numbers: tuple[str, ...], fields: tuple[str, ...],
    reply: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Change a gateway, given by name or id; what is not given stays, and so do its format and its
    key."""
    given = {"secret": secret, "number": numbers, "field": fields, "reply": reply}
    if not any(given.values()):
        raise click.UsageError("say what to change: see `flask providers set --help`")
    show_providers(provider_row(transact(_set, provider, given)), as_json)


def _set(tx: Transaction, provider: str, given: Mapping[str, Any]) -> Provider:
    row = _find(tx, provider)
    set_anew = {
        name: None if value in ("none", "default") else value for name, value in given.items()
    }
    _check_options(row.format, set_anew)
    options = json.loads(row.options or "{}")
    if given["secret"]:
        row.secret = set_anew["secret"] and seal(set_anew["secret"])
    if given["number"]:
        options["numbers"] = _numbers(given["number"])
    if given["field"]:
        options["fields"] = _fields(given["field"])
    if given["reply"]:
        options["reply"] = set_anew["reply"]
    row.options = json.dumps(options)
    audit.record(tx, "provider_changed", provider=row.name, what=[n for n in given if given[n]])
    return row


@providers.command("disable")
@click.argument("provider")
@as_json
def providers_disable(provider: str, as_json: bool) -> None:
    """Disable a gateway, given by name or id: its requests are refused."""
    show_providers(provider_row(transact(_switch, provider, False)), as_json)


@providers.command("enable")
@click.argument("provider")
@as_json
def providers_enable(provider: str, as_json: bool) -> None:
    """Enable a gateway again, given by name or id."""
    show_providers(provider_row(transact(_switch, provider, True)), as_json)


def _switch(tx: Transaction, provider: str, active: bool) -> Provider:
    row = _find(tx, provider)
    row.active = active
    audit.record(tx, "provider_enabled" if active else "provider_disabled", provider=row.name)
    return row


def _find(tx: Transaction, provider: str) -> Provider:
    """The provider with this name or id; raises BadParameter."""
    found = tx.session.scalar(select(Provider).where(Provider.name == provider))
    if provider.isdecimal():
        by_id = tx.session.get(Provider, ROW_ID.convert(provider, None, None))
        if found and by_id and found is not by_id:  # named by an older version
            sentence = f"{provider} is the name of one provider and the id of another, {by_id.name}"
            raise click.BadParameter(
                f"{sentence}: give a name, or the id {found.id}", param_hint="PROVIDER"
            )
        found = by_id or found
    if found is None:
        raise click.BadParameter(f"there is no provider {provider}", param_hint="PROVIDER")
    return found
