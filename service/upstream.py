"""The main server's client: init and get_number, each one call, typed answers, one error family."""

import json
import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from urllib.parse import quote

from flask import current_app
from marshmallow import ValidationError

from service import outbound
from service.logs import event, mask
from service.schemas import GrantSchema, InitSchema, OperatorSchema, phone_digits

log = logging.getLogger(__name__)
INIT_BYTES = 8 * 2**20
NUMBER_BYTES = 256 * 2**10
_GRANT, _OPERATOR = GrantSchema(), OperatorSchema(partial=("name",))


class UpstreamError(Exception):
    """Base of all that can go wrong with the main server; never raised itself.

    `granted` says whether a number may have been granted all the same.
    """

    granted = False


class NotConfigured(UpstreamError):
    """MAIN_SERVER_URL or SYSTEM_API_KEY is not set."""


class Unreachable(UpstreamError):
    """No complete answer: not connected, cut off, or out of time."""

    def __init__(self, failure):
        super().__init__(failure.kind)
        self.granted = failure.sent


class NotTheContract(UpstreamError):
    """An answer that is not the documented JSON: HTML, a redirect, wrong types, missing lists."""

    granted = True


class Refused(UpstreamError):
    """The main server answered an error: its `status`, and its `message` or None."""

    def __init__(self, status, message):
        super().__init__(f"{status} {message}")
        self.status = status
        self.message = message
        self.granted = status >= 500


class NoNumber(UpstreamError):
    """The main server has no number to give."""


@dataclass
class Grant:
    """A number granted by the main server: its digits, and the operators told along with it."""

    digits: str
    operators: list


def init_app(app):
    app.extensions["upstream"] = {
        "session": outbound.new_session(),
        "init": _SharedCache(app.config["INIT_CACHE_SECONDS"]),
    }


def init():
    """The main server's `{"countries": […], "operators": […]}`, cached. Raises UpstreamError."""
    return current_app.extensions["upstream"]["init"].get(_fetch_init)


def get_number(country_id, operator_id=None, idempotency_key=None):
    """Ask the main server for one number; never repeated here. Raises UpstreamError."""
    params = {"country_id": country_id, "number_format": "full"}
    if operator_id is not None:
        params["operator_id"] = operator_id
    if current_app.config["MAIN_SERVER_USER_ID"]:
        params["user_id"] = current_app.config["MAIN_SERVER_USER_ID"]
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
    try:
        data = _get("get-number", NUMBER_BYTES, params=params, headers=headers)
    except Refused as e:
        if e.status == 404:
            raise NoNumber from e
        raise
    if not data or not data.get("phone_number"):
        raise NoNumber
    try:
        number = _GRANT.load(data)["phone_number"]
        digits = phone_digits(number)
    except ValidationError as e:
        raise NotTheContract(f"get-number: {sorted(e.normalized_messages())}") from e
    return Grant(digits, _operators(data, country_id))


def _fetch_init():
    data = _get("init", INIT_BYTES)
    errors = InitSchema().validate(data if data is not None else {})
    if errors:
        raise NotTheContract(f"init: {sorted(errors)}")
    return data


def _operators(data, country_id):
    """The well-formed ones of `data.operator` and `data.operators`: a number outweighs the rest."""
    listed = data.get("operators") if isinstance(data.get("operators"), list) else []
    good = []
    for operator in [data.get("operator"), *listed]:
        if operator is None:
            continue
        if not isinstance(operator, dict) or _OPERATOR.validate(operator):
            event(log, "operator_ignored", logging.WARNING, country_id=country_id)
            continue
        good.append({"country_id": country_id} | operator)
    return good


def _get(endpoint, limit, **kwargs):
    """The one way to the main server: `data` of its success answer, or an UpstreamError."""
    config = current_app.config
    base, key = config["MAIN_SERVER_URL"], config["SYSTEM_API_KEY"]
    if not base or not key:
        raise NotConfigured
    started = time.monotonic()
    result = "failed"
    try:
        answer = outbound.call(
            current_app.extensions["upstream"]["session"],
            "GET",
            f"{base}/api/{endpoint}/{quote(key, safe='')}",
            seconds=config["UPSTREAM_TIMEOUT"],
            limit=limit,
            **kwargs,
        )
        result = answer.status
    except outbound.CallFailed as e:
        result = e.kind
        raise Unreachable(e) from e
    finally:
        ms = round((time.monotonic() - started) * 1000)
        event(log, "upstream_called", endpoint=endpoint, result=result, ms=ms)
    return _data(answer)


def _data(answer):
    try:
        body = None if answer.truncated else json.loads(answer.body)
    except (ValueError, RecursionError):
        body = None
    if answer.status >= 400:
        message = body.get("message") if isinstance(body, dict) else None
        # Masked: a main server may quote the URL, which holds our key
        raise Refused(answer.status, mask(message)[:500] if isinstance(message, str) else None)
    if answer.status != 200 or not isinstance(body, dict) or body.get("status") != "success":
        raise NotTheContract(f"status {answer.status}")
    data = body.get("data")
    if data is not None and not isinstance(data, dict):
        raise NotTheContract("data is not an object")
    return data


class _SharedCache:
    """One value kept for `seconds`; concurrent misses share one fetch, errors are not kept."""

    def __init__(self, seconds):
        self.seconds = seconds
        self._lock = threading.Lock()
        self._value = None
        self._until = 0.0
        self._fetching = None

    def get(self, fetch):
        if not self.seconds:
            return fetch()
        with self._lock:
            if time.monotonic() < self._until:
                return self._value
            fetching = self._fetching
            if mine := fetching is None:
                fetching = self._fetching = Future()
        if mine:
            self._fetch(fetch, fetching)
        return fetching.result()

    def _fetch(self, fetch, fetching):
        try:
            value = fetch()
        except BaseException as e:
            with self._lock:
                self._fetching = None
            fetching.set_exception(e)
            return
        with self._lock:
            self._value, self._until = value, time.monotonic() + self.seconds
            self._fetching = None
        fetching.set_result(value)
