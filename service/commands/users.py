"""flask users …: the people who hold an API key."""

from collections.abc import Callable
from typing import Any

import click
from flask.cli import AppGroup
from sqlalchemy import ColumnElement, func, select

from service import audit, retention
from service import users as records
from service.commands.arguments import ROW_ID, USER_ID
from service.commands.output import as_json, readable, row_of, show, show_deleted
from service.database.engine import db
from service.database.models import Attempt, Delivery, Message, User
from service.database.writing import Transaction, release, transact
from service.fields import MAX_ID
from service.keys import new_key, new_secret, sha256
from service.numbers.formats import NumberFormat
from service.webhooks import endpoint, guard


class _DailyLimit(click.IntRange):
    """A number of numbers, or `none`."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if value == "none" else super().convert(value, param, ctx)


DAILY_LIMIT = _DailyLimit(0, MAX_ID)

# The settings that allow a URL, for operators alone: by the end of the sentence that refuses it
ALLOWING = {
    "must begin with https://": "WEBHOOK_REQUIRE_HTTPS=0 allows plain http",
    "is not on the public internet": "WEBHOOK_ALLOWED_NETWORKS allows its network",
}

users = AppGroup("users", help="The people who hold an API key.")


def check_webhook_url(url: str | None) -> None:
    """Refuse a forbidden webhook URL; this resolves its host, so call it outside transactions."""
    try:
        if url is not None and url != "none":
            guard.check_url(url)
    except guard.ForbiddenUrl as e:
        told = [str(e), *(way for end, way in ALLOWING.items() if str(e).endswith(end))]
        raise click.BadParameter(": ".join(told), param_hint="--webhook-url") from e


def find_user(tx: Transaction, user_id: int) -> User:
    """The user with the id that was typed; raises BadParameter."""
    user = tx.session.get(User, user_id)
    if user is None or user.removed_at:
        raise click.BadParameter(f"there is no user {user_id}")
    return user


def user_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The settings of a user, the same for `add` and `set`."""
    option = click.option
    formats = click.Choice([str(number_format) for number_format in NumberFormat])
    for decorate in (
        option("--manager", metavar="ID", help="The manager's user id; `none` for no manager."),
        option("--webhook-url", metavar="URL", help="Where OTPs are POSTed; `none` for nowhere."),
        option("--number-format", type=formats),
        option("--daily-limit", type=DAILY_LIMIT, help="Numbers a UTC day; `none` for any."),
    ):
        command = decorate(command)
    return command


def apply(
    tx: Transaction,
    user: User,
    manager: str | None,
    webhook_url: str | None,
    number_format: str | None,
    daily_limit: int | str | None,
    active: bool | None = None,
    approved: bool | None = None,
) -> None:
    """Set the given options of a user of `tx`; raises BadParameter."""
    if manager is not None:
        user.manager_id = None if manager == "none" else _manager(tx, user, manager)
    if webhook_url is not None:
        endpoint.set_url(tx, user, None if webhook_url == "none" else webhook_url)
    if number_format is not None:
        user.number_format = number_format
    if daily_limit is not None:
        user.daily_limit = daily_limit if isinstance(daily_limit, int) else None
    if active is not None:
        user.active = active
    if approved is not None:
        user.approved = approved
    if not user.may_call:
        records.end_sessions(user)


def _manager(tx: Transaction, user: User, given: str) -> int:
    """The id of the manager; raises BadParameter if nobody would be at the top then."""
    manager = above = find_user(tx, ROW_ID.convert(given, None, None))
    while above.id != user.id and above.manager_id is not None:
        above = tx.session.get_one(User, above.manager_id)
    if above.id == user.id:
        raise click.BadParameter(f"user {user.id} is above them already", param_hint="--manager")
    return manager.id


def user_row(user: User) -> dict[str, Any]:
    settings = ("manager=manager_id", "number_format", "daily_limit", "webhook_url")
    return row_of(user, "id", "name", "active", "approved", *settings)


@users.command("add")
@click.argument("name")
@click.option("--pending", is_flag=True, help="Not approved yet.")
@click.option("--inactive", is_flag=True, help="Not active.")
@user_options
@as_json
def users_add(name: str, pending: bool, inactive: bool, as_json: bool, **options: Any) -> None:
    """Add a user; the API key and the webhook secret are shown only now."""
    try:
        name = records.check_name(name)
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="NAME") from e
    if namesake := db.session.scalar(select(User.id).where(User.name == name).limit(1)):
        click.echo(f"Warning: user {namesake} has this name already.", err=True)
    check_webhook_url(options["webhook_url"])
    user, key, secret = transact(_add, name, not inactive, not pending, options)
    show(user_row(user) | {"api_key": key, "webhook_secret": secret}, as_json)


