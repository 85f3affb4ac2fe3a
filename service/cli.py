"""The operator's commands: users, providers, summary, doctor, demo."""

import json
import re
from datetime import timedelta
from urllib.parse import urlsplit

import click
from flask import current_app
from flask.cli import AppGroup, with_appcontext
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from service import checks, webhooks
from service.gateways import FORMATS
from service.models import (
    COUNTERS,
    NUMBER_FORMATS,
    Delivery,
    PhoneNumber,
    Provider,
    SystemSummary,
    User,
    UserSummary,
    db,
    new_key,
    sha256,
    transact,
    utcnow,
)

users = AppGroup("users", help="The people who hold an API key.")
providers = AppGroup("providers", help="The SMS gateways that may post to /api/ingest.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def init_app(app):
    for command in (users, providers, summary, doctor, demo):
        app.cli.add_command(command)


def show(data, as_json):
    """Print a dict or a list of dicts: as JSON, or as lines that a person reads."""
    if as_json:
        click.echo(json.dumps(data, default=str))
        return
    rows = data if isinstance(data, list) else [data]
    for row in rows:
        click.echo(
            "  ".join(f"{key}={'-' if value is None else value}" for key, value in row.items())
        )
    if not rows:
        click.echo("none")


def url_problem(url):
    """What is wrong with `url` as a webhook URL, in a sentence; None when nothing is."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme not in ("http", "https") or not host or len(url) > 2048:
        return "must be an http:// or https:// URL of at most 2048 characters"
    if "@" in parts.netloc or re.search(r"[\s\x00-\x1f]", url):
        return "must hold no user name, password or spaces"
    if parts.scheme == "http" and current_app.config["WEBHOOK_REQUIRE_HTTPS"]:
        return "must be https:// (or set WEBHOOK_REQUIRE_HTTPS=0)"
    return None


def find_user(user_id):
    """The user with that id, as typed; raises BadParameter."""
    user = user_id.isdecimal() and db.session.get(User, int(user_id[:18]))
    if not user:
        raise click.BadParameter(f"there is no user {user_id}")
    return user


def user_options(command):
    """The settings of a user, the same for `add` and `set`."""
    for option in (
        click.option(
            "--manager", metavar="ID", help="The manager's user id; `none` for no manager."
        ),
        click.option(
            "--webhook-url", metavar="URL", help="Where OTPs are POSTed; `none` for nowhere."
        ),
        click.option("--number-format", type=click.Choice(NUMBER_FORMATS)),
        click.option("--daily-limit", type=click.IntRange(0, 2**31 - 1), help="Numbers a UTC day."),
    ):
        command = option(command)
    return command


def apply(user, manager, webhook_url, number_format, daily_limit):
    """Write the options that were given to `user`; raises BadParameter."""
    if webhook_url not in (None, "none") and (problem := url_problem(webhook_url)):
        raise click.BadParameter(problem, param_hint="--webhook-url")
    given = {
        "manager_id": manager if manager in (None, "none") else find_user(manager).id,
        "webhook_url": webhook_url,
        "number_format": number_format,
        "daily_limit": daily_limit,
    }
    for name, value in given.items():
        if value is not None:
            setattr(user, name, None if value == "none" else value)


def user_row(user):
    return {
        "id": user.id,
        "name": user.name,
        "active": user.active,
        "approved": user.approved,
        "manager": user.manager_id,
        "number_format": user.number_format,
        "daily_limit": user.daily_limit,
        "webhook_url": user.webhook_url,
    }


@users.command("add")
@click.argument("name")
@click.option("--pending", is_flag=True, help="Not approved yet.")
@click.option("--inactive", is_flag=True, help="Not active.")
@user_options
@as_json
def users_add(name, pending, inactive, as_json, **options):
    """Add a user; the API key and the webhook secret are shown this once."""
    key, secret = new_key("usr"), webhooks.new_secret()

    def add():
        user = User(
            name=name[:255],
            key_hash=sha256(key),
            active=not inactive,
            approved=not pending,
            webhook_secret=secret,
        )
        apply(user, **options)
        db.session.add(user)
        db.session.flush()
        return user

    user = transact(add)
    show(user_row(user) | {"api_key": key, "webhook_secret": secret}, as_json)


@users.command("set")
@click.argument("user_id", metavar="ID")
@click.option("--active/--inactive", default=None)
@click.option("--approved/--pending", default=None)
@user_options
@as_json
def users_set(user_id, active, approved, as_json, **options):
    """Change a user."""

    def change():
        user = find_user(user_id)
        user.active = user.active if active is None else active
        user.approved = user.approved if approved is None else approved
        apply(user, **options)
        return user

    show(user_row(transact(change)), as_json)


@users.command("list")
@as_json
def users_list(as_json):
    """List the users."""
    show([user_row(user) for user in db.session.scalars(select(User).order_by(User.id))], as_json)


@users.command("rotate-key")
@click.argument("user_id", metavar="ID")
@as_json
def users_rotate_key(user_id, as_json):
    """Give a user a new API key, shown this once; the old one stops working at once."""
    key = new_key("usr")

    def rotate():
        user = find_user(user_id)
        user.key_hash = sha256(key)
        return user

    show({"id": transact(rotate).id, "api_key": key}, as_json)


def provider_row(provider):
    return {
        "id": provider.id,
        "name": provider.name,
        "format": provider.format,
        "active": provider.active,
    }


@providers.command("add")
@click.argument("name")
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), required=True)
@click.option("--secret", help="What the gateway signs with, where its format has signatures.")
@as_json
def providers_add(name, format_, secret, as_json):
    """Add an SMS gateway; its ingest key is shown this once."""
    if not re.fullmatch(r"[\w.-]{1,64}", name):
        raise click.BadParameter(
            "must be 1 to 64 letters, digits, '.', '_' or '-'", param_hint="NAME"
        )
    if format_ == "main-server" and secret and not secret.startswith("whsec_"):
        raise click.BadParameter("must start with whsec_", param_hint="--secret")
    key = new_key("ing")

    def add():
        provider = Provider(name=name, format=format_, key_hash=sha256(key), secret=secret)
        db.session.add(provider)
        db.session.flush()
        return provider

    try:
        provider = transact(add)
    except IntegrityError as e:
        raise click.BadParameter(f"there is a provider {name} already", param_hint="NAME") from e
    show(provider_row(provider) | {"ingest_key": key, "ingest_path": f"/api/ingest/{key}"}, as_json)


@providers.command("list")
@as_json
def providers_list(as_json):
    """List the SMS gateways."""
    rows = db.session.scalars(select(Provider).order_by(Provider.id))
    show([provider_row(provider) for provider in rows], as_json)


@providers.command("disable")
@click.argument("provider")
@as_json
def providers_disable(provider, as_json):
    """Refuse a gateway (its name or id) from now on."""

    def disable():
        by = Provider.id == int(provider) if provider.isdecimal() else Provider.name == provider
        row = db.session.scalar(select(Provider).where(by))
        if row is None:
            raise click.BadParameter(f"there is no provider {provider}", param_hint="PROVIDER")
        row.active = False
        return row

    show(provider_row(transact(disable)), as_json)


@click.command()
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True)
@as_json
@with_appcontext
def summary(days, as_json):
    """Count numbers, SMS, OTPs and webhooks: in all, per day, and per user."""
    since = utcnow().date() - timedelta(days=days - 1)
    show_summary(
        {
            "total": _totals(SystemSummary, since, (*COUNTERS, "unmatched")),
            "states": _states(),
            "days": _totals(SystemSummary, since, (*COUNTERS, "unmatched"), "day"),
            "users": _totals(UserSummary, since, COUNTERS, "user_id"),
        },
        as_json,
    )


def show_summary(data, as_json):
    if as_json:
        show(data, True)
        return
    for title, rows in data.items():
        click.echo(f"{title}:")
        show(rows, False)


def _totals(model, since, counters, by=None):
    sums = [func.coalesce(func.sum(getattr(model, name)), 0).label(name) for name in counters]
    query = select(*sums).where(model.day >= since)
    if by is None:
        return _plain(db.session.execute(query).one())
    column = getattr(model, by)
    return [
        _plain(row)
        for row in db.session.execute(query.add_columns(column).group_by(column).order_by(column))
    ]


def _plain(row):
    # MySQL sums are Decimals
    return {k: v if k in ("day", "user_id") else int(v) for k, v in row._mapping.items()}


def _states():
    """How many numbers and deliveries are in each state, so that none is out of sight."""
    return {
        f"{model.__tablename__} {state}": n
        for model in (PhoneNumber, Delivery)
        for state, n in db.session.execute(
            select(model.state, func.count()).group_by(model.state).order_by(model.state)
        )
    }


@click.command()
@as_json
@with_appcontext
def doctor(as_json):
    """Say what is misconfigured; exits 1 when anything is."""
    findings = checks.run()
    if as_json:
        show({"ok": not findings, "problems": findings}, True)
    else:
        for finding in findings:
            click.echo(f"problem: {finding}")
        if not findings:
            click.echo("ok")
    if findings:
        raise SystemExit(1)


@click.command()
@click.option("--once", is_flag=True, help="Number, SMS, webhook, checked; then exit.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="The service's port (default: PORT or 8000)."
)
@with_appcontext
def demo(once, port):
    """Run the service with a sandbox main server and a webhook receiver, all on this machine."""
    from service import demo as demo_module  # the sandbox is no part of a production process

    raise SystemExit(demo_module.run(once, current_app.config["PORT"] if port is None else port))
