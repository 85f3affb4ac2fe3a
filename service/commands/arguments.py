"""What the commands take: ids, and times."""

from datetime import datetime
from typing import Any

import click
from marshmallow import ValidationError

from service.fields import MAX_ROW_ID, Moment


class _RowId(click.ParamType[int]):
    """The id of a row."""

    name = "id"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        text = str(value)
        if text.isascii() and text.isdecimal() and len(text) < 20 and 0 < int(text) <= MAX_ROW_ID:
            return int(text)
        return self.fail("must be an id, such as 7", param, ctx)


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


ROW_ID, TIME = _RowId(), _Time()
