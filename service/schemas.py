"""The shapes of what comes in and goes out; shape only, no queries."""

import re
import unicodedata
from datetime import UTC, datetime

from marshmallow import (
    EXCLUDE,
    INCLUDE,
    Schema,
    ValidationError,
    fields,
    post_load,
    pre_load,
    validate,
)

from service.errors import BadRequest
from service.models import NUMBER_FORMATS

MAX_ID = 2**31 - 1
MAX_ROW_ID = 2**63 - 1
_SEPARATORS = str.maketrans("", "", " -.()\u00a0\t")


def phone_digits(number):
    """`number` as digits, a leading `+` or `00` and separators removed; 4 to 20 of them.

    Raises ValidationError.
    """
    digits = number.translate(_SEPARATORS)
    digits = digits[1:] if digits.startswith("+") else digits.removeprefix("00")
    if not re.fullmatch(r"[0-9]{4,20}", digits):
        raise ValidationError("must be a phone number in international form")
    return digits


class Digits(fields.Field):
    """A whole number written in ASCII digits; `int()` alone takes `1_000` and `٣`."""

    def __init__(self, low=0, high=MAX_ID, **kwargs):
        super().__init__(**kwargs)
        self.low, self.high = low, high

    def _deserialize(self, value, attr, data, **kwargs):
        if not re.fullmatch(r"-?[0-9]+", str(value)) or isinstance(value, bool):
            raise ValidationError(f"{attr} must be an integer")
        if len(str(value)) > 19 or not self.low <= int(value) <= self.high:
            raise ValidationError(f"{attr} must be between {self.low} and {self.high}")
        return int(value)


class Text(fields.String):
    """A string, or an integer taken as one; half a surrogate pair becomes U+FFFD."""

    def _deserialize(self, value, attr, data, **kwargs):
        if isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0:
            value = str(int(value))  # JSON knows no difference between 7 and 7.0
        text = super()._deserialize(value, attr, data, **kwargs)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Code(Text):
    """A code as its sender names it: without spaces, and with ASCII digits."""

    def _deserialize(self, value, attr, data, **kwargs):
        text = "".join(super()._deserialize(value, attr, data, **kwargs).split())
        return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


class Phone(Text):
    """A phone number, as its digits; goes out as `+` and digits."""

    def _serialize(self, value, attr, obj, **kwargs):
        return f"+{value}"

    def _deserialize(self, value, attr, data, **kwargs):
        return phone_digits(super()._deserialize(value, attr, data, **kwargs))


class Moment(fields.Field):
    """A time: ISO 8601 (UTC unless it says otherwise) or Unix seconds; aware UTC."""

    def _serialize(self, value, attr, obj, **kwargs):
        return value and value.astimezone(UTC).isoformat().replace("+00:00", "Z")

    def _deserialize(self, value, attr, data, **kwargs):
        try:
            if isinstance(value, int | float) or re.fullmatch(
                r"[0-9]{1,11}(\.[0-9]+)?", str(value)
            ):
                return datetime.fromtimestamp(float(value), UTC)
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, TypeError, OverflowError, OSError) as e:
            raise ValidationError("must be a time in ISO 8601 or Unix seconds") from e


class _Query(Schema):
    """Query parameters: an empty one counts as missing, unknown ones are ignored."""

    class Meta:
        unknown = EXCLUDE

    @pre_load
    def drop_empty(self, data, **kwargs):
        return {name: value for name, value in data.items() if value != ""}


def load_query(schema, args):
    """What `schema` makes of the query string `args`; raises BadRequest naming the first that is
    wrong."""
    errors = {
        name: [f"{name} was given more than once"]
        for name in schema.fields
        if len(args.getlist(name)) > 1
    }
    try:
        loaded = schema.load(args.to_dict())
    except ValidationError as e:
        errors = e.normalized_messages() | errors
    if errors:
        first = next(name for name in schema.fields if name in errors)
        sentence = errors[first][0]
        named = sentence if first in sentence else f"{first} {sentence}"
        raise BadRequest(named, errors=errors)
    return loaded


class GetNumberQuery(_Query):
    """GET /api/get-number."""

    country_id = Digits(
        required=True,
        error_messages={"required": "country_id is required"},
        metadata={"description": "A country of `init`."},
    )
    operator_id = Digits(metadata={"description": "An operator of `init`."})
    number_format = fields.String(
        validate=validate.OneOf(
            NUMBER_FORMATS, error=f"number_format must be one of {', '.join(NUMBER_FORMATS)}"
        ),
        metadata={"description": "Default: the user's preference, else `full`."},
    )


class NumbersQuery(_Query):
    """GET /api/numbers."""

    limit = Digits(1, 200, load_default=50, metadata={"description": "How many at most."})
    before = Digits(high=MAX_ROW_ID, metadata={"description": "An id: older ones than that."})


class MessagesQuery(_Query):
    """GET /api/messages."""

    phone_number = Phone(metadata={"description": "Of this number only, in any of its forms."})
    after = Digits(high=MAX_ROW_ID, metadata={"description": "An id: newer ones than that."})
    limit = Digits(1, 200, load_default=50, metadata={"description": "How many at most."})
    wait = Digits(
        0, 25, load_default=0, metadata={"description": "Seconds to wait while there is none."}
    )


