"""Runs the migrations on the application's database; one process at a time."""

from alembic import context
from flask import current_app

from service.models import UTCDateTime, db

DATETIME = "sa.DateTime().with_variant(mysql.DATETIME(fsp=6), 'mysql', 'mariadb')"


def render_item(kind, item, autogen_context):
    """Migrations stand alone: our own column type is written as what it is in the database."""
    if kind == "type" and isinstance(item, UTCDateTime):
        autogen_context.imports.add("from sqlalchemy.dialects import mysql")
        return DATETIME
    return False


def run():
    args = current_app.extensions["migrate"].configure_args
    sqlite = db.engine.dialect.name == "sqlite"
    # BEGIN IMMEDIATE: a second release process waits, then finds nothing to do
    with db.engine.connect().execution_options(writes=True) as connection:
        context.configure(
            connection=connection,
            target_metadata=db.metadata,
            render_item=render_item,
            transactional_ddl=sqlite,
            **args,
        )
        with context.begin_transaction():
            context.run_migrations()


run()
