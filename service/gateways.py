"""The formats in which SMS come in: each takes a request apart and says what it answers."""

from dataclasses import dataclass
from datetime import datetime

from marshmallow import ValidationError

from service import webhooks
from service.errors import BadRequest, InvalidSignature
from service.schemas import SmsSchema


@dataclass
class Sms:
    """One incoming SMS; `digits` is the number it came to."""

    digits: str
    sms_text: str
    message_id: str | None
    otp_code: str | None
    received_at: datetime | None
    provider: str | None


def main_server(request, secret):
    """Section "Webhook" of our own documentation: what the main server POSTs.

    The signature is required when there is a secret. `data.received_at` is taken when given.
    """
    if secret and not webhooks.verify(secret, request.headers, request.get_data()):
        raise InvalidSignature
    body = _json(request)
    if body.get("event") != "otp_received" or not isinstance(body.get("data"), dict):
        raise BadRequest("event must be otp_received, with data")
    return _sms(body["data"] | {"message_id": request.headers.get("webhook-id")})


GENERIC_NAMES = {
    "phone_number": ("phone_number", "to"),
    "sms_text": ("sms_text", "text", "message", "body"),
    "message_id": ("id", "message_id"),
    "otp_code": ("otp_code",),
    "received_at": ("received_at",),
}


def generic(request, secret):
    """JSON, a form or the query string, in the field names of GENERIC_NAMES."""
    given = _json(request) if request.is_json else request.values
    fields = {}
    for field, names in GENERIC_NAMES.items():
        for name in names:
            if given.get(name) is not None:
                fields.setdefault(field, given[name])
    return _sms(fields)


FORMATS = {"main-server": main_server, "generic": generic}


def _json(request):
    body = request.get_json(silent=True, force=True)
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object")
    return body


def _sms(fields):
    try:
        sms = SmsSchema().load(fields)
    except ValidationError as e:
        errors = e.normalized_messages()
        raise BadRequest(f"Invalid {', '.join(sorted(errors))}", errors=errors) from e
    sms["digits"] = sms.pop("phone_number")
    return Sms(**sms)
