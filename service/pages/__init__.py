"""The pages: a user gets numbers, reads their codes, sets the webhook, sees what happened."""

from service.pages import activity, filters, finding, new_number, public, settings, webhook_log
from service.pages.blueprint import answer_error, bp

__all__ = [
    "activity",
    "answer_error",
    "bp",
    "filters",
    "finding",
    "new_number",
    "public",
    "settings",
    "webhook_log",
]
