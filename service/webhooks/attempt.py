"""One signed POST to a user's endpoint, and its result."""

import time
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from flask import Flask, current_app

from service import outbound
from service.database.columns import utcnow
from service.database.models import Delivery, Reason, Result, Trigger, User
from service.keys import Unreadable
from service.webhooks import guard
from service.webhooks.signing import sign

# Of the receiver's answer, whose status is what counts: bytes that are read, seconds that its body
# is waited for, characters that are kept
ANSWER_BYTES = 4096
BODY_SECONDS = 1
KEPT_CHARACTERS = 1024


class Attempt(NamedTuple):
    """A POST that was made, or that was impossible.

    `answer` is the beginning of what the receiver answered, as far as it came in time;
    `retry_after` its header as given. `is_cut` says that it had less than WEBHOOK_TIMEOUT, and ran
    out of it, which proves nothing about the receiver.
    """

    trigger: Trigger
    url: str | None
    started_at: datetime
    ms: int
    result: Result
    answer: str | None
    retry_after: str | None
    is_cut: bool = False


class PutOff(NamedTuple):
    """An attempt that was not made: why, and until when it has to wait."""

    reason: Reason
    until: datetime


def init_app(app: Flask) -> None:
    session = outbound.new_session(ca_bundle=app.config["CA_BUNDLE"])
    app.extensions["webhook_session"] = session


def post(
    user: User, secrets: Iterable[str], delivery: Delivery, trigger: Trigger, seconds: float
) -> Attempt:
    """POST the delivery, signed with `secrets`, to the user's endpoint, in `seconds` or the shorter
    WEBHOOK_TIMEOUT; never raises."""
    started_at, started = utcnow(), time.monotonic()
    timeout = current_app.config["WEBHOOK_TIMEOUT"]
    result, answer, retry_after = _post(user, secrets, delivery, min(seconds, timeout))
    ms = round((time.monotonic() - started) * 1000)
    is_cut = result == Reason.TIMEOUT and seconds < timeout
    outcome = Result(result), answer, retry_after, is_cut
    return Attempt(trigger, user.webhook_url, started_at, ms, *outcome)


def _post(
    user: User, secrets: Iterable[str], delivery: Delivery, seconds: float
) -> tuple[str, str | None, str | None]:
    """(the Result as text, the beginning of the answer, its Retry-After)."""
    if not user.may_call:
        return Reason.USER_INACTIVE, None, None
    if user.webhook_disabled_at:
        return Reason.DISABLED, None, None
    if not user.webhook_url:
        return Reason.NO_URL, None, None
    timestamp = int(time.time())
    try:
        guard.check_form(user.webhook_url)
        signed = [sign(key, delivery.webhook_id, timestamp, delivery.body) for key in secrets]
        answer = outbound.call(
            current_app.extensions["webhook_session"],
            "POST",
            user.webhook_url,
            seconds=seconds,
            limit=ANSWER_BYTES,
            body_seconds=BODY_SECONDS,
            repeatable=True,  # by its webhook-id, which stays the same
            may_dial=guard.may_dial,
            data=delivery.body,
            headers={
                "Content-Type": "application/json",
                "webhook-id": delivery.webhook_id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": " ".join(signed),
            },
        )
    except Unreadable:
        return Reason.SECRET_UNREADABLE, None, None
    except guard.ForbiddenUrl:
        return Reason.FORBIDDEN, None, None
    except outbound.CallFailed as e:
        return e.kind, None, None
    kept = answer.body.decode("utf-8", "replace")[:KEPT_CHARACTERS].replace("\0", "\ufffd")
    return str(answer.status), kept, answer.headers.get("Retry-After")
