"""The JSON API: init, get_number, ingest, and what users read back."""

import logging

from flask import Blueprint, Response, current_app, jsonify, request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from service import assignment, auth, checks, gateways, history, ingestion, openapi, upstream
from service.errors import (
    ApiError,
    BadRequest,
    InvalidApiKey,
    InvalidIngestKey,
    MainServerRefused,
    MissingCredentials,
    ServiceFetchFailed,
    SystemConfigurationError,
    UnableToGetNumber,
    Unauthorized,
    Unhealthy,
)
from service.logs import event
from service.models import Provider, release
from service.schemas import (
    GetNumberQuery,
    MessageSchema,
    MessagesQuery,
    NumberSchema,
    NumbersQuery,
    SummaryQuery,
    SummarySchema,
    load_query,
)
from service.secretbox import unseal

log = logging.getLogger(__name__)
bp = Blueprint("api", __name__)
_GET_NUMBER = GetNumberQuery()


def keyed(rule, **options):
    """Route `rule` with the key as its last part, and without it for a key in the headers."""

    def decorate(view):
        for path in (rule, f"{rule}/", f"{rule}/<path:key>"):  # a key may have slashes in it
            bp.add_url_rule(path, view_func=view, **options)
        return view

    return decorate


@keyed("/api/init")
def init(key=None):
    """The countries and operators of the main server."""
    if not current_app.config["SYSTEM_API_KEY"] or not current_app.config["MAIN_SERVER_URL"]:
        raise SystemConfigurationError
    try:
        auth.require_key(key)
    except (MissingCredentials, InvalidApiKey) as e:
        raise Unauthorized from e
    release()
    try:
        return success(upstream.init())
    except upstream.Refused as e:
        if e.message is None:
            raise ServiceFetchFailed from e
        raise MainServerRefused(e.status, e.message) from e
    except upstream.UpstreamError as e:
        raise ServiceFetchFailed from e


@keyed("/api/get-number")
def get_number(key=None):
    """A number from the main server, assigned to the user."""
    if request.method != "GET" or "prefetch" in _purpose():
        raise MethodNotAllowed(["GET"])  # a HEAD or a prefetch must not cost a number
    user = auth.calling_user(key)
    auth.require_active_manager(user)
    query = load_query(_GET_NUMBER, request.args)
    number_format = query.get("number_format") or user.number_format or "full"
    row = assignment.get_number(
        user, query["country_id"], query.get("operator_id"), number_format, _idempotency_key()
    )
    return success(
        {
            "phone_number": assignment.present(row, number_format),
            "id": row.id,
            "country_id": row.country_id,
            "operator_id": row.operator_id,
        }
    )


@keyed("/api/ingest", methods=["GET", "POST"])
def ingest(key=None):
    """An SMS from the main server or a gateway; GET is for the gateways that know nothing else."""
    key = auth.given_key(key)
    if key is None:
        raise InvalidIngestKey
    if auth.is_system_key(key):
        gateway, provider, source = gateways.FORMATS["main-server"], None, "system"
        secret, number = current_app.config["MAIN_SERVER_WEBHOOK_SECRET"], None
    else:
        provider = Provider.by_ingest_key(key)
        gateway, source = gateways.FORMATS[provider.format], f"provider {provider.id}"
        secret, number = provider.secret and unseal(provider.secret), provider.number
    if request.method != "POST" and not (request.method == "GET" and gateway.get):
        raise MethodNotAllowed(["GET", "POST"] if gateway.get else ["POST"])
    _refuse_cut_body()
    sms = gateway.parse(request, secret, number)
    name = provider.name if provider else sms.provider or "main-server"
    data = ingestion.ingest(sms, name, source)
    if gateway.answer is None:
        return success(data)
    body, mimetype = gateway.answer
    return Response(body, mimetype=mimetype)


@keyed("/api/numbers")
def numbers(key=None):
    """The numbers of the user, newest first."""
    user = auth.calling_user(key)
    rows = history.numbers(user, **load_query(NumbersQuery(), request.args))
    return success({"numbers": NumberSchema(many=True).dump(rows)})


@keyed("/api/messages")
def messages(key=None):
    """The SMS of the user, oldest first; with `wait`, as soon as there is one."""
    user = auth.calling_user(key)
    rows = history.messages(user, **load_query(MessagesQuery(), request.args))
    return success({"messages": MessageSchema(many=True).dump(rows)})


@keyed("/api/summary")
def summary(key=None):
    """The user's counts: in all, and of each day (UTC)."""
    user = auth.calling_user(key)
    counts = history.summary(user, **load_query(SummaryQuery(), request.args))
    return success(SummarySchema().dump(counts))


@bp.get("/healthz")
def healthz():
    """Whether the database answers and its schema is this version's; needs no key."""
    try:
        current = checks.schema_is_current()
    except SQLAlchemyError as e:
        raise Unhealthy("The database does not answer") from e
    if not current:
        raise Unhealthy("The database schema is not current")
    return success({"database": "ok"})


@bp.get("/openapi.json")
def openapi_json():
    """This API, described for programs (OpenAPI 3.1)."""
    return openapi.document()


def success(data):
    return {"status": "success", "data": data}


def _purpose():
    names = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz")
    return " ".join(request.headers.get(name, "") for name in names).lower()


def _refuse_cut_body():
    """A body that does not tell its length is cut at the limit, unlike others without a word."""
    limit = current_app.config["MAX_CONTENT_LENGTH"]
    if request.content_length is None and len(request.get_data()) >= limit:
        raise RequestEntityTooLarge


def _idempotency_key():
    key = request.headers.get("Idempotency-Key") or None
    if key and len(key) > 255:
        raise BadRequest("Idempotency-Key must be at most 255 characters")
    return key


# --- answers ------------------------------------------------------------------------------

# What is said when an endpoint meets an error that nobody foresaw
UNFORESEEN = {"api.get_number": UnableToGetNumber}


def serves(request):
    """Whether it is answered in JSON, errors included."""
    return request.path.startswith(("/api", "/healthz", "/openapi.json"))


def answer_error(error):
    """Any exception of a request as the documented JSON."""
    if isinstance(error, HTTPException):
        response = error.get_response()
        body = jsonify(status="error", message=error.description or error.name)
        response.data, response.content_type = body.data, body.content_type
        return response
    if not isinstance(error, ApiError):
        event(log, "unexpected_error", logging.ERROR, exc_info=True)
        error = UNFORESEEN.get(request.endpoint, ApiError)()
    elif error.status >= 500:
        event(log, "request_failed", logging.WARNING, exc_info=True)
    body = {"status": "error", "message": error.message}
    if error.errors:
        body["errors"] = error.errors
    return body, error.status, error.headers
