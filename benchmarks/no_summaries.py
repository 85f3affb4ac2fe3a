"""The service without its summaries: what the counting costs, and whether callers queue on it."""

from service import assignment, delivery, ingestion


def count(*_, **__):
    pass


assignment.count = delivery.count = ingestion.count = count

from wsgi import app  # noqa: E402, F401 - after the change
