"""The migrations of the schema, which Alembic runs."""

import flask_migrate
from flask import Flask

from service.database.engine import db
from service.database.schema import MIGRATIONS

_migrate = flask_migrate.Migrate(db=db, directory=MIGRATIONS, render_as_batch=False)


def init_app(app: Flask) -> None:
    """Give `app` the command `flask db`, and what flask_migrate's functions need."""
    _migrate.init_app(app)


def upgrade(app: Flask) -> None:
    """Run the migrations that the database of `app` lacks."""
    init_app(app)
    with app.app_context():
        flask_migrate.upgrade()
