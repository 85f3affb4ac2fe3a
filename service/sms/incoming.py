"""One incoming SMS, from whatever gateway."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from marshmallow import EXCLUDE, Schema, ValidationError, validate

from service.errors import BadRequest
from service.fields import Code, Moment, Phone, Text

_IS_CODE = validate.Regexp(
    r"(?a)(?=.{0,32}\Z)(-*\w[\w-]*)?\Z", error="must be up to 32 letters and digits"
)


class SmsSchema(Schema):
    """The shape of an SMS."""

    phone_number = Phone(required=True)
    sms_text = Text(required=True)
    message_id = Text(load_default=None, allow_none=True, validate=validate.Length(max=255))
    otp_code = Code(load_default=None, allow_none=True, validate=_IS_CODE)
    received_at = Moment(load_default=None, allow_none=True)
    provider = Text(load_default=None, allow_none=True, validate=validate.Length(max=64))
    sender = Text(load_default=None, allow_none=True)


_SMS = SmsSchema(unknown=EXCLUDE)


class Part(NamedTuple):
    """Which part of a long SMS this is: the `number`th (from 1) of `total` with that reference."""

    reference: str
    total: int
    number: int


class Sms(NamedTuple):
    """One incoming SMS, or a part of one; `digits` is the recipient's number, empty if the gateway
    did not tell for certain."""

    digits: str
    sms_text: str
    message_id: str | None
    otp_code: str | None
    received_at: datetime | None
    provider: str | None
    sender: str | None
    part: Part | None = None


def read(fields: Mapping[str, Any]) -> Sms:
    """The Sms in `fields`, where None counts as missing; raises BadRequest."""
    try:
        sms = _SMS.load({k: v for k, v in fields.items() if v is not None})
    except ValidationError as e:
        errors = e.normalized_messages()
        raise BadRequest(f"Invalid {', '.join(sorted(errors))}", errors=errors) from e
    return Sms(digits=sms.pop("phone_number"), **sms)
