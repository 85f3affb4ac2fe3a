"""The API's description: /openapi.json, and what /docs shows."""

from dataclasses import dataclass
from functools import cache

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin

from service import errors
from service.schemas import (
    AssignedSchema,
    Digits,
    GetNumberQuery,
    HealthSchema,
    IngestedSchema,
    InitSchema,
    MessagesData,
    MessagesQuery,
    Moment,
    NumbersData,
    NumbersQuery,
    Phone,
    SummaryQuery,
    SummarySchema,
    Text,
    UserIdQuery,
)


@dataclass(frozen=True)
class Endpoint:
    """One call: `failures` are (error or (status, message), when), in the order of the checks."""

    name: str
    path: str
    summary: str
    answer: type
    failures: list
    query: tuple = ()
    key: str | None = "api_key"
    method: str = "get"
    headers: tuple = ()
    body: dict | None = None
    # For /docs: of the curl line, and what it answers
    query_example: str = ""
    body_example: str = ""
    example: str = ""


NO_USER = [
    (errors.MissingCredentials, "no key at all"),
    (errors.InvalidApiKey, "an unknown key, or its user is inactive or not approved"),
    (errors.UserIdRequired, "the system key without `user_id`"),
    (errors.TargetUserNotFound, "`user_id` of nobody, or of an inactive or not approved user"),
]
BAD_PARAMETER = ((400, "a sentence naming the parameter"), "a parameter is not as described")
INTERNAL = (errors.ApiError, "what nobody foresaw")

PHONE_PATTERN = r"^(\+|00|(?!00))[0-9]{4,20}$"
PHONE = {
    "anyOf": [
        {"type": "string", "pattern": PHONE_PATTERN},
        {"type": "integer", "minimum": 1000, "maximum": 10**20 - 1},
    ]
}
TEXT = {"type": ["string", "integer"]}
ID = {"type": ["string", "integer", "null"], "maxLength": 255}
SMS = {
    "type": "object",
    "description": "The `generic` format; other gateways send their own. `phone_number` is another"
    " name of `to`; `sms_text`, `message` and `body` are of `text`; `message_id` is of `id`."
    " `otp_code` and `received_at` (ISO 8601 or Unix seconds) may be told too.",
    "properties": {
        "to": PHONE | {"description": "The number, with the country's code."},
        "text": TEXT | {"description": "The SMS."},
        "id": ID | {"description": "The gateway's own id: what comes twice is a duplicate."},
    },
    "required": ["to", "text"],
    "example": {"to": "+447400849540", "text": "Your code is 493817", "id": "42"},
}
IDEMPOTENCY_KEY = {
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
WEBHOOK = {
    "summary": "An SMS with a code has come. Signed as Standard Webhooks describes.",
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
        "default": {"description": "It is tried again."},
    },
}

