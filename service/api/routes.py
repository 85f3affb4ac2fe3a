"""The JSON API: init, get_number, ingest, what users read back, and errors as JSON."""

import hmac
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Blueprint, Request, Response, current_app, g, jsonify, request
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from service import audit, auth, errors, history, limits, metrics, upstream
from service.api import openapi, schemas
from service.database import health, schema
from service.database.models import User
from service.database.writing import release, transact
from service.fields import load_query
from service.logs import event
from service.numbers import assignment
from service.numbers.formats import present
from service.sms import parts, providers

bp = Blueprint("api", __name__)
_GET_NUMBER = schemas.GetNumberQuery()
# What an endpoint returns for an unexpected error
UNFORESEEN = {"api.get_number": errors.UnableToGetNumber}
View = TypeVar("View", bound=Callable[..., Any])


def keyed(rule: str, **options: Any) -> Callable[[View], View]:
    """Route `rule` with the key as its last part, and without it for a key in the headers."""

    def decorate(view: View) -> View:
        for path in (rule, f"{rule}/", f"{rule}/<path:key>"):  # a key may contain slashes
            bp.add_url_rule(path, view_func=view, **options)
        return view

    return decorate


@keyed("/api/init")
def init(key: str | None = None) -> Response:
    """The countries and operators of the main server."""
    if not current_app.config["SYSTEM_API_KEY"] or not current_app.config["MAIN_SERVER_URL"]:
        raise errors.SystemConfigurationError
    try:
        user = auth.require_key(key)
    except (errors.MissingCredentials, errors.InvalidApiKey) as e:
        raise errors.Unauthorized from e
    release()
    try:
        return _init_answer(upstream.init_in_turn(user.id if user else None))
    except upstream.Refused as e:
        if e.message is None:
            raise errors.ServiceFetchFailed from e
        g.passed_on = True  # not the caller's key was wrong, but ours
        raise errors.MainServerRefused(e.status, e.message) from e
    except upstream.UpstreamError as e:
        raise errors.ServiceFetchFailed from e


def _init_answer(data: dict[str, Any]) -> Response:
    """The lists as JSON, which is made once for all calls that get the same ones."""
    known = current_app.extensions.get("init_answer")
    if known is None or known[0] is not data:
        known = current_app.extensions["init_answer"] = data, jsonify(success(data)).data
    return Response(known[1], mimetype="application/json")


