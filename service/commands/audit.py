"""flask audit: who changed what, or read it in the name of another."""

import json
from datetime import datetime

import click
from flask.cli import with_appcontext
from sqlalchemy import select

from service.commands.arguments import TIME, USER_ID
from service.commands.output import as_json, limit_option, limited, row_of, show
from service.database.models import AuditEntry


@click.command()
@click.option("--user", "user_id", type=USER_ID, help="About this user, or by them.")
@click.option("--since", type=TIME, help="From this time on (UTC).")
@limit_option(100)
@as_json
@with_appcontext
def audit(user_id: int | None, since: datetime | None, limit: int, as_json: bool) -> None:
    """Show the audit trail, newest first: who did what, when, and from which address.

    It holds no key, code or text, and is kept for 12 times RETENTION_DAYS.
    """
    query = select(AuditEntry).order_by(AuditEntry.id.desc())
    if user_id is not None:
        query = query.where(AuditEntry.user_id == user_id)
    if since is not None:
        query = query.where(AuditEntry.at >= since)
    columns = ("id", "at", "actor", "address", "action", "user=user_id")
    rows = [
        row_of(entry, *columns) | {"details": json.loads(entry.details or "{}")}
        for entry in limited(query, limit)
    ]
    show(rows, as_json)