# gunicorn's own answer, before the request is ours
TOO_LONG = {"414": {"description": "more than 4,094 bytes of URL", "content": {"text/html": {}}}}

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
            (("its own", "its own"), "the main server answered an error"),
        ],
        example='{"countries":[{"id":1,"name":"United States","phone_code":"1"},…],'
        '"operators":[{"id":101,"name":"AT&T","country_id":1},…]}',
    ),
    Endpoint(
        "get_number",
        "/api/get-number",
        "A number, assigned to the user.",
        AssignedSchema,
        [
            *NO_USER,
            (errors.ManagerInactive, "the user's manager is inactive"),
            ((400, "country_id is required"), "no `country_id`"),
            BAD_PARAMETER,
            (errors.DailyLimitReached, "the user's daily limit is used up; see `Retry-After`"),
            (errors.CountriesUnavailable, "`national`, and the country's phone code is unknown"),
            (errors.NoNumberReceived, "the main server has none"),
            (errors.UnableToGetNumber, "anything else that fails"),
        ],
        query=(GetNumberQuery, UserIdQuery),
        headers=(IDEMPOTENCY_KEY,),
        query_example="?country_id=2&number_format=national",
        example='{"phone_number":"7400849540","id":1,"country_id":2,"operator_id":null}',
    ),
    Endpoint(
        "numbers",
        "/api/numbers",
        "The user's numbers, newest first.",
        NumbersData,
        [*NO_USER, BAD_PARAMETER, INTERNAL],
        query=(NumbersQuery, UserIdQuery),
        example='{"numbers":[{"id":1,"phone_number":"+447400849540","country_id":2,'
        '"operator_id":null,"assigned_at":"2026-11-25T09:29:00.123456Z"}]}',
    ),
    Endpoint(
        "messages",
        "/api/messages",
        "The user's SMS, oldest first: those after `after`, else the latest.",
        MessagesData,
        [*NO_USER, BAD_PARAMETER, INTERNAL],
        query=(MessagesQuery, UserIdQuery),
        query_example="?phone_number=447400849540&wait=25",
        example='{"messages":[{"id":1,"phone_number":"+447400849540",'
        '"sms_text":"Your code is 493817","otp_code":"493817","otp_rule":"keyword-before",'
        '"provider":"gw","received_at":"2026-11-25T09:30:00.123456Z","webhook":"delivered"}]}',
    ),
    Endpoint(
        "summary",
        "/api/summary",
        "The user's counts: in all, and of each day (UTC).",
        SummarySchema,
        [*NO_USER, BAD_PARAMETER, INTERNAL],
        query=(SummaryQuery, UserIdQuery),
        example='{"totals":{"numbers":7,"sms":9,"otps":8,"webhooks_delivered":8},'
        '"days":[{"numbers":0,"sms":0,"otps":0,"webhooks_delivered":0,"day":"2026-10-27"},…]}',
    ),
    Endpoint(
        "ingest",
        "/api/ingest",
        "Takes in an SMS from a gateway.",
        IngestedSchema,
        [
            ((400, "a sentence naming the field"), "the SMS is malformed; nothing is stored"),
            (errors.InvalidIngestKey, "no key, an unknown one, or its gateway is disabled"),
            (errors.InvalidSignature, "the gateway signs, and this is not its signature"),
            ((413, "too large"), "more than 256 KiB"),
            INTERNAL,
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
        HealthSchema,
        [(errors.Unhealthy, "the database is away, or its schema is not current")],
        key=None,
        example='{"database":"ok"}',
    ),
]


@cache
def document():
    """The OpenAPI 3.1 document, as a dict; `x-failures` lists each error of a call."""
    plugin = MarshmallowPlugin()
    spec = APISpec("OTP number service", "1", "3.1.0", plugins=[plugin])
    converter = plugin.converter
    converter.field_mapping |= {
        Digits: ("integer", None),
        Text: ("string", None),
        Phone: ("string", None),
        Moment: ("string", "date-time"),
    }
    converter.add_attribute_function(_bounds)
    spec.components.schema("Error", _object(status={"const": "error"}, message={"type": "string"}))
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    spec.components.security_scheme("header", _api_key())
    for endpoint in ENDPOINTS:
        operation = _operation(endpoint, converter)
        headers = {"security": [{"bearer": []}, {"header": []}]} if endpoint.key else {}
        spec.path(endpoint.path, operations={endpoint.method: operation | headers})
        if endpoint.key:
            spec.path(
                f"{endpoint.path}/{{{endpoint.key}}}", operations=_by_path(endpoint, operation)
            )
    return spec.to_dict() | {"webhooks": {"otp_received": {"post": WEBHOOK}}}


def _operation(endpoint, converter):
    parameters = [*endpoint.headers]
    for schema in endpoint.query:
        parameters += converter.schema2parameters(schema(), location="query")
    # An empty one counts as missing
    parameters = [p | {"allowEmptyValue": True} if p["in"] == "query" else p for p in parameters]
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


def _by_path(endpoint, operation):
    key = {"in": "path", "name": endpoint.key, "required": True, "schema": {"type": "string"}}
    changes = {
        "operationId": f"{endpoint.name}_by_path",
        "summary": f"{endpoint.summary} (The key in the path.)",
        "parameters": [key, *operation["parameters"]],
    }
    return {endpoint.method: operation | changes}


def _failures(endpoint):
    """A response for each status, which tells the sentences that come with it."""
    sentences = {}
    for (status, message), _ in map(_plain, endpoint.failures):
        status = "default" if status == "its own" else str(status)
        sentences.setdefault(status, []).append(message)
    return {
        status: _response("; ".join(dict.fromkeys(messages)), "Error")
        for status, messages in sentences.items()
    }


def _plain(failure):
    error, when = failure
    return (error if isinstance(error, tuple) else (error.status, error.message)), when


def _response(description, schema):
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


def _api_key():
    return {"type": "apiKey", "in": "header", "name": "X-API-Key"}


def _bounds(self, field, **kwargs):
    if isinstance(field, Digits):
        return {"minimum": field.low, "maximum": field.high}
    return {"pattern": PHONE_PATTERN} if isinstance(field, Phone) else {}
