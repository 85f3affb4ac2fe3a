"""Runs the migrations on the application's database; one process at a time."""

from contextlib import contextmanager

from alembic import context
from flask import current_app
from sqlalchemy import text

from service.database.engine import WRITE, db
from service.database.columns import UTCDateTime

DATETIME = "sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')"


def render_item(kind, item, autogen_context):
    """Migrations stand alone: our own column type is written as what it is in the database."""
    if kind == "type" and isinstance(item, UTCDateTime):
        autogen_context.imports.add("from sqlalchemy.dialects import mysql")
        return DATETIME
    return False


@contextmanager
def one_at_a_time(connection):
    """MySQL commits every DDL statement by itself: a lock of its own keeps others out.

    SQLite needs none: its write lock makes a second release process wait.
    """
    if db.engine.dialect.name == "sqlite":
        yield
        return
    # A change to a big table takes longer than any answer that the service waits for
    connection.connection.driver_connection._read_timeout = None
    if not connection.scalar(text("SELECT GET_LOCK('otp_service_migrations', 120)")):
        raise RuntimeError("another process has been migrating the database for two minutes")
    connection.commit()
    try:
        yield
    finally:
        connection.scalar(text("SELECT RELEASE_LOCK('otp_service_migrations')"))
        connection.commit()


def run():
    args = current_app.extensions["migrate"].configure_args
    sqlite = db.engine.dialect.name == "sqlite"
    with db.engine.connect() as connection, one_at_a_time(connection):
        context.configure(
            connection=connection,
            target_metadata=db.metadata,
            render_item=render_item,
            transactional_ddl=sqlite,
            **args,
        )
        with context.begin_transaction():
            if sqlite:
                connection.exec_driver_sql(WRITE)
            context.run_migrations()


run()
