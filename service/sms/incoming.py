"""One incoming SMS, from whatever gateway."""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from marshmallow import EXCLUDE, Schema, validate

from service.errors import BadRequest
from service.fields import Code, Moment, Phone, Text
from service.logs import event

# As long as a provider's name or a sender is in the records
MAX_NAME = 64
# Longer texts are cut, and end with the mark
MAX_CHARACTERS, CUT = 40_000, " [cut]"
_IS_CODE = validate.Regexp(
    r"(?a)(?=.{0,32}\Z)(-*\w[\w-]*)?\Z", error="must be up to 32 letters and digits"
)


class SmsSchema(Schema):
    """The shape of an SMS."""

    phone_number = Phone(required=True)
    sms_text = Text(required=True)
    message_id = Text(load_default=None, allow_none=True)
    otp_code = Code(load_default=None, allow_none=True, validate=_IS_CODE)
    received_at = Moment(load_default=None, allow_none=True)
    provider = Text(load_default=None, allow_none=True)
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
    # When the gateway signed it (Unix seconds), if its signature has a time
    signed_at: float | None = None


def read(fields: Mapping[str, Any], digits: str | None = None) -> Sms:
    """The Sms in `fields`, where None counts as missing; raises BadRequest.

    `digits` is the recipient's number where the format knows better than the fields: "" for one
    that is not known for certain. An optional field that cannot be read counts as missing too, and
    is logged.
    """
    given = {k: v for k, v in fields.items() if v is not None}
    if digits is not None:
        given.pop("phone_number", None)
    partial = () if digits is None else ("phone_number",)
    errors = _SMS.validate(given, partial=partial)
    if required := {name: why for name, why in errors.items() if _SMS.fields[name].required}:
        raise BadRequest(f"Invalid {', '.join(sorted(required))}", errors=required)
    for name in errors:
        event("sms_field_ignored", logging.WARNING, field=name)
    sms = _SMS.load({k: v for k, v in given.items() if k not in errors}, partial=partial)
    sms["sms_text"] = _cut(sms["sms_text"])
    for name in ("provider", "sender"):
        sms[name] = sms[name] and sms[name][:MAX_NAME]
    return Sms(digits=sms.pop("phone_number", digits), **sms)


def mended(text: str) -> str:
    """A text put together from parts: halves of surrogate pairs become characters, or U+FFFD where
    the other half is missing; cut as other texts are."""
    return _cut(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    event("sms_cut", logging.WARNING, characters=len(text))
    return text[: MAX_CHARACTERS - len(CUT)] + CUT
