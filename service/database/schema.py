"""Whether the database schema is current; without Alembic, which a web process need not load."""

from functools import cache
from pathlib import Path

from sqlalchemy import inspect, text

from service.database.engine import db
from service.database.writing import release

MIGRATIONS = Path(__file__).parents[1] / "migrations"


def is_current() -> bool:
    """Whether the last migration has run; raises SQLAlchemyError if the database is down."""
    try:
        connection = db.session.connection()
        if not inspect(connection).has_table("alembic_version"):
            return False
        found = connection.scalars(text("SELECT version_num FROM alembic_version")).all()
    finally:
        release()
    return found == [max(revisions())]


@cache
def revisions() -> set[str]:
    """All that the schema has ever been, the current one, which is the highest, included."""
    files = (MIGRATIONS / "versions").glob("[0-9]*.py")
    return {file.name.partition("_")[0] for file in files}