class SummaryQuery(_Query):
    """GET /api/summary."""

    days = Digits(1, 366, load_default=30, metadata={"description": "How many, up to today."})


class PageQuery(_Query):
    """Which numbers, messages or deliveries a page shows."""

    before = Digits(high=MAX_ROW_ID)
    tested = Digits(high=MAX_ROW_ID)


class ProfileForm(Schema):
    """What /profile/edit takes."""

    class Meta:
        unknown = EXCLUDE

    webhook_url = fields.String(load_default="")
    number_format = fields.String(
        required=True,
        validate=validate.OneOf(NUMBER_FORMATS, error="Choose one of the formats."),
        error_messages={"required": "Choose one of the formats."},
    )

    @post_load
    def strip(self, data, **kwargs):
        return data | {"webhook_url": data["webhook_url"].strip() or None}


class UserIdQuery(_Query):
    """The `user_id` that goes with the system key."""

    user_id = Digits(
        low=1, metadata={"description": "With the system key: the user who is acted for."}
    )


class CountrySchema(Schema):
    """A country of the main server; unknown fields are kept."""

    class Meta:
        unknown = INCLUDE

    id = fields.Integer(required=True, strict=True)
    name = fields.String()
    phone_code = Text(allow_none=True)


class OperatorSchema(Schema):
    """An operator of the main server; unknown fields are kept."""

    class Meta:
        unknown = INCLUDE

    id = fields.Integer(required=True, strict=True, validate=validate.Range(0, MAX_ID))
    name = fields.String(required=True, validate=validate.Length(max=255))
    country_id = fields.Integer(strict=True, allow_none=True, validate=validate.Range(0, MAX_ID))


class InitSchema(Schema):
    """`data` of the main server's init."""

    class Meta:
        unknown = INCLUDE

    countries = fields.List(fields.Nested(CountrySchema), required=True)
    operators = fields.List(fields.Nested(OperatorSchema), required=True)


class GrantSchema(Schema):
    """`data` of the main server's get-number."""

    class Meta:
        unknown = EXCLUDE

    phone_number = fields.String(required=True)


class NumberSchema(Schema):
    """A number of a user."""

    id = fields.Integer()
    phone_number = Phone(attribute="digits")
    country_id = fields.Integer()
    operator_id = fields.Integer(allow_none=True)
    assigned_at = Moment()


class MessageSchema(Schema):
    """An SMS of a user; `webhook` says what became of its delivery."""

    id = fields.Integer()
    phone_number = Phone(attribute="digits")
    sms_text = fields.String()
    otp_code = fields.String(allow_none=True)
    otp_rule = fields.String(allow_none=True)
    provider = fields.String()
    received_at = Moment()
    webhook = fields.String(validate=validate.OneOf(("delivered", "pending", "dead", "none")))


class NumbersData(Schema):
    """`data` of GET /api/numbers."""

    numbers = fields.List(fields.Nested(NumberSchema))


class MessagesData(Schema):
    """`data` of GET /api/messages."""

    messages = fields.List(fields.Nested(MessageSchema))


class AssignedSchema(Schema):
    """`data` of GET /api/get-number."""

    phone_number = fields.String()
    id = fields.Integer()
    country_id = fields.Integer()
    operator_id = fields.Integer(allow_none=True)


class IngestedSchema(Schema):
    """`data` of POST /api/ingest."""

    id = fields.Integer()
    matched = fields.Boolean()
    duplicate = fields.Boolean()
    otp_code = fields.String(allow_none=True)
    webhook = fields.String(validate=validate.OneOf(("delivered", "pending", "none")))


class HealthSchema(Schema):
    """`data` of GET /healthz."""

    database = fields.String()


class CountsSchema(Schema):
    """What was counted."""

    numbers = fields.Integer()
    sms = fields.Integer()
    otps = fields.Integer()
    webhooks_delivered = fields.Integer()


class DaySchema(CountsSchema):
    """What was counted on one day (UTC)."""

    day = fields.Date()


class SummarySchema(Schema):
    """A user's counts: all there ever were, and of each of the last days, oldest first."""

    totals = fields.Nested(CountsSchema)
    days = fields.List(fields.Nested(DaySchema))


class SmsSchema(Schema):
    """One incoming SMS, whatever gateway it came from."""

    class Meta:
        unknown = EXCLUDE

    phone_number = Phone(required=True)
    sms_text = Text(required=True)
    message_id = Text(load_default=None, allow_none=True, validate=validate.Length(max=255))
    otp_code = Code(
        load_default=None,
        allow_none=True,
        validate=validate.Regexp(
            r"(?a)(?=.{0,32}\Z)(-*\w[\w-]*)?\Z", error="must be up to 32 letters and digits"
        ),
    )
    received_at = Moment(load_default=None, allow_none=True)
    provider = Text(load_default=None, allow_none=True, validate=validate.Length(max=64))
