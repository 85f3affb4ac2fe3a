"""Whether the database schema is current."""

from functools import cache

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import current_app

from service.database.engine import db
from service.database.writing import release


def is_current() -> bool:
    """Whether the last migration has run; raises SQLAlchemyError if the database is down."""
    try:
        found = MigrationContext.configure(db.session.connection()).get_current_heads()
    finally:
        release()
    return set(found) == _heads(current_app.extensions["migrate"].directory)


@cache
def _heads(directory: str) -> set[str]:
    # This reads every migration: done once per process, since /healthz is called often
    return set(ScriptDirectory(directory).get_heads())


def revisions() -> set[str]:
    """All that the schema has ever been, the current one included."""
    script = ScriptDirectory(current_app.extensions["migrate"].directory)
    return {revision.revision for revision in script.walk_revisions()}
