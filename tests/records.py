"""What the tests read from the records, and change in them."""

from sqlalchemy import func, select

from service.database.engine import db
from service.database.models import Message
from service.database.writing import transact


def messages(app):
    with app.app_context():
        return db.session.scalars(select(Message).order_by(Message.id)).all()


def change(app, model, id, **values):
    with app.app_context():
        row = db.session.get(model, id)
        transact(lambda tx: [setattr(row, name, value) for name, value in values.items()])


def totals(app, model, *names):
    with app.app_context():
        return tuple(
            db.session.execute(
                select(*(func.coalesce(func.sum(getattr(model, n)), 0) for n in names))
            ).one()
        )