def _add(
    tx: Transaction, name: str, active: bool, approved: bool, options: dict[str, Any]
) -> tuple[User, str, str]:
    user, key, secret = records.create(tx, name, active=active, approved=approved)
    apply(tx, user, **options)
    audit.record(tx, "user_added", user.id, active=active, approved=approved)
    return user, key, secret


@users.command("set")
@click.argument("user_id", type=ROW_ID, metavar="ID")
@click.option("--active/--inactive", default=None)
@click.option("--approved/--pending", default=None)
@user_options
@as_json
def users_set(user_id: int, as_json: bool, **options: Any) -> None:
    """Change a user."""
    if all(value is None for value in options.values()):
        raise click.UsageError("say what to change: see `flask users set --help`")
    check_webhook_url(options["webhook_url"])
    show(user_row(transact(_set, user_id, options)), as_json)


def _set(tx: Transaction, user_id: int, options: dict[str, Any]) -> User:
    user = find_user(tx, user_id)
    apply(tx, user, **options)
    changed = {name: value for name, value in options.items() if name != "webhook_url"}
    if any(value is not None for value in changed.values()):
        audit.record(tx, "user_changed", user.id, **changed)
    return user


@users.command("list")
@click.option("--pending", is_flag=True, help="Only who is not approved yet.")
@click.option("--name", metavar="PART", help="Only whose name has this in it.")
@as_json
def users_list(pending: bool, name: str | None, as_json: bool) -> None:
    """List the users."""
    query = select(User).where(User.removed_at.is_(None)).order_by(User.id)
    if pending:
        query = query.where(~User.approved)
    if name:
        query = query.where(User.name.icontains(name, autoescape=True))
    show([user_row(user) for user in db.session.scalars(query)], as_json)


@users.command("rotate-key")
@click.argument("user_id", type=ROW_ID, metavar="ID")
@as_json
def users_rotate_key(user_id: int, as_json: bool) -> None:
    """Replace a user's API key; the new one is shown only now, the old one stops at once."""
    key = new_key("usr")
    show({"id": transact(_set_key, user_id, sha256(key)), "api_key": key}, as_json)


def _set_key(tx: Transaction, user_id: int, key_hash: str) -> int:
    user = find_user(tx, user_id)
    records.set_key(tx, user, key_hash)
    return user.id


@users.command("rotate-secret")
@click.argument("user_id", type=ROW_ID, metavar="ID")
@as_json
def users_rotate_secret(user_id: int, as_json: bool) -> None:
    """Replace a user's webhook secret, shown only now; both sign for 24 hours."""
    secret = new_secret()
    show({"id": transact(_set_secret, user_id, secret), "webhook_secret": secret}, as_json)


def _set_secret(tx: Transaction, user_id: int, secret: str) -> int:
    user = find_user(tx, user_id)
    endpoint.rotate_secret(tx, user.id, secret)
    return user.id


@users.command("remove")
@click.argument("user_id", metavar="ID", type=USER_ID)
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def users_remove(user_id: int, yes: bool, as_json: bool) -> None:
    """Forget a user: name, key, webhook, messages, deliveries. Numbers and counts stay as history.

    It may be stopped, and run again to go on.
    """
    mine: dict[type[retention.Record], ColumnElement[bool]] = {
        Attempt: Attempt.delivery_id.in_(select(Delivery.id).where(Delivery.user_id == user_id)),
        Delivery: Delivery.user_id == user_id,
        Message: Message.user_id == user_id,
    }
    counts = {
        model.__tablename__: db.session.scalar(select(func.count()).where(condition)) or 0
        for model, condition in mine.items()
    }
    release()
    if not yes:
        found = ", ".join(f"{n} {table}" for table, n in counts.items())
        name = readable(db.session.get_one(User, user_id).name)
        release()
        question = f"Remove user {user_id} ({name}), with {found}, for good?"
        click.confirm(question, abort=True, err=True)
    transact(_remove, user_id)
    for model, condition in mine.items():
        deleted = retention.delete_in_batches(model, condition, show_deleted)
        counts[model.__tablename__] = deleted
    retention.truncate_log()
    show({"id": user_id} | counts, as_json)


def _remove(tx: Transaction, user_id: int) -> None:
    managed = tx.session.scalars(
        select(User.id).where(User.manager_id == user_id, User.removed_at.is_(None))
    ).all()
    if managed:
        sentence = f"they manage {', '.join(map(str, managed))}: give these another manager first"
        raise click.BadParameter(sentence, param_hint="ID")
    records.remove(tx, tx.lock_user(user_id))
