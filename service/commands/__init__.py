"""The operator's commands: flask users, providers, webhooks, summary, audit, and upkeep."""

from flask import Flask

from service.commands.audit import audit
from service.commands.messages import messages
from service.commands.numbers import numbers
from service.commands.providers import providers
from service.commands.reports import summary
from service.commands.upkeep import demo, doctor, purge
from service.commands.users import users
from service.commands.webhooks import webhooks

COMMANDS = (
    users, providers, numbers, messages, webhooks, summary, audit, purge, doctor, demo,
)  # fmt: skip


def init_app(app: Flask) -> None:
    for command in COMMANDS:
        app.cli.add_command(command)
