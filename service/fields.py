"""Field types shared by all schemas: ids, texts, codes, phone numbers, times, queries."""

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, pre_load
from werkzeug.datastructures import MultiDict

from service.errors import BadRequest

MAX_ID = 2**31 - 1
MAX_ROW_ID = 2**63 - 1
# What people and programs write within a phone number: spaces, hyphens, dots, invisible characters
_SEPARATOR = re.compile(r"[\s.\-()/]")
_INVISIBLE = ("Cc", "Cf", "Pd", "Zs")


def phone_digits(number: str) -> str:
    """`number` as 4 to 20 digits, without a leading `+` or `00`.

    Separators, invisible and typographic characters and `tel:` (RFC 3966) are read past; `(0)` is a
    trunk prefix, which is dialled only within the country. Raises ValidationError.
    """
    text = unicodedata.normalize("NFKC", number)
    text = "".join(c for c in text if unicodedata.category(c) not in _INVISIBLE or c in "-\t")
    text, _, parameters = text.strip().removeprefix("tel:").removeprefix("TEL:").partition(";")
    context = re.search(r"(?:^|;)phone-context=(\+[^;]+)", parameters)
    if context and not text.startswith("+"):
        text = context[1] + text
    digits = _SEPARATOR.sub("", text.replace("(0)", ""))
    digits = digits[1:] if digits.startswith("+") else digits.removeprefix("00")
    if not re.fullmatch(r"[0-9]{4,20}", digits):
        raise ValidationError("must be a phone number in international form")
    return digits


class Digits(fields.Field[int]):
    """An integer in ASCII digits; `int()` alone would accept `1_000` and `٣`."""

    def __init__(self, low: int = 0, high: int = MAX_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low, self.high = low, high

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        if not re.fullmatch(r"-?[0-9]+", str(value)) or isinstance(value, bool):
            raise ValidationError(f"{attr} must be an integer")
        if len(str(value)) > 19 or not self.low <= int(value) <= self.high:
            raise ValidationError(f"{attr} must be between {self.low} and {self.high}")
        return int(value)


class Text(fields.String):
    """A string, or an integer read as a string; a lone surrogate becomes U+FFFD."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0:
            value = str(int(value))  # JSON does not distinguish 7 from 7.0
        text = super()._deserialize(value, attr, data, **kwargs)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Code(Text):
    """A code as its sender wrote it, but without spaces and with ASCII digits."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        text = "".join(super()._deserialize(value, attr, data, **kwargs).split())
        return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


class Phone(Text):
    """A phone number: loaded as digits, dumped as `+` and digits."""

    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> str:
        return f"+{value}"

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        return phone_digits(super()._deserialize(value, attr, data, **kwargs))


class Moment(fields.Field[datetime]):
    """A time: ISO 8601 (UTC by default), Unix seconds or milliseconds; loaded as aware UTC."""

    def _serialize(self, value: datetime | None, attr: Any, obj: Any, **kwargs: Any) -> str | None:
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if value else None

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> datetime:
        try:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number or re.fullmatch(r"[0-9]{1,14}(\.[0-9]+)?", str(value)):
                seconds = float(value)
                # As seconds, this would be in the year 5138
                is_in_ms = 1e11 <= seconds < 1e14
                return datetime.fromtimestamp(seconds / 1000 if is_in_ms else seconds, UTC)
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, TypeError, OverflowError, OSError) as e:
            raise ValidationError("must be a time in ISO 8601, Unix seconds or milliseconds") from e


class Query(Schema):
    """Query parameters: an empty one counts as missing, an unknown one is ignored."""

    class Meta:
        unknown = EXCLUDE

    @pre_load
    def drop_empty(self, data: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {name: value for name, value in data.items() if value != ""}


def load_query(schema: Schema, args: MultiDict[str, str]) -> dict[str, Any]:
    """Load the query string `args`; raises BadRequest, which names the first bad parameter."""
    repeated = [name for name in schema.fields if len(args.getlist(name)) > 1]
    errors = {name: [f"{name} was given more than once"] for name in repeated}
    loaded: dict[str, Any] = {}
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
