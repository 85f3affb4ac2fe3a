"""flask secrets …: what is stored encrypted under SECRET_KEY."""

from collections import Counter
from typing import Any

import click
from flask.cli import AppGroup
from sqlalchemy import select, update
from sqlalchemy.orm import InstrumentedAttribute

from service import audit
from service.commands.output import as_json, show
from service.database.engine import db
from service.database.models import Provider, User
from service.database.writing import Transaction, release, transact
from service.keys import Unreadable, reseal

secrets = AppGroup("secrets", help="What is stored encrypted under SECRET_KEY.")
BATCH = 200
SEALED = (User.webhook_secret, User.webhook_old_secret, Provider.secret)


@secrets.command("reseal")
@as_json
def secrets_reseal(as_json: bool) -> None:
    """Encrypt every stored secret under SECRET_KEY, so that SECRET_KEY_FALLBACKS can be emptied.

    It may be stopped, and run again; nothing waits for it.
    """
    counts = Counter({"resealed": 0, "unreadable": 0, "current": 0})
    for column in SEALED:
        last = 0
        while rows := _next(column, last):
            counts.update(transact(_reseal, column, rows))
            last = rows[-1][0]
            click.echo(f"{column.class_.__tablename__}.{column.key}: up to id {last}", err=True)
    transact(audit.record, "secrets_resealed", None, **counts)
    show(dict(counts), as_json)


def _next(column: InstrumentedAttribute[Any], last: int) -> list[tuple[int, str]]:
    """The next ids and sealed secrets after the id `last`."""
    model = column.class_
    query = select(model.id, column).where(model.id > last, column.is_not(None), column != "")
    rows = db.session.execute(query.order_by(model.id).limit(BATCH)).all()
    release()
    return [(id, sealed) for id, sealed in rows]


def _reseal(
    tx: Transaction, column: InstrumentedAttribute[Any], rows: list[tuple[int, str]]
) -> "Counter[str]":
    """Reseal those that are still as they were read: one that was rotated meanwhile is current."""
    counts = Counter[str]()
    for id, sealed in rows:
        try:
            new = reseal(sealed)
        except Unreadable:
            counts["unreadable"] += 1
            continue
        if new == sealed:
            counts["current"] += 1
            continue
        as_read = update(column.class_).where(column.class_.id == id, column == sealed)
        tx.execute(as_read.values({column.key: new}))
        counts["resealed"] += 1
    return counts
