"""The API described once, for /openapi.json, /docs and docs/api.md: its calls and the webhook."""

from dataclasses import dataclass, replace
from typing import Any

from marshmallow import Schema

from service import errors
from service.api import schemas
from service.auth import UserIdQuery
from service.upstream import InitSchema
from service.webhooks.outcomes import RETRY_SECONDS

# A declared error, or (status, message); and when it is returned
Failure = tuple[type[errors.ApiError] | tuple[int | str, str], str]


@dataclass(frozen=True)
class Endpoint:
    """One call: `failures` are (error or (status, message), when), in the order of the checks;
    `notes` is text of paragraphs, in which backticks enclose code."""

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
    notes: str = ""
    for_operator: bool = False
    # For people: the end of the curl line, and the answer's `data`
    query_example: str = ""
    body_example: str = ""
    example: str = ""


INTRODUCTION = """
    Answers are `{"status":"success","data":…}` or `{"status":"error","message":"…"}` with the HTTP
    status of the error; one about parameters may add `"errors":{field:[…]}`.

    The key goes in the path, or (better, since it then stays out of other people's logs) in
    `Authorization: Bearer KEY` or `X-API-Key: KEY`.
"""
FOR_OPERATORS = """
    `SYSTEM_API_KEY` works in the calls above too; with `user_id=` it acts for that user, and what
    is read so is in the audit trail.
"""


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text like `Endpoint.notes`, each as one line."""
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


NO_USER: list[Failure] = [
    (errors.MissingCredentials, "no key at all"),
    (errors.InvalidApiKey, "an unknown key, or its user is inactive or not approved"),
    (errors.UserIdRequired, "the system key without `user_id`"),
    (errors.TargetUserNotFound, "`user_id` of nobody, or of an inactive or not approved user"),
]
BAD_PARAMETER: Failure = (400, "a sentence naming the parameter"), "a parameter is not as described"
INTERNAL: Failure = (errors.ApiError, "an unforeseen error")
UNAVAILABLE: list[Failure] = [
    (errors.Busy, "no database connection became free in time; see `Retry-After`"),
    (errors.SchemaNotCurrent, "the service is newer than its database"),
]

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
    " name of `to`; `sms_text`, `message` and `body` are of `text`; `message_id` and `messageId`"
    " are of `id`. `otp_code`, `sender` and `received_at` (ISO 8601, Unix seconds or milliseconds)"
    " are optional.",
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
    "description": "A repeat of the user within 24 hours answers the same number; the answer"
    " returns the key.",
    "schema": {"type": "string", "maxLength": 255},
}


def _spelled(seconds: int) -> str:
    """`seconds` in the largest unit that makes it a whole number."""
    size, unit = next(x for x in ((3600, "h"), (60, "min"), (1, "s")) if seconds % x[0] == 0)
    return f"{seconds // size} {unit}"


_WEBHOOK_HEADERS = {
    "webhook-id": "The same over every retry: drop those you have seen.",
    "webhook-timestamp": "When this try was made, in Unix seconds.",
    "webhook-signature": "`v1,…` of the body, with your `whsec_…` secret; two after a rotation.",
}
WEBHOOK: dict[str, Any] = {
    "summary": "An SMS with a code has arrived. Signed as Standard Webhooks describes.",
    "description": "Its URL is set on the page `/profile/edit` (log in with the API key), or by the"
    " operator; no call does it. There a test event can be sent, and a new `whsec_…` secret is"
    " shown, once: the first one came with the API key, and one that is lost can only be rotated."
    " The SMS is stored first; the webhook goes out before the gateway is answered."
    " Delivery is at least once. A redirect is no success, and any 2xx is one whatever becomes of"
    " its body. A test event, sent by hand, has the event `test`, and its `data` is empty.",
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
                        "phone_number": "+447400849540",
                        "otp_code": "493817",
                        "provider": "gw",
                        "sms_text": "Your code is 493817",
                    },
                }
            }
        }
    },
    "responses": {
        "2XX": {"description": "It has arrived."},
        "410": {"description": "Nothing is sent any more, until the webhook is enabled again."},
        "default": {
            "description": f"It is retried after {', '.join(map(_spelled, RETRY_SECONDS))} (± 20 %,"
            " or later where `Retry-After` says so, up to an hour), then it is marked failed."
        },
    },
}

# gunicorn's own answer, before the request reaches the service
TOO_LONG: dict[str, Any] = {
    "414": {"description": "a first line of more than 8,190 bytes", "content": {"text/html": {}}}
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
            *UNAVAILABLE,
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
            *UNAVAILABLE,
        ],
        query=(schemas.GetNumberQuery, UserIdQuery),
        headers=(IDEMPOTENCY_KEY,),
        notes="""
            The formats are `full` (`+447400849540`), `remove_plus` (`447400849540`) and `national`
            (`7400849540`).

            Only GET takes a number: HEAD, a browser's prefetch and other methods are answered 405.

            The main server gets the `Idempotency-Key` as `USER_ID:KEY`; without one, it gets a key
            made for the request.
        """,
        query_example="?country_id=2&number_format=national",
        example='{"phone_number":"7400849540","id":1,"country_id":2,"operator_id":null}',
    ),
    Endpoint(
        "messages",
        "/api/messages",
        "The user's SMS, oldest first: those after `after`, else the latest; with `wait`, as soon"
        " as there is one.",
        schemas.MessagesData,
        [*NO_USER, BAD_PARAMETER, INTERNAL, *UNAVAILABLE],
        query=(schemas.MessagesQuery, UserIdQuery),
        notes="""
            To follow all SMS, pass the last `id` as `after` of the next call. At most about 1 MB is
            answered at a time. (On a cluster of databases an SMS can come with a lower id than the
            one before: start a little before the last one there.)

            `wait` answers within a second of the SMS, else with the empty list. When many are
            waiting already, it answers at once: pause before asking again.

            `sender` is who sent the SMS, where the gateway tells; `otp_rule` is how the code was
            found; `webhook` is `delivered`, `pending`, `dead` or `none`.
        """,
        query_example="?phone_number=447400849540&wait=25",
        example='{"messages":[{"id":1,"phone_number":"+447400849540",'
        '"sms_text":"Your code is 493817","otp_code":"493817","otp_rule":"keyword-before",'
        '"provider":"gw","sender":null,"received_at":"2026-11-25T09:30:00.123456Z","webhook":"delivered"}]}',
    ),
    Endpoint(
        "numbers",
        "/api/numbers",
        "The user's numbers, newest first.",
        schemas.NumbersData,
        [*NO_USER, BAD_PARAMETER, INTERNAL, *UNAVAILABLE],
        query=(schemas.NumbersQuery, UserIdQuery),
        example='{"numbers":[{"id":1,"phone_number":"+447400849540","country_id":2,'
        '"operator_id":null,"assigned_at":"2026-11-25T09:29:00.123456Z"}]}',
    ),
    Endpoint(
        "summary",
        "/api/summary",
        "The user's counts: in all, and of each day (UTC).",
        schemas.SummarySchema,
        [*NO_USER, BAD_PARAMETER, INTERNAL, *UNAVAILABLE],
        query=(schemas.SummaryQuery, UserIdQuery),
        example='{"totals":{"numbers":1,"sms":1,"otps":1,"webhooks_delivered":1},'
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
            *UNAVAILABLE,
        ],
        key="ingest_key",
        method="post",
        body=SMS,
        for_operator=True,
        notes="""
            `ingest_key` is a gateway's, from `flask providers add`; the main server uses
            `SYSTEM_API_KEY`, and posts the webhook's body. A gateway hears what it takes for
            success.

            A JSON list of SMS is answered with a list; all are checked before any is stored. What
            the body lacks may be in the URL (`?to=…`).

            The same provider, message id, number and text, or without an id the same provider,
            number, text and assignment within 10 minutes, is a duplicate, and changes nothing.

            An SMS belongs to the holder of the number at arrival, unless `received_at` lies before
            that holder's assignment (a time in whole seconds means any time in that second). Then
            the main server's time tells who held the number; a gateway's clock is foreign, so its
            SMS goes to the present holder only if nobody else held the number before and it is at
            most 2 minutes, else to nobody. What is nobody's is stored with the reason:
            `unknown_number`, `unknown_recipient` or `assignment_changed`.

            Optional fields that cannot be read count as not given; a text is cut at 40,000
            characters, and ends with `[cut]` then.
        """,
        body_example=" -d to=+447400849540 -d 'text=Your code is 493817' -d id=42",
        example='{"id":2,"matched":true,"duplicate":false,"otp_code":"493817","webhook":"delivered"}',
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
        for_operator=True,
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
