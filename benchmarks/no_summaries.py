"""The service without its summaries: what the counting costs, and whether callers queue on it."""

from service.database.writing import Transaction


def count(*_, **__):
    pass


assert callable(Transaction.count), "nothing to take out: has counting moved?"
Transaction.count = count

from wsgi import app  # noqa: E402, F401 - after the change
