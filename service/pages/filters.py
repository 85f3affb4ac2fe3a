"""Template filters: results as sentences, times, numbers."""

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from flask import session
from markupsafe import Markup, escape

from service import search
from service.database.columns import utcnow
from service.database.models import DeliveryState, Reason, Result, User
from service.pages.blueprint import bp, kept
from service.pages.session import is_confirmed
from service.webhooks import endpoint

# What the states of a delivery are called on the pages
STATES = {state: str(state) for state in DeliveryState} | {DeliveryState.DEAD: "failed"}
# What a delivery's result means to its owner
RESULTS: dict[str, str] = {
    Reason.TIMEOUT: "no answer in time",
    Reason.DNS: "the host name was not found",
    Reason.CONNECT: "no connection",
    Reason.CONNECTION: "the connection broke",
    Reason.TLS: "the TLS certificate or handshake was refused",
    Reason.FORBIDDEN: "the address may not be called; the operator can allow its network",
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


@bp.app_template_filter("ago")
def ago(time: datetime) -> str:
    """How long ago `time` was, in one unit, rounded down."""
    seconds = max(0, int((utcnow() - time).total_seconds()))
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit if seconds >= 2 * size else unit.rstrip('s')} ago"
    return f"{seconds} s ago"


@bp.app_template_filter("counted")
def counted(count: int) -> str:
    """A number of rows, which were counted up to BOUND."""
    return f"{min(count, search.BOUND):,}" + "+" * (count > search.BOUND)


@bp.app_template_filter("bars")
def bars(days: Sequence[Any]) -> dict[str, Any]:
    """The heights of a chart of `days`, from 0 to 1, on a scale where ten times as much is one step
    more: one peak does not flatten the rest. `lines` are the counts beside the scale."""
    counts = {name: [getattr(day, name, None) or 0 for day in days] for name in ("numbers", "otps")}
    top = max(map(max, counts.values()), default=0)
    scale = math.log1p(top) or 1
    lines = [step for step in (10**power for power in range(7)) if 2 * step < top] + [top]
    return {
        "top": top,
        "lines": [(line, math.log1p(line) / scale) for line in lines],
        "heights": {name: [math.log1p(n) / scale for n in of] for name, of in counts.items()},
    }


@bp.app_template_filter("code")
def code(text: str) -> Markup:
    """`text` escaped, what is between backticks as code."""
    return Markup(re.sub("`(.+?)`", r"<code>\1</code>", str(escape(text))))


def waiting_webhooks(user: User) -> int:
    """How many webhooks are sent once a paused or disabled endpoint is resumed."""
    return search.count(endpoint.waits_for_resuming(user))


@bp.app_context_processor
def template_globals() -> dict[str, Any]:
    return {
        "now": utcnow,
        "revealed": lambda: session.get("reveal", False) and is_confirmed(),
        "kept": kept,
        "bound": search.BOUND,
        "waiting_webhooks": waiting_webhooks,
        "next_attempt": endpoint.next_attempt,
        "state_names": STATES,
    }
