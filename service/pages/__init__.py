"""The pages: a user logs in, sets the webhook, and sees what happened."""

from service.pages import activity, filters, public, settings, webhook_log
from service.pages.blueprint import answer_error, bp

__all__ = ["activity", "answer_error", "bp", "filters", "public", "settings", "webhook_log"]
