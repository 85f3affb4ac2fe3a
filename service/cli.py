"""The operator's commands: users, providers, summary, doctor, demo."""

import json
import re
import signal
import threading
import time
from datetime import UTC, datetime, timedelta

import click
from flask import current_app
from flask.cli import AppGroup, with_appcontext
from marshmallow import ValidationError
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from service import checks, delivery, guard, webhooks
from service.gateways import FORMATS
from service.models import (
    COUNTERS,
    NUMBER_FORMATS,
    Attempt,
    Delivery,
    Message,
    PhoneNumber,
    Provider,
    SystemSummary,
    User,
    UserSummary,
    db,
    new_key,
    release,
    sha256,
    transact,
    utcnow,
)
from service.schemas import phone_digits
from service.secretbox import seal

users = AppGroup("users", help="The people who hold an API key.")
webhooks_group = AppGroup("webhooks", help="The deliveries to the users' webhooks.")
providers = AppGroup("providers", help="The SMS gateways that may post to /api/ingest.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def init_app(app):
    for command in (users, providers, webhooks_group, summary, purge, doctor, demo):
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


def check_webhook_url(url):
    """Refuse a URL that webhooks may not be sent to; looks its host up, so in no transaction."""
    try:
        if url not in (None, "none"):
            guard.check_url(url)
    except guard.ForbiddenUrl as e:
        raise click.BadParameter(str(e), param_hint="--webhook-url") from e


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
    given = {
        "manager_id": manager if manager in (None, "none") else find_user(manager).id,
        "number_format": number_format,
        "daily_limit": daily_limit,
    }
    if webhook_url is not None:
        delivery.set_url(user, None if webhook_url == "none" else webhook_url)
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
    check_webhook_url(options["webhook_url"])
    key, secret = new_key("usr"), webhooks.new_secret()

    def add():
        user = User(
            name=name[:255],
            key_hash=sha256(key),
            active=not inactive,
            approved=not pending,
            webhook_secret=seal(secret),
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
    check_webhook_url(options["webhook_url"])

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


@users.command("rotate-secret")
@click.argument("user_id", metavar="ID")
@as_json
def users_rotate_secret(user_id, as_json):
    """Give a user a new webhook secret, shown this once; both sign for 24 hours."""
    secret = webhooks.new_secret()
    transact(lambda: delivery.rotate_secret(find_user(user_id), secret))
    show({"id": int(user_id), "webhook_secret": secret}, as_json)


def provider_row(provider):
    return {
        "id": provider.id,
        "name": provider.name,
        "format": provider.format,
        "number": provider.number,
        "active": provider.active,
    }


@providers.command("add")
@click.argument("name")
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), required=True)
@click.option("--secret", help="What the gateway signs with, where its format has signatures.")
@click.option("--number", help="The number it holds, where it does not tell itself.")
@as_json
def providers_add(name, format_, secret, number, as_json):
    """Add an SMS gateway; its ingest key and what to paste there are shown this once."""
    gateway = FORMATS[format_]
    if not re.fullmatch(r"[\w.-]{1,64}", name):
        raise click.BadParameter(
            "must be 1 to 64 letters, digits, '.', '_' or '-'", param_hint="NAME"
        )
    if format_ == "main-server" and secret and not secret.startswith("whsec_"):
        raise click.BadParameter("must start with whsec_", param_hint="--secret")
    if secret and not gateway.signs:
        raise click.BadParameter(f"{format_} has no signatures", param_hint="--secret")
    try:
        digits = number and phone_digits(number)
    except ValidationError as e:
        raise click.BadParameter(e.messages[0], param_hint="--number") from e
    key = new_key("ing")

    def add():
        provider = Provider(
            name=name,
            format=format_,
            key_hash=sha256(key),
            secret=secret and seal(secret),
            number=digits,
        )
        db.session.add(provider)
        db.session.flush()
        return provider

    try:
        provider = transact(add)
    except IntegrityError as e:
        raise click.BadParameter(f"there is a provider {name} already", param_hint="NAME") from e
    path = f"/api/ingest/{key}"
    show(provider_row(provider) | {"ingest_key": key, "ingest_path": path}, as_json)
    if not as_json:
        setup = gateway.setup.replace("URL", f"https://YOUR-SERVICE{path}")
        click.echo(f"\n{setup}")


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


@webhooks_group.command("deliver")
@click.option("--watch", is_flag=True, help="Go on until SIGTERM: the worker.")
@click.option("--threads", type=click.IntRange(1, 64), default=8, show_default=True)
@as_json
def webhooks_deliver(watch, threads, as_json):
    """Deliver what is due; without --watch, until nothing is."""
    stop, lock = threading.Event(), threading.Lock()
    done, told = {"delivered": 0, "pending": 0, "dead": 0}, [time.monotonic()]

    def progress(state):
        with lock:
            done[state] += 1
            if not watch and time.monotonic() - told[0] > 2:
                told[0] = time.monotonic()
                click.echo(f"{done}, {delivery.due_count()} due", err=True)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    delivery.work(stop, watch, threads, on_done=progress)
    show(done, as_json)


