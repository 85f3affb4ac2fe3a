"""What every format has in common: its type, and the checks on what comes in."""

import hmac
import json
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flask import Request

from service.errors import BadRequest, InvalidSignature
from service.sms import charsets, forms
from service.sms.incoming import Sms
from service.webhooks.signing import unix_seconds


class Options(NamedTuple):
    """What the operator set for one provider.

    `numbers` are the digits of the gateway's own numbers, by SIM; "" is the one of all others.
    `fields` say where the generic format finds the fields of an SMS. `reply` is "empty" for a
    gateway that would text our answer back to the sender.
    """

    secret: str | None = None
    numbers: Mapping[str, str] = MappingProxyType({})
    fields: Mapping[str, str] = MappingProxyType({})
    reply: str | None = None


def accept_any(_secret: str) -> None:
    """The check of a secret that may be any text."""


class Gateway(NamedTuple):
    """One format: `parse(request, options)` returns the Sms, or the list of them where the request
    was one; it raises BadRequest or InvalidSignature.

    `answer` is what the gateway accepts as success (None: our own JSON); `setup` tells the operator
    how to configure it, with URL for the ingest URL; `heeds` names the Options that are used;
    `check_secret` raises ValueError, a sentence, for a secret that cannot be one.
    """

    parse: Callable[[Request, Options], Sms | list[Sms]]
    setup: str | Callable[[Options], str]
    answer: tuple[str, str] | None = None  # body, content type
    get: bool = False  # whether GET is also accepted
    heeds: frozenset[str] = frozenset()
    check_secret: Callable[[str], None] = accept_any
    patience: float = math.inf  # how many seconds the gateway waits for the answer


def signing_time(text: str) -> float:
    """The Unix seconds in a signed request; raises InvalidSignature."""
    seconds = unix_seconds(text)
    if seconds is None:
        raise InvalidSignature
    return seconds


def check_signature(request: Request, header: str, signatures: Iterable[str]) -> None:
    """Raise InvalidSignature unless the header is one of the signatures."""
    given = request.headers.get(header, "").encode()
    if not any(hmac.compare_digest(given, signature.encode()) for signature in signatures):
        raise InvalidSignature


def decode(data: bytes, charset: str) -> str:
    """`data` as text; raises BadRequest for an unknown charset."""
    try:
        return charsets.decode(data, charset)
    except (LookupError, ValueError) as e:
        raise BadRequest("Unknown charset") from e


def json_value(request: Request) -> Any:
    """The body, read as JSON whatever its content type; None if it is no JSON.

    Gateways that fill templates leave line breaks in strings, which RFC 8259, 7, forbids.
    """
    try:
        return json.loads(forms.json_text(request), strict=False)
    except (ValueError, RecursionError):
        return None


def json_object(request: Request) -> dict[str, Any]:
    """The body, read as JSON whatever its content type; raises BadRequest."""
    body = json_value(request)
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object")
    return body
