"""What every format has in common: its type, and the checks on what comes in."""

import hmac
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from flask import Request

from service.errors import BadRequest, InvalidSignature
from service.sms import charsets
from service.sms.incoming import Sms


class Options(NamedTuple):
    """What the operator set for one provider: the secret it signs with, and its own number."""

    secret: str | None = None
    number: str | None = None


class Gateway(NamedTuple):
    """One format: `parse(request, options)` returns the Sms or raises BadRequest or
    InvalidSignature; `answer` is what the gateway accepts as success (None: our own JSON);
    `setup` tells the operator how to configure it, with URL for the ingest URL.
    """

    parse: Callable[[Request, Options], Sms]
    setup: str
    answer: tuple[str, str] | None = None  # body, content type
    get: bool = False  # whether GET is also accepted
    signs: bool = False


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


def json_object(request: Request) -> dict[str, Any]:
    """The body, read as JSON whatever its content type; raises BadRequest."""
    try:
        body = request.get_json(silent=True, force=True)
    except RecursionError:
        body = None
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object")
    return body
