"""flask purge, doctor, demo: keeping a deployment clean and healthy."""

from datetime import timedelta

import click
from flask import current_app
from flask.cli import with_appcontext
from sqlalchemy import ColumnElement, delete, select

from service.commands import checks
from service.commands.output import as_json, show
from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import Attempt, AuditEntry, Delivery, DeliveryState, Message
from service.database.writing import Transaction, release, transact

PURGE_BATCH = 500
Purged = Attempt | Delivery | Message | AuditEntry


@click.command()
@as_json
@with_appcontext
def purge(as_json: bool) -> None:
    """Delete messages and deliveries older than RETENTION_DAYS; numbers and counts stay."""
    before = utcnow() - timedelta(days=current_app.config["RETENTION_DAYS"])
    is_over = (Delivery.created_at < before) & (Delivery.state != DeliveryState.PENDING)
    is_undelivered = ~select(Delivery.id).where(Delivery.message_id == Message.id).exists()
    old_delivery = select(Delivery.id).where(is_over)
    is_old_attempt = (Attempt.started_at < before) | Attempt.delivery_id.in_(old_delivery)
    trail_before = utcnow() - timedelta(days=12 * current_app.config["RETENTION_DAYS"])
    counts = {
        "attempts": _purge(Attempt, is_old_attempt),
        "deliveries": _purge(Delivery, is_over),
        "messages": _purge(Message, (Message.created_at < before) & is_undelivered),
        "audit_entries": _purge(AuditEntry, AuditEntry.at < trail_before),
    }
    show(counts, as_json)


def _purge(model: type[Purged], is_old: ColumnElement[bool]) -> int:
    """Delete the rows in batches, each in its own short transaction; returns their number."""
    total = 0
    while True:
        ids = list(db.session.scalars(select(model.id).where(is_old).limit(PURGE_BATCH)))
        if not ids:
            release()
            return total
        transact(_delete, model, ids)
        total += len(ids)
        click.echo(f"{model.__tablename__}: {total} deleted", err=True)


def _delete(tx: Transaction, model: type[Purged], ids: list[int]) -> None:
    tx.execute(delete(model).where(model.id.in_(ids)))


@click.command()
@as_json
@with_appcontext
def doctor(as_json: bool) -> None:
    """Report what is misconfigured; exits 1 if anything is."""
    findings = checks.run()
    if as_json:
        show({"ok": not findings, "problems": findings}, True)
    else:
        click.echo("\n".join(f"problem: {finding}" for finding in findings) or "ok")
    if findings:
        raise SystemExit(1)


@click.command()
@click.option("--once", is_flag=True, help="Number, SMS, webhook, checked; then exit.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="The service's port (default: PORT or 8000)."
)
@with_appcontext
def demo(once: bool, port: int | None) -> None:
    """Run the service with a sandbox main server and a webhook receiver, all on this machine."""
    from service import demo as demo_module  # production processes never load the sandbox

    raise SystemExit(demo_module.run(once, current_app.config["PORT"] if port is None else port))
