"""The main server's client: init and get_number, each one call with a typed result."""

import json
import logging
import time
from typing import Any, NamedTuple
from urllib.parse import quote

from flask import Flask, current_app
from marshmallow import INCLUDE, Schema, ValidationError, fields, validate

from service import limits, outbound
from service.cache import SharedCache
from service.errors import InitBusy
from service.fields import MAX_ID, Phone, Text
from service.logs import event
from service.metrics import MAIN_SERVER_CALLS, MAIN_SERVER_SECONDS

INIT_BYTES = 8 * 2**20
NUMBER_BYTES = 256 * 2**10


class _Kept(Schema):
    """Data from the main server; unknown fields are kept."""

    class Meta:
        unknown = INCLUDE


class CountrySchema(_Kept):
    """A country of the main server."""

    id = fields.Integer(required=True, strict=True)
    name = fields.String()
    phone_code = Text(allow_none=True)


class OperatorSchema(_Kept):
    """An operator of the main server."""

    id = fields.Integer(required=True, strict=True, validate=validate.Range(0, MAX_ID))
    name = fields.String(required=True, validate=validate.Length(max=255))
    country_id = fields.Integer(strict=True, allow_none=True, validate=validate.Range(0, MAX_ID))


class InitSchema(_Kept):
    """`data` of the main server's init."""

    countries = fields.List(fields.Nested(CountrySchema), required=True)
    operators = fields.List(fields.Nested(OperatorSchema), required=True)


_OPERATOR = OperatorSchema(partial=("name",))
_PHONE = Phone()


class UpstreamError(Exception):
    """Base of all main server errors; not raised directly."""

    granted = False  # whether a number may have been granted despite the error
    log_words: str | None = None  # what broke, in our own words


class NotConfigured(UpstreamError):
    """MAIN_SERVER_URL or SYSTEM_API_KEY is not set."""


class Unreachable(UpstreamError):
    """No answer: not connected, cut off, or out of time."""

    def __init__(self, failure: outbound.CallFailed) -> None:
        super().__init__(failure.kind)
        self.log_words = failure.kind
        self.granted = failure.sent


class NotTheContract(UpstreamError):
    """An answer that breaks the contract: HTML, a redirect, wrong types, missing lists."""

    granted = True

    def __init__(self, log_words: str) -> None:
        super().__init__(log_words)
        self.log_words = log_words


class Refused(UpstreamError):
    """The main server answered with an error: its `status`, and its `message` or None."""

    def __init__(self, status: int, message: str | None) -> None:
        super().__init__(f"{status} {message}")
        self.log_words = str(status)
        self.status, self.message = status, message
        self.granted = status >= 500


class NoNumber(UpstreamError):
    """The main server has no number available."""


class Grant(NamedTuple):
    """A number granted by the main server: its digits, and the operators sent along with it."""

    digits: str
    operators: list[dict[str, Any]]


def init_app(app: Flask) -> None:
    cache = SharedCache[dict[str, Any]](app.config["INIT_CACHE_SECONDS"])
    app.extensions["upstream"] = {
        "session": outbound.new_session(ca_bundle=app.config["CA_BUNDLE"]),
        "init": cache,
        "heeds_keys": False,
    }


def init() -> dict[str, Any]:
    """The main server's `{"countries": […], "operators": […]}`, cached. Raises UpstreamError."""
    cache: SharedCache[dict[str, Any]] = current_app.extensions["upstream"]["init"]
    return cache.get(_fetch_init)


def known_init() -> dict[str, Any] | None:
    """What init() would give without asking; None if it would have to."""
    cache: SharedCache[dict[str, Any]] = current_app.extensions["upstream"]["init"]
    return cache.fresh()


def init_in_turn(user_id: int | None) -> dict[str, Any]:
    """init(), holding a place among those who wait for the main server where it has to be asked.
    Raises UpstreamError or InitBusy."""
    if known := known_init():
        return known
    with limits.share("main_server").take(user_id) as has_place:
        if not has_place:
            raise InitBusy
        return init()


