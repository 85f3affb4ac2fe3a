"""The schemas of requests and responses; they check shape only and run no queries."""

from marshmallow import Schema, fields, validate

from service.database.models import NO_WEBHOOK, DeliveryState
from service.fields import MAX_ROW_ID, Digits, Moment, Phone, Query, Text
from service.numbers.formats import NumberFormat


class GetNumberQuery(Query):
    """GET /api/get-number."""

    country_id = Digits(
        required=True,
        error_messages={"required": "country_id is required"},
        metadata={"description": "A country of `init`."},
    )
    operator_id = Digits(metadata={"description": "An operator of `init`."})
    number_format = fields.String(
        validate=validate.OneOf(
            list(NumberFormat), error=f"number_format must be one of {', '.join(NumberFormat)}"
        ),
        metadata={"description": "Default: the user's preference, else `full`."},
    )


class NumbersQuery(Query):
    """GET /api/numbers."""

    limit = Digits(1, 200, load_default=50, metadata={"description": "How many at most."})
    before = Digits(high=MAX_ROW_ID, metadata={"description": "An id: older ones than that."})


class MessagesQuery(Query):
    """GET /api/messages."""

    phone_number = Phone(metadata={"description": "Of this number only, in any of its forms."})
    after = Digits(high=MAX_ROW_ID, metadata={"description": "An id: newer ones than that."})
    limit = Digits(1, 200, load_default=50, metadata={"description": "How many at most."})
    wait = Digits(
        0, 25, load_default=0, metadata={"description": "Seconds to wait while there is none."}
    )


class SummaryQuery(Query):
    """GET /api/summary."""

    days = Digits(1, 366, load_default=30, metadata={"description": "How many, up to today."})


class NumberSchema(Schema):
    """A number of a user."""

    id = fields.Integer()
    phone_number = Phone(attribute="digits")
    country_id = fields.Integer()
    operator_id = fields.Integer(allow_none=True)
    assigned_at = Moment()


class MessageSchema(Schema):
    """An SMS of a user; `webhook` is the state of its delivery."""

    id = fields.Integer()
    phone_number = Phone(attribute="digits")
    sms_text = fields.String()
    otp_code = fields.String(allow_none=True)
    otp_rule = fields.String(allow_none=True)
    provider = fields.String()
    sender = fields.String(allow_none=True)
    received_at = Moment()
    webhook = fields.String(validate=validate.OneOf([*DeliveryState, NO_WEBHOOK]))


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


class IngestQuery(Query):
    """The query of GET /api/ingest, as the `generic` format has it; see openapi.SMS."""

    to = Phone(required=True)
    text = Text(required=True)
    id = Text()


class IngestedSchema(Schema):
    """`data` of POST /api/ingest."""

    id = fields.Integer(
        allow_none=True,
        metadata={"description": "Of the SMS; null while a part waits for the others."},
    )
    matched = fields.Boolean()
    duplicate = fields.Boolean()
    otp_code = fields.String(allow_none=True)
    webhook = fields.String(
        validate=validate.OneOf([DeliveryState.DELIVERED, DeliveryState.PENDING, NO_WEBHOOK])
    )
    part = fields.Boolean(
        metadata={
            "description": "True for a part of a long SMS that waits for the others; else left out."
        }
    )


class HealthSchema(Schema):
    """`data` of GET /healthz."""

    database = fields.String()


class CountsSchema(Schema):
    """The counts."""

    numbers = fields.Integer()
    sms = fields.Integer()
    otps = fields.Integer()
    webhooks_delivered = fields.Integer()


class DaySchema(CountsSchema):
    """The counts of one day (UTC)."""

    day = fields.Date()


class SummarySchema(Schema):
    """A user's counts: in total, and for each of the last days, oldest first."""

    totals = fields.Nested(CountsSchema)
    days = fields.List(fields.Nested(DaySchema))
