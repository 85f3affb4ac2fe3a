"""What `flask doctor --main-server` finds wrong with the main server's answers."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from flask import current_app

from service import upstream
from service.commands.checks import configured, system_key
from service.numbers.formats import read_codes
from service.outbound import Answer
from service.webhooks.signing import TOLERANCE_SECONDS

# No main server has given this one to anybody
WRONG_KEY = "wrong-key-of-flask-doctor"
# Of the many that a list of countries may have
SHOWN = 3
# A signature is refused at TOLERANCE_SECONDS; what is on its way needs some of them
MAX_CLOCK_SECONDS = TOLERANCE_SECONDS // 5


def check() -> Iterator[str]:
    """A sentence for each thing that is not as docs/main-server.md says."""
    if unset := [*configured()]:
        yield from unset
        return
    yield from system_key()
    if not current_app.config["MAIN_SERVER_WEBHOOK_SECRET"]:
        yield (
            "MAIN_SERVER_WEBHOOK_SECRET is not set, so its SMS need no signature: agree on a "
            "secret, `whsec_` and the base64 of 24 bytes or more"
        )
    try:
        answer = upstream.ask("init", current_app.config["SYSTEM_API_KEY"], upstream.INIT_BYTES)
        yield from _clock(answer)
        yield from _init(answer)
        for endpoint in ("init", "get-number"):
            yield from _refusal(endpoint)
    except upstream.Unreachable as e:
        yield f"it gives no answer: {e}"


def _clock(answer: Answer) -> Iterator[str]:
    """The time in an answer that has just come, by which signatures are dated."""
    try:
        date = parsedate_to_datetime(answer.headers.get("Date", ""))
        ahead = round(date.timestamp() - time.time())
    except (ValueError, OverflowError):
        return  # it tells no time
    if abs(ahead) > MAX_CLOCK_SECONDS:
        yield (
            f"its clock is {abs(ahead)} seconds {'ahead of' if ahead > 0 else 'behind'} ours: at "
            f"{TOLERANCE_SECONDS}, its signatures are refused"
        )


def _init(answer: Answer) -> Iterator[str]:
    """The answer to a call with the right key."""
    body = _json(answer)
    if answer.status != 200:
        cause = {401: "SYSTEM_API_KEY", 403: "SYSTEM_API_KEY"}.get(answer.status, "MAIN_SERVER_URL")
        yield f"init: it answers {answer.status} (is {cause} right?)"
    elif not answer.complete:
        yield f"init: the answer breaks off, or has more than {upstream.INIT_BYTES // 2**20} MiB"
    elif body.get("status") != "success" or not isinstance(body.get("data"), dict):
        yield 'init: the answer is not {"status":"success","data":{…}} in JSON'
    elif errors := list(_flat(upstream.InitSchema().validate(body["data"]))):
        more = f" (and {len(errors) - SHOWN} more)" if len(errors) > SHOWN else ""
        yield f"init: {'; '.join(errors[:SHOWN])}{more}"
    else:
        yield from _lists(body["data"])


def _lists(data: dict[str, Any]) -> Iterator[str]:
    """Countries and operators that have the right types, but do not go together."""
    countries, operators = data["countries"], data["operators"]
    if not countries:
        yield "init: it lists no country"
    for name, rows in (("countries", countries), ("operators", operators)):
        if twice := [id for id, n in Counter(row["id"] for row in rows).items() if n > 1]:
            yield f"init: {name} with the same id: {_some(twice)}"
    if bare := [row["id"] for row in countries if not read_codes(row.get("phone_code"))]:
        yield f"init: countries without a phone_code, which `national` needs: {_some(bare)}"
    known = {None, *(row["id"] for row in countries)}
    if lost := [row["id"] for row in operators if row.get("country_id") not in known]:
        yield f"init: operators of a country that is not listed: {_some(lost)}"


def _refusal(endpoint: str) -> Iterator[str]:
    """The answer to a call with a wrong key; without a country, so that no number is granted."""
    answer = upstream.ask(endpoint, WRONG_KEY, upstream.NUMBER_BYTES)
    body = _json(answer)
    if answer.status != 401:
        yield f"{endpoint}: it answers a wrong key with {answer.status}, and not with 401"
    elif body.get("status") != "error" or not isinstance(body.get("message"), str):
        yield f'{endpoint}: its error is not {{"status":"error","message":"…"}} in JSON'


def _json(answer: Answer) -> dict[str, Any]:
    """The answer's JSON object; an empty one if it is none."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _flat(errors: Any, path: str = "data") -> Iterator[str]:
    """Marshmallow's messages as `data.countries.0.id: Not a valid integer.`"""
    if isinstance(errors, dict):
        for name, inner in errors.items():
            yield from _flat(inner, f"{path}.{name}")
    else:
        yield f"{path}: {' '.join(map(str, errors))}"


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:SHOWN])) + ", …" * (len(ids) > SHOWN)
