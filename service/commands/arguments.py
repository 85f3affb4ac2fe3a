"""What the commands take: ids, times, months, and phone numbers."""

from calendar import monthrange
from datetime import date, datetime
from typing import Any, NamedTuple

import click
from flask.cli import ScriptInfo
from marshmallow import ValidationError

from service.database.columns import utcnow
from service.database.engine import db
from service.database.models import User
from service.fields import MAX_ROW_ID, Moment, phone_digits


class _RowId(click.ParamType[int]):
    """The id of a row."""

    name = "id"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        text = str(value)
        if text.isascii() and text.isdecimal() and len(text) < 20 and 0 < int(text) <= MAX_ROW_ID:
            return int(text)
        return self.fail("must be an id, such as 7", param, ctx)


class _UserId(_RowId):
    """The id of a user that there is, removed ones included."""

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        user_id = super().convert(value, param, ctx)
        info = ctx.ensure_object(ScriptInfo)
        with info.load_app().app_context():
            if db.session.get(User, user_id) is None:
                return self.fail(f"there is no user {user_id}", param, ctx)
        return user_id


class _Time(click.ParamType[datetime]):
    """A time in ISO 8601, UTC unless it says otherwise; loaded as aware UTC."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment: datetime = Moment().deserialize(value)
            return moment
        except ValidationError:
            return self.fail("must be a time such as 2026-11-26T09:30Z", param, ctx)


class _PastTime(_Time):
    """A time that is not still to come."""

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        moment = super().convert(value, param, ctx)
        if moment > utcnow():
            return self.fail(f"{value} is in the future", param, ctx)
        return moment


class _Number(click.ParamType[str]):
    """A phone number in international form; loaded as digits."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        try:
            return phone_digits(value)
        except ValidationError as e:
            return self.fail(str(e.messages[0]), param, ctx)


class Period(NamedTuple):
    """Days (UTC) from the first to the last, both included."""

    first: date
    last: date


class _Month(click.ParamType[Period]):
    """A month as its days."""

    name = "month"

    def convert(self, value: Any, param: Any, ctx: Any) -> Period:
        try:
            first = date.fromisoformat(f"{value}-01")
        except ValueError:
            return self.fail("must be a month such as 2026-11", param, ctx)
        return Period(first, first.replace(day=monthrange(first.year, first.month)[1]))


ROW_ID, USER_ID, NUMBER, MONTH = _RowId(), _UserId(), _Number(), _Month()
TIME, PAST_TIME = _Time(), _PastTime()
