"""flask purge, backup, restore, doctor, demo, version: what keeps a deployment clean and safe."""

import platform
import sqlite3
from importlib import metadata
from pathlib import Path

import click
from flask import current_app
from flask.cli import with_appcontext

from service import audit, retention
from service.commands import checks, main_server
from service.commands.output import as_json, readable, show, show_deleted
from service.database import schema
from service.database.backup import Unfit, back_up, counts, opened
from service.database.backup import restore as restore_from
from service.database.engine import db
from service.database.health import NOT_CURRENT
from service.database.writing import release, transact
from service.version import VERSION


@click.command()
@as_json
@with_appcontext
def purge(as_json: bool) -> None:
    """Delete messages and deliveries older than RETENTION_DAYS; numbers and counts stay.

    The worker does it daily.
    """
    show(retention.purge(show_deleted), as_json)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@as_json
@with_appcontext
def backup(file: Path, as_json: bool) -> None:
    """Copy the SQLite database to a new FILE while the service runs."""
    database = _sqlite_file(
        "this copies SQLite only; for MySQL use: mariadb-dump --single-transaction --quick "
        "--hex-blob --default-character-set=utf8mb4 DATABASE"
    )
    try:
        back_up(database, file)
    except FileExistsError as e:
        raise click.BadParameter(f"{file} exists already", param_hint="FILE") from e
    except OSError as e:
        raise click.ClickException(f"{file} cannot be written: {e.strerror}") from e
    except sqlite3.Error as e:
        raise click.ClickException(f"the copy failed: {e.sqlite_errorname}") from e
    transact(audit.record, "backed_up")
    show({"file": str(file), "bytes": file.stat().st_size}, as_json)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@with_appcontext
def restore(file: Path, yes: bool, as_json: bool) -> None:
    """Replace what is in the SQLite database by the backup FILE; stop web and worker first."""
    database = _sqlite_file(
        "this restores SQLite only; for MySQL load the dump into an empty database: "
        "mariadb --default-character-set=utf8mb4 DATABASE < FILE"
    )
    if database.exists() and file.samefile(database):
        raise click.BadParameter(f"{file} is the database itself", param_hint="FILE")
    try:
        with opened(file, schema.revisions()) as source:
            found = counts(source)
            if not yes:
                told = ", ".join(f"{n} {table}" for table, n in found.items())
                click.confirm(
                    f"Replace all of {database} by {file} ({told})?", abort=True, err=True
                )
            release()
            db.engine.dispose()
            restore_from(source, database)
    except Unfit as e:
        raise click.ClickException(str(e)) from e
    if schema.is_current():
        transact(audit.record, "restored")
    else:
        click.echo(f"restored; {NOT_CURRENT}", err=True)
    show({"file": str(file), **found}, as_json)


def _sqlite_file(otherwise: str) -> Path:
    """The database's file; raises ClickException, which says `otherwise`, if it is none."""
    name = db.engine.url.database
    if db.engine.dialect.name != "sqlite" or not name or name == ":memory:":
        raise click.ClickException(otherwise)
    return Path(name)


@click.command()
@click.option(
    "--main-server",
    "main_server_only",
    is_flag=True,
    help="Try the main server alone, thoroughly; no number is asked for.",
)
@as_json
@with_appcontext
def doctor(main_server_only: bool, as_json: bool) -> None:
    """Report what is misconfigured; exits 1 if anything is."""
    findings = list(main_server.check()) if main_server_only else checks.run()
    if not main_server_only and (purged := checks.last_purge()):
        click.echo(f"last purge: {readable(purged)} UTC", err=True)
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
@click.option(
    "--days", type=click.IntRange(0, 366), default=0, help="With so many days of made-up history."
)
@with_appcontext
def demo(once: bool, port: int | None, days: int) -> None:
    """Run the service with a sandbox main server and a webhook receiver, all on this machine."""
    from service import demo as demo_module  # production processes never load the sandbox

    port = current_app.config["PORT"] if port is None else port
    raise SystemExit(demo_module.run(once, port, days))


@click.command()
@as_json
def version(as_json: bool) -> None:
    """The version of this service; `flask --version`, which loads no app, knows Flask's only."""
    flask = metadata.version("flask")
    show({"service": VERSION, "python": platform.python_version(), "flask": flask}, as_json)