@webhooks_group.command("list")
@click.option("--state", type=click.Choice(["pending", "delivered", "dead"]))
@click.option("--user", "user_id", type=int)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@as_json
def webhooks_list(state, user_id, limit, as_json):
    """List deliveries with their attempts, newest first."""
    query = select(Delivery).order_by(Delivery.id.desc()).limit(limit)
    if state:
        query = query.where(Delivery.state == state)
    if user_id:
        query = query.where(Delivery.user_id == user_id)
    show([delivery_row(row) for row in db.session.scalars(query).all()], as_json)


def delivery_row(row):
    tries = db.session.scalars(
        select(Attempt).where(Attempt.delivery_id == row.id).order_by(Attempt.id)
    )
    return {
        "id": row.id,
        "webhook_id": row.webhook_id,
        "user": row.user_id,
        "message": row.message_id,
        "state": row.state,
        "result": row.last_result,
        "next_attempt_at": row.next_attempt_at,
        "attempts": [
            {"at": str(a.started_at), "ms": a.ms, "trigger": a.trigger, "result": a.result}
            for a in tries
        ],
    }


@webhooks_group.command("redeliver")
@click.argument("delivery_id", metavar="ID", type=int, required=False)
@click.option("--failed", is_flag=True, help="All that are dead.")
@as_json
def webhooks_redeliver(delivery_id, failed, as_json):
    """Try a delivery again now, with a fresh schedule of retries."""
    if (delivery_id is None) == (not failed):
        raise click.UsageError("give an ID or --failed")
    if failed:
        dead = select(Delivery.id).where(Delivery.state == "dead").order_by(Delivery.id)
        ids = db.session.scalars(dead).all()
    elif db.session.get(Delivery, delivery_id) is None:
        raise click.BadParameter(f"there is no delivery {delivery_id}", param_hint="ID")
    else:
        ids = [delivery_id]
    release()
    show([{"id": id, "state": delivery.redeliver(id) or "being tried"} for id in ids], as_json)


PURGE_BATCH = 500
# Numbers that never received an SMS, and which share of a user's they are
SILENT = ("without_sms", "share_without_sms")


@click.command()
@as_json
@with_appcontext
def purge(as_json):
    """Delete messages and deliveries older than RETENTION_DAYS; numbers and counts stay."""
    before = utcnow() - timedelta(days=current_app.config["RETENTION_DAYS"])
    ended = Delivery.state != "pending"
    untold = ~select(Delivery.id).where(Delivery.message_id == Message.id).exists()
    old_delivery = select(Delivery.id).where(Delivery.created_at < before, ended)
    steps = {
        "attempts": (
            Attempt,
            (Attempt.started_at < before) | Attempt.delivery_id.in_(old_delivery),
        ),
        "deliveries": (Delivery, (Delivery.created_at < before) & ended),
        "messages": (Message, (Message.created_at < before) & untold),
    }
    show({name: _purge(name, *step) for name, step in steps.items()}, as_json)


def _purge(name, model, old):
    """Delete the rows in batches, each a short transaction of its own; how many."""
    total = 0
    while True:
        ids = db.session.scalars(select(model.id).where(old).limit(PURGE_BATCH)).all()
        if not ids:
            release()
            return total
        transact(lambda ids=ids: db.session.execute(delete(model).where(model.id.in_(ids))))
        total += len(ids)
        click.echo(f"{name}: {total} deleted", err=True)


@click.command()
@click.option("--days", type=click.IntRange(1, 3650), default=30, show_default=True)
@click.option(
    "--sort",
    type=click.Choice(["user_id", *COUNTERS, *SILENT]),
    default="user_id",
    show_default=True,
    help="What the users are sorted by; counts and shares from the highest down.",
)
@as_json
@with_appcontext
def summary(days, sort, as_json):
    """Count numbers, SMS, OTPs and webhooks: in all, per day, and per user.

    A user whose numbers never receive an SMS, a high share_without_sms, does not use them for OTPs.
    """
    since = utcnow().date() - timedelta(days=days - 1)
    users = _with_silent(_totals(UserSummary, since, COUNTERS, "user_id"), since)
    users.sort(key=lambda row: (row[sort], row["without_sms"]), reverse=sort != "user_id")
    show_summary(
        {
            "total": _totals(SystemSummary, since, (*COUNTERS, "unmatched")),
            "states": _states(),
            "days": _totals(SystemSummary, since, (*COUNTERS, "unmatched"), "day"),
            "users": users,
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


def _with_silent(rows, since):
    """The users' rows with their name, and the numbers of this time that never got an SMS."""
    start = datetime.combine(since, datetime.min.time(), UTC)
    assigned = (PhoneNumber.state == "assigned") & (PhoneNumber.assigned_at >= start)
    got = func.count(PhoneNumber.first_sms_at)
    silent = dict(
        db.session.execute(
            select(PhoneNumber.user_id, func.count() - got)
            .where(assigned)
            .group_by(PhoneNumber.user_id)
        ).all()
    )
    names = dict(db.session.execute(select(User.id, User.name)).all())
    for row in rows:
        without = silent.get(row["user_id"], 0)
        row["without_sms"] = without
        row["share_without_sms"] = row["numbers"] and round(without / row["numbers"], 3)
    return [{"user_id": row["user_id"], "name": names[row["user_id"]]} | row for row in rows]


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
