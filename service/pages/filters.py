"""Template filters: results as sentences, times, numbers."""

import re
from datetime import datetime
from typing import Any

from flask import session
from markupsafe import Markup, escape

from service.database.columns import utcnow
from service.database.models import DeliveryState, Reason, Result
from service.pages.blueprint import PAGE, bp
from service.pages.session import is_confirmed

# What the states of a delivery are called on the pages
STATES = {state: str(state) for state in DeliveryState} | {DeliveryState.DEAD: "failed"}
# What a delivery's result means to its owner
RESULTS: dict[str, str] = {
    Reason.TIMEOUT: "no answer in time",
    Reason.DNS: "the host name was not found",
    Reason.CONNECT: "no connection",
    Reason.CONNECTION: "the connection broke",
    Reason.TLS: "the TLS certificate or handshake was refused",
    Reason.FORBIDDEN: "the address may not be called",
    Reason.URL: "the URL cannot be used",
    Reason.DISABLED: "the webhook is disabled",
    Reason.USER_INACTIVE: "the user is inactive",
    Reason.NO_URL: "no Webhook URL is set",
    Reason.CIRCUIT_OPEN: "waiting until the endpoint is tried again",
    Reason.BUSY: "waiting for its turn",
    Reason.SECRET_UNREADABLE: "the webhook secret has to be rotated",
}


@bp.app_template_filter("result")
def result_sentence(result: str | None) -> str:
    """A delivery's result as its owner understands it."""
    if result and Result(result).is_status:
        return f"answered {result}" + " (a redirect is not followed)" * (result[0] == "3")
    return RESULTS.get(result or "", result or "not tried yet")


@bp.app_template_test("success")
def is_success(result: str | None) -> bool:
    return Result(result or "").is_success


@bp.app_template_filter("moment")
def moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


@bp.app_template_filter("code")
def code(text: str) -> Markup:
    """`text` escaped, what is between backticks as code."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))


@bp.app_context_processor
def template_globals() -> dict[str, Any]:
    return {
        "now": utcnow,
        "revealed": lambda: session.get("reveal", False) and is_confirmed(),
        "page_size": PAGE,
        "state_names": STATES,
    }
