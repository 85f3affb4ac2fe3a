"""The API's description: /openapi.json, and what /docs shows."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema
from marshmallow.fields import Field

from service import errors
from service.api import schemas
from service.auth import UserIdQuery
from service.fields import Digits, Moment, Phone, Text
from service.upstream import InitSchema
from service.version import VERSION

# A declared error, or (status, message); and when it is returned
Failure = tuple[type[errors.ApiError] | tuple[int | str, str], str]


@dataclass(frozen=True)
class Endpoint:
    """One call: `failures` are (error or (status, message), when), in the order of the checks."""

    name: str
    path: str
    summary: str
    answer: type[Schema]
    failures: list[Failure]
    query: tuple[type[Schema], ...] = ()
    key: str | None = "api_key"
    method: str = "get"
    headers: tuple[dict[str, Any], ...] = ()
    body: dict[str, Any] | None = None
    # For /docs: the end of the curl line, and the answer
    query_example: str = ""
    body_example: str = ""
    example: str = ""


NO_USER: list[Failure] = [
    (errors.MissingCredentials, "no key at all"),
    (errors.InvalidApiKey, "an unknown key, or its user is inactive or not approved"),
    (errors.UserIdRequired, "the system key without `user_id`"),
    (errors.TargetUserNotFound, "`user_id` of nobody, or of an inactive or not approved user"),
]
BAD_PARAMETER: Failure = (400, "a sentence naming the parameter"), "a parameter is not as described"
INTERNAL: Failure = (errors.ApiError, "an unforeseen error")
BUSY: Failure = (errors.Busy, "no database connection became free in time; see `Retry-After`")

PHONE_PATTERN = r"^(\+|00|(?!00))[0-9]{4,20}$"
PHONE: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": PHONE_PATTERN},
        {"type": "integer", "minimum": 1000, "maximum": 10**20 - 1},
    ]
}
TEXT: dict[str, Any] = {"type": ["string", "integer"]}
# An optional field is of any type: what cannot be read counts as not given
ID: dict[str, Any] = {}
SMS: dict[str, Any] = {
    "type": "object",
    "description": "The `generic` format; other gateways send their own. `phone_number` is another"
    " name of `to`; `sms_text`, `message` and `body` are of `text`; `message_id` is of `id`."
    " `otp_code` and `received_at` (ISO 8601 or Unix seconds) are optional.",
    "properties": {
        "to": PHONE | {"description": "The number, with the country's code."},
        "text": TEXT | {"description": "The SMS."},
        "id": ID | {"description": "The gateway's own id: what comes twice is a duplicate."},
    },
    "required": ["to", "text"],
    "example": {"to": "+447400849540", "text": "Your code is 493817", "id": "42"},
}
IDEMPOTENCY_KEY: dict[str, Any] = {
    "in": "header",
    "name": "Idempotency-Key",
    "description": "A repeat within 24 hours answers the same number.",
    "schema": {"type": "string", "maxLength": 255},
}

_WEBHOOK_HEADERS = {
    "webhook-id": "The same over every retry: drop those you have seen.",
    "webhook-timestamp": "When this try was made, in Unix seconds.",
    "webhook-signature": "`v1,…` of the body, with your `whsec_…` secret; two after a rotation.",
}
WEBHOOK: dict[str, Any] = {
    "summary": "An SMS with a code has arrived. Signed as Standard Webhooks describes.",
    "parameters": [
        {"in": "header", "name": name, "description": text, "schema": {"type": "string"}}
        for name, text in _WEBHOOK_HEADERS.items()
    ],
    "requestBody": {
        "content": {
            "application/json": {
                "example": {
                    "event": "otp_received",
                    "data": {
                        "phone_number": "+1234567890",
                        "otp_code": "123456",
                        "provider": "NAME",
                        "sms_text": "Your code is 123456",
                    },
                }
            }
        }
    },
    "responses": {
        "2XX": {"description": "It has arrived."},
        "410": {"description": "Nothing is sent any more, until the Webhook URL is set again."},
        "default": {"description": "It is retried."},
    },
}

# gunicorn's own answer, before the request reaches the service
TOO_LONG: dict[str, Any] = {
    "414": {"description": "more than 4,094 bytes of URL", "content": {"text/html": {}}}
}

ENDPOINTS = [
    Endpoint(
        "init",
        "/api/init",
        "The countries and operators of the main server.",
        InitSchema,
        [
            (errors.Unauthorized, "no valid key, or its user is inactive or not approved"),
            (errors.SystemConfigurationError, "the main server or its key is not configured"),
            (errors.ServiceFetchFailed, "the main server gave no usable answer"),
            (errors.InitBusy, "too many calls are waiting for the main server; see `Retry-After`"),
            BUSY,
            (("its own", "its own"), "the main server answered an error"),
        ],
        example='{"countries":[{"id":1,"name":"United States","phone_code":"1"},…],'
        '"operators":[{"id":101,"name":"AT&T","country_id":1},…]}',
    ),
    Endpoint(
        "get_number",
        "/api/get-number",
        "A number, assigned to the user.",
        schemas.AssignedSchema,
        [
            *NO_USER,
            (errors.ManagerInactive, "the user's manager is inactive"),
            ((400, "country_id is required"), "no `country_id`"),
            BAD_PARAMETER,
            (errors.DailyLimitReached, "the user's daily limit is used up; see `Retry-After`"),
            (errors.CountriesUnavailable, "`national`, and the country's phone code is unknown"),
            (errors.NoNumberReceived, "the main server has none"),
            (errors.UnableToGetNumber, "anything else that fails"),
            (
                errors.NumbersBusy,
                "too many calls are waiting for the main server; see `Retry-After`",
            ),
            BUSY,
        ],
        query=(schemas.GetNumberQuery, UserIdQuery),
        headers=(IDEMPOTENCY_KEY,),
        query_example="?country_id=2&number_format=national",
        example='{"phone_number":"7400849540","id":1,"country_id":2,"operator_id":null}',
    ),
    Endpoint(
        "numbers",
        "/api/numbers",
        "The user's numbers, newest first.",
        schemas.NumbersData,
        [*NO_USER, BAD_PARAMETER, INTERNAL, BUSY],
        query=(schemas.NumbersQuery, UserIdQuery),
        example='{"numbers":[{"id":1,"phone_number":"+447400849540","country_id":2,'
        '"operator_id":null,"assigned_at":"2026-11-25T09:29:00.123456Z"}]}',
    ),
    Endpoint(
        "messages",
        "/api/messages",
        "The user's SMS, oldest first: those after `after`, else the latest.",
        schemas.MessagesData,
        [*NO_USER, BAD_PARAMETER, INTERNAL, BUSY],
        query=(schemas.MessagesQuery, UserIdQuery),
        query_example="?phone_number=447400849540&wait=25",
        example='{"messages":[{"id":1,"phone_number":"+447400849540",'
        '"sms_text":"Your code is 493817","otp_code":"493817","otp_rule":"keyword-before",'
        '"provider":"gw","received_at":"2026-11-25T09:30:00.123456Z","webhook":"delivered"}]}',
    ),
    Endpoint(
        "summary",
        "/api/summary",
        "The user's counts: in all, and of each day (UTC).",
        schemas.SummarySchema,
        [*NO_USER, BAD_PARAMETER, INTERNAL, BUSY],
        query=(schemas.SummaryQuery, UserIdQuery),
        example='{"totals":{"numbers":7,"sms":9,"otps":8,"webhooks_delivered":8},'
        '"days":[{"numbers":0,"sms":0,"otps":0,"webhooks_delivered":0,"day":"2026-10-27"},…]}',
    ),
    Endpoint(
        "ingest",
        "/api/ingest",
        "Takes in an SMS from a gateway.",
        schemas.IngestedSchema,
        [
            ((400, "a sentence naming the field"), "the SMS is malformed; nothing is stored"),
            (errors.InvalidIngestKey, "no key, an unknown one, or its gateway is disabled"),
            (errors.InvalidSignature, "the gateway signs, and this is not its signature"),
            ((413, "too large"), "more than 256 KiB"),
            INTERNAL,
            BUSY,
        ],
        key="ingest_key",
        method="post",
        body=SMS,
        body_example=" -d to=+447400849540 -d 'text=Your code is 493817' -d id=42",
        example='{"id":1,"matched":true,"duplicate":false,"otp_code":"493817","webhook":"delivered"}',
    ),
    Endpoint(
        "healthz",
        "/healthz",
        "Whether the service can work; needs no key.",
        schemas.HealthSchema,
        [
            (
                errors.Unhealthy,
                "the database is down or cannot be written to, or its schema is not current",
            )
        ],
        key=None,
        example='{"database":"ok"}',
    ),
]


# Not on /docs, where the gateways' own configuration is shown
INGEST_BY_GET = replace(
    next(endpoint for endpoint in ENDPOINTS if endpoint.name == "ingest"),
    name="ingest_by_get",
    summary="The same, for gateways that can only GET.",
    method="get",
    query=(schemas.IngestQuery,),
    body=None,
)


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document, as a dict; `x-failures` lists each error of a call."""
    plugin = MarshmallowPlugin()
    spec = APISpec("OTP number service", VERSION, "3.1.0", plugins=[plugin])
    converter = plugin.converter
    assert converter is not None  # the plugin is in use
    text, moment = ("string", None), ("string", "date-time")
    converter.field_mapping |= {Digits: ("integer", None), Text: text, Phone: text, Moment: moment}
    converter.add_attribute_function(_bounds)
    spec.components.schema("Error", _object(status={"const": "error"}, message={"type": "string"}))
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    api_key = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    spec.components.security_scheme("header", api_key)
    for endpoint in (*ENDPOINTS, INGEST_BY_GET):
        operation = _operation(endpoint, converter)
        schemes: list[dict[str, Any]] = [{"bearer": []}, {"header": []}]
        headers = {"security": schemes} if endpoint.key else {}
        spec.path(endpoint.path, operations={endpoint.method: operation | headers})
        if endpoint.key:
            path = f"{endpoint.path}/{{{endpoint.key}}}"
            spec.path(path, operations=_by_path(endpoint, operation))
    return spec.to_dict() | {"webhooks": {"otp_received": {"post": WEBHOOK}}}


