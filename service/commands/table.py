"""All commands: flask users, providers, webhooks, summary, audit, upkeep, and db."""

import logging
from collections.abc import Callable
from typing import Any

import click
from flask import Flask
from flask_migrate.cli import db as migrations
from sqlalchemy.exc import SQLAlchemyError

from service.commands.audit import audit
from service.commands.messages import messages
from service.commands.numbers import numbers
from service.commands.providers import providers
from service.commands.reports import summary
from service.commands.secrets import secrets
from service.commands.upkeep import backup, demo, doctor, purge, restore, version
from service.commands.users import users
from service.commands.webhooks import webhooks
from service.database import migrating
from service.database.health import explain
from service.logs import describe, event

COMMANDS = (
    users, providers, numbers, messages, webhooks, summary, audit, secrets, purge, backup, restore,
    doctor, demo, version,
)  # fmt: skip


def _told(invoke: Callable[[click.Context], Any]) -> Callable[[click.Context], Any]:
    """Let a command say in one sentence why it failed, and exit 1; the cause is in the log."""

    def run(context: click.Context) -> Any:
        try:
            return invoke(context)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click itself ends quietly when nobody reads on: `flask … | head`
        except Exception as e:
            event("command_failed", logging.ERROR, exc_info=True)
            unforeseen = f"this failed unexpectedly: {describe(e)}"
            sentence = explain(e) if isinstance(e, SQLAlchemyError) else unforeseen
            raise click.ClickException(sentence) from e

    return run


for command in (*COMMANDS, migrations):
    command.invoke = _told(command.invoke)  # type: ignore[method-assign]


def init_app(app: Flask) -> None:
    migrating.init_app(app)
    for command in COMMANDS:
        app.cli.add_command(command)
