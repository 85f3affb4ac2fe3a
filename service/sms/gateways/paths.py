"""Paths into nested JSON: names and list indexes joined by dots, as in `data.to.0.phone_number`."""

import json
from collections.abc import Mapping
from typing import Any


def is_path(path: str) -> bool:
    return all(part.strip() for part in path.split("."))


def walk(value: Any, path: str) -> tuple[list[Any], Any]:
    """What is at `path` (None if nothing is), after what it lies in, from the outside inward.

    A name may have dots itself. Text that is JSON is gone into: Amazon SNS, for one, wraps messages
    that way (https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html).
    """
    around: list[Any] = []
    whole = isinstance(value, Mapping) and path in value
    for part in [path] if whole else path.split("."):
        value = _opened(value)
        around.append(value)
        index = _index(part)
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and index is not None and index < len(value):
            value = value[index]
        else:
            return around, None
    return around, value


def put(value: Any, path: str, leaf: Any) -> Any:
    """`value` (a dict, a list, or None) with `leaf` added at `path`."""
    part, _, rest = path.partition(".")
    index = _index(part)
    if index is not None and not isinstance(value, dict):
        items = list(value or [])
        items += [None] * (index + 1 - len(items))
        items[index] = put(items[index], rest, leaf) if rest else leaf
        return items
    known = value if isinstance(value, dict) else {}
    return known | {part: put(known.get(part), rest, leaf) if rest else leaf}


def _index(part: str) -> int | None:
    return int(part) if part.isascii() and part.isdecimal() and len(part) < 4 else None


def _opened(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return json.loads(value, strict=False)
        except (ValueError, RecursionError):
            pass
    return value