def _operation(endpoint: Endpoint, converter: Any) -> dict[str, Any]:
    parameters = [*endpoint.headers]
    for schema in endpoint.query:
        parameters += converter.schema2parameters(schema(), location="query")
    # An empty parameter counts as missing
    for parameter in parameters:
        if parameter["in"] == "query" and not parameter.get("required"):
            parameter["allowEmptyValue"] = True
    answer = _object(status={"const": "success"}, data=endpoint.answer)
    operation = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": {"200": _response("success", answer)} | _failures(endpoint) | TOO_LONG,
        "x-failures": [
            {"status": status, "message": message, "when": when}
            for (status, message), when in map(_plain, endpoint.failures)
        ],
    }
    if endpoint.body:
        kinds = ("application/json", "application/x-www-form-urlencoded")
        content = {kind: {"schema": endpoint.body} for kind in kinds}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _by_path(endpoint: Endpoint, operation: dict[str, Any]) -> dict[str, Any]:
    key = {"in": "path", "name": endpoint.key, "required": True, "schema": {"type": "string"}}
    changes = {
        "operationId": f"{endpoint.name}_by_path",
        "summary": f"{endpoint.summary} (The key in the path.)",
        "parameters": [key, *operation["parameters"]],
    }
    return {endpoint.method: operation | changes}


def _failures(endpoint: Endpoint) -> dict[str, Any]:
    """A response for each status, with the messages that go with it."""
    sentences: dict[str, dict[str, None]] = {}
    for (status, message), _ in map(_plain, endpoint.failures):
        status = "default" if status == "its own" else str(status)
        sentences.setdefault(status, {})[message] = None
    return {status: _response("; ".join(said), "Error") for status, said in sentences.items()}


def _plain(failure: Failure) -> tuple[tuple[int | str, str], str]:
    error, when = failure
    return (error if isinstance(error, tuple) else (error.status, error.message)), when


def _response(description: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _bounds(self: Any, field: Field[Any], **kwargs: Any) -> dict[str, Any]:
    if isinstance(field, Digits):
        return {"minimum": field.low, "maximum": field.high}
    return {"pattern": PHONE_PATTERN} if isinstance(field, Phone) else {}