@keyed("/api/get-number")
def get_number(key: str | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """A number from the main server, assigned to the user."""
    if request.method != "GET" or "prefetch" in _purpose():
        raise MethodNotAllowed(["GET"])  # a HEAD or a prefetch must not use up a number
    with limits.gate().inside():
        return _get_number(key)


def _get_number(key: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    user = auth.calling_user(key)
    auth.require_active_manager(user)
    query = load_query(_GET_NUMBER, request.args)
    number_format = query.get("number_format") or user.number_format or "full"
    once = _idempotency_key()
    row, phone_code = assignment.get_number(
        user, query["country_id"], query.get("operator_id"), number_format, once
    )
    data = {
        "phone_number": present(row.digits or "", number_format, phone_code),
        "id": row.id,
        "country_id": row.country_id,
        "operator_id": row.operator_id,
    }
    if audit.is_system_key():
        transact(audit.record, "number_requested", user.id, number_id=row.id)
    # Tells a deployment whose main server this is that the key is heeded (`upstream.get_number`);
    # the server would refuse to send other characters, after a number was spent
    is_plain = once is not None and once.isascii() and once.isprintable()
    return success(data), {"Idempotency-Key": once} if once and is_plain else {}


@keyed("/api/ingest", methods=["GET", "POST"])
def ingest(key: str | None = None) -> dict[str, Any] | Response:
    """An SMS from the main server or a gateway; GET is for gateways that can do nothing else."""
    source = providers.source_of(auth.given_key(key))
    gateway = source.gateway
    if request.method != "POST" and not (request.method == "GET" and gateway.get):
        raise MethodNotAllowed(["GET", "POST"] if gateway.get else ["POST"])
    _refuse_cut_body()
    parsed = gateway.parse(request, source.options)
    data: Any
    if isinstance(parsed, list):
        # Once one receiver's time has passed, the rest is left to the worker
        until = time.monotonic() + current_app.config["WEBHOOK_TIMEOUT"]
        data = [parts.ingest(sms, source, time.monotonic() > until) for sms in parsed]
    else:
        data = parts.ingest(parsed, source)
    answer = ("", "text/plain") if source.options.reply == "empty" else gateway.answer
    if answer is None:
        return success(data)
    body, mimetype = answer
    return Response(body, mimetype=mimetype)


def _reader(key: str | None) -> User:
    """The user whose records are read; who reads them with the system key leaves a trace."""
    user = auth.calling_user(key)
    if audit.is_system_key():
        transact(audit.record, "read", user.id, what=(request.endpoint or "").removeprefix("api."))
    return user


@keyed("/api/numbers")
def numbers(key: str | None = None) -> dict[str, Any]:
    """The numbers of the user, newest first."""
    user = _reader(key)
    rows = history.numbers(user, **load_query(schemas.NumbersQuery(), request.args))
    return success({"numbers": schemas.NumberSchema(many=True).dump(rows)})


@keyed("/api/messages")
def messages(key: str | None = None) -> dict[str, Any]:
    """The SMS of the user, oldest first; with `wait`, as soon as there is one."""
    user = _reader(key)
    rows = history.messages(user, **load_query(schemas.MessagesQuery(), request.args))
    return success({"messages": schemas.MessageSchema(many=True).dump(rows)})


@keyed("/api/summary")
def summary(key: str | None = None) -> dict[str, Any]:
    """The user's counts: in total and per day (UTC)."""
    user = _reader(key)
    counts = history.summary(user, **load_query(schemas.SummaryQuery(), request.args))
    return success(schemas.SummarySchema().dump(counts))


@bp.get("/healthz")
def healthz() -> dict[str, Any]:
    """Whether the database answers, its schema is current and a write would work; needs no key."""
    try:
        current, obstacle = schema.is_current(), health.unwritable()
    except SQLAlchemyError as e:
        raise errors.Unhealthy("The database does not answer") from e
    if not current:
        raise errors.Unhealthy("The database schema is not current")
    if obstacle:
        raise errors.Unhealthy(obstacle)
    return success({"database": "ok"})


@bp.get("/metrics")
def watch() -> Response:
    """Numbers to watch, for Prometheus: from this machine, or with METRICS_TOKEN."""
    token = current_app.config["METRICS_TOKEN"] or ""
    given = auth.given_key(None) or ""
    is_known = bool(token) and hmac.compare_digest(token.encode(), given.encode("utf-8", "replace"))
    if not is_known and not auth.is_from_this_machine():
        raise errors.Unauthorized
    return Response(metrics.exposition(), content_type=CONTENT_TYPE_PLAIN_0_0_4)


@bp.get("/openapi.json")
def openapi_json() -> dict[str, Any]:
    """This API, described for programs (OpenAPI 3.1)."""
    return openapi.document()


def success(data: Any) -> dict[str, Any]:
    return {"status": "success", "data": data}


def _purpose() -> str:
    names = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz")
    return " ".join(request.headers.get(name, "") for name in names).lower()


def _refuse_cut_body() -> None:
    """Refuse a body without Content-Length that reaches the limit, at which Werkzeug cuts it."""
    limit = current_app.config["MAX_CONTENT_LENGTH"]
    if request.content_length is None and len(request.get_data()) >= limit:
        raise RequestEntityTooLarge


def _idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key") or None
    if key and len(key) > 255:
        raise errors.BadRequest("Idempotency-Key must be at most 255 characters")
    return key


def serves(request: Request) -> bool:
    """Whether the request is answered in JSON, errors included."""
    return request.path.startswith(("/api", "/healthz", "/metrics", "/openapi.json"))


def answer_error(error: Exception) -> Any:
    """Turn any exception into the documented JSON."""
    if isinstance(error, HTTPException):
        response = error.get_response()
        body = jsonify(status="error", message=error.description or error.name)
        response.data, response.content_type = body.data, body.content_type
        return response
    if not isinstance(error, errors.ApiError):
        event("unexpected_error", logging.ERROR, exc_info=True)
        error = UNFORESEEN.get(request.endpoint or "", errors.ApiError)()
    elif error.status >= 500:
        event("request_failed", logging.WARNING, exc_info=True)
    answer: dict[str, Any] = {"status": "error", "message": error.message}
    if error.errors:
        answer["errors"] = error.errors
    return answer, error.status, error.headers