def get_number(country_id: int, operator_id: int | None, idempotency_key: str) -> Grant:
    """Ask the main server for one number. Raises UpstreamError.

    Whether a request that got no answer was received, and a number granted, nobody can tell. So it
    is repeated only (on a fresh connection, where a kept one broke) if the main server heeds the
    Idempotency-Key: it said so by returning the key with its last number, as this service does.
    To any other main server each request goes once, and on no connection that was idle for long.
    """
    params: dict[str, Any] = {"country_id": country_id, "number_format": "full"}
    if operator_id is not None:
        params["operator_id"] = operator_id
    if current_app.config["MAIN_SERVER_USER_ID"]:
        params["user_id"] = current_app.config["MAIN_SERVER_USER_ID"]
    try:
        data = _get("get-number", NUMBER_BYTES, params, idempotency_key)
    except Refused as e:
        if e.status == 404:
            raise NoNumber from e
        raise
    if not data or not (number := data.get("phone_number")):
        raise NoNumber
    try:
        digits = _PHONE.deserialize(number)
    except ValidationError as e:
        raise NotTheContract("get-number: phone_number") from e
    return Grant(digits, _operators(data, country_id))


def _fetch_init() -> dict[str, Any]:
    data = _get("init", INIT_BYTES) or {}
    if errors := InitSchema().validate(data):
        raise NotTheContract(f"init: {sorted(errors)}")
    return data


def _operators(data: dict[str, Any], country_id: int) -> list[dict[str, Any]]:
    """The valid ones of `data.operator` and `data.operators`; bad ones must not cost the number."""
    listed = data.get("operators")
    good = []
    for operator in [data.get("operator"), *(listed if isinstance(listed, list) else [])]:
        if isinstance(operator, dict) and not _OPERATOR.validate(operator):
            good.append({"country_id": country_id} | operator)
        elif operator is not None:
            event("operator_ignored", logging.WARNING, country_id=country_id)
    return good


def _get(
    endpoint: str, limit: int, params: dict[str, Any] | None = None, once: str | None = None
) -> dict[str, Any] | None:
    """`data` of the main server's success answer, or an UpstreamError."""
    key = current_app.config["SYSTEM_API_KEY"]
    if not key or not current_app.config["MAIN_SERVER_URL"]:
        raise NotConfigured
    answer = ask(endpoint, key, limit, params, once)
    data = _data(answer)
    if once:
        current_app.extensions["upstream"]["heeds_keys"] = (
            answer.headers.get("Idempotency-Key") == once
        )
    return data


def ask(
    endpoint: str, key: str, limit: int, params: dict[str, Any] | None = None,
    once: str | None = None,
) -> outbound.Answer:  # fmt: skip
    """The one way to the main server: its answer to a call with `key`, whatever it is, of which at
    most `limit` bytes are read; raises Unreachable.

    `once` is the Idempotency-Key of a request that must not be carried out twice.
    """
    config, state = current_app.config, current_app.extensions["upstream"]
    started = time.monotonic()
    result: int | str = "failed"
    try:
        answer = outbound.call(
            state["session"],
            "GET",
            f"{config['MAIN_SERVER_URL']}/api/{endpoint}/{quote(key, safe='')}",
            seconds=config["UPSTREAM_TIMEOUT"],
            limit=limit,
            repeatable=once is None or state["heeds_keys"],
            params=params,
            headers={"Idempotency-Key": once} if once else None,
        )
        result = answer.status if answer.complete else "incomplete"
        return answer
    except outbound.CallFailed as e:
        result = e.kind
        raise Unreachable(e) from e
    finally:
        seconds = time.monotonic() - started
        MAIN_SERVER_CALLS.labels(endpoint, str(result)).inc()
        MAIN_SERVER_SECONDS.labels(endpoint).observe(seconds)
        event("upstream_called", endpoint=endpoint, result=result, ms=round(seconds * 1000))


def _without_key(message: str) -> str:
    """A main server's message, which may quote the URL, and with it our key."""
    key = current_app.config["SYSTEM_API_KEY"]
    for spelling in (key, quote(key, safe=""), quote(key)):
        message = message.replace(spelling, "***")
    return message[:500]


def _data(answer: outbound.Answer) -> dict[str, Any] | None:
    try:
        body = json.loads(answer.body) if answer.complete else None
    except (ValueError, RecursionError):
        body = None
    if answer.status >= 400:
        message = body.get("message") if isinstance(body, dict) else None
        raise Refused(answer.status, _without_key(message) if isinstance(message, str) else None)
    if answer.status != 200 or not isinstance(body, dict) or body.get("status") != "success":
        incomplete = "" if answer.complete else ", incomplete"
        raise NotTheContract(f"status {answer.status}{incomplete}")
    data = body.get("data")
    if data is not None and not isinstance(data, dict):
        raise NotTheContract("data is not an object")
    return data
