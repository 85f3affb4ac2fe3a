"""Reads the query string, forms and JSON of a request, in whatever charset they are written."""

import json
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl

from flask import Request
from werkzeug.datastructures import MultiDict
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, MultipartDecoder, NeedData

from service.errors import BadRequest
from service.sms import charsets

Pairs = list[tuple[str, bytes]]
# The most parts of a multipart form that are read, as many as Werkzeug itself reads
MAX_PARTS = 1000


def query(request: Request) -> MultiDict[str, str]:
    """The query string, decoded in the request's charset (see `form`)."""
    return _decoded(request, query_bytes(request))


def form(request: Request) -> MultiDict[str, str]:
    """The form in the body, empty if there is none; raises BadRequest for a broken multipart body.

    The charset of a value is what its part declares (RFC 7578, 4.4), or the field `_charset_`
    (4.6), or the Content-Type of the request. Where none of them names a charset that there is, it
    is guessed: see `charsets.guess`.
    """
    if request.mimetype == "multipart/form-data":
        return _multipart(request)
    return _decoded(request, form_bytes(request))


def values(request: Request) -> MultiDict[str, str]:
    """The query string and the form; of a name that is in both, the query's value comes first."""
    both = query(request)
    both.update(form(request))
    return both


def query_bytes(request: Request) -> Pairs:
    """The names, in Latin-1, and the undecoded values of the query string."""
    return _pairs(request.query_string)


def form_bytes(request: Request) -> Pairs:
    """The names, in Latin-1, and the undecoded values of a urlencoded form."""
    is_form = request.mimetype == "application/x-www-form-urlencoded"
    return _pairs(request.get_data()) if is_form else []


def raw_value(request: Request, name: str) -> bytes:
    """The undecoded value of a field of the query string or the form, empty if there is none."""
    is_multipart = request.mimetype == "multipart/form-data"
    body = [(n, v) for n, _, v in _parts(request)] if is_multipart else form_bytes(request)
    return next((value for n, value in query_bytes(request) + body if n == name), b"")


def json_text(request: Request) -> str:
    """The body as text to be read as JSON, without its byte order mark.

    RFC 8259 has UTF-8 only; UTF-16 and UTF-32 are told by their mark or their zero bytes (RFC
    4627, 3). Other charsets count if Content-Type declares them.
    """
    data = request.get_data()
    found = json.detect_encoding(data)
    if found in ("utf-8", "utf-8-sig"):
        return decode(data, _charset(request)).removeprefix("\ufeff")
    return data.decode(found, "replace")


def decode(data: bytes, charset: str | None) -> str:
    """`data` in the declared charset; guessed if none, or an unknown one, is declared."""
    if not charset:
        return charsets.guess(data)
    is_wide = re.match(r"(utf|ucs)-?(2|4|16|32)", charset.strip(), re.IGNORECASE)
    if is_wide and data.isascii() and (plain := data.decode("ascii")).isprintable():
        return plain  # numbers and ids are written in ASCII all the same
    try:
        return charsets.decode(data, charset)
    except (LookupError, ValueError):
        return charsets.guess(data)


def _charset(request: Request) -> str | None:
    return request.mimetype_params.get("charset")


def _pairs(data: bytes) -> Pairs:
    # Latin-1 keeps each byte as it is; UTF-8 would replace what is not UTF-8
    pairs = parse_qsl(data.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    return [(name, value.encode("latin-1")) for name, value in pairs]


def _decoded(request: Request, pairs: Pairs) -> MultiDict[str, str]:
    declared = dict(pairs).get("_charset_", b"").decode("latin-1") or _charset(request)
    return MultiDict(
        (decode(name.encode("latin-1"), declared), decode(value, declared)) for name, value in pairs
    )


def _multipart(request: Request) -> MultiDict[str, str]:
    try:
        fields = list(_parts(request))
    except ValueError as e:
        raise BadRequest("The body must be a multipart form") from e
    default = next((data for name, _, data in fields if name == "_charset_"), b"")
    declared = default.decode("latin-1") or _charset(request)
    return MultiDict((name, decode(data, charset or declared)) for name, charset, data in fields)


def _parts(request: Request) -> Iterator[tuple[str, str | None, bytes]]:
    """The name, declared charset and bytes of each field; files are passed over."""
    boundary = request.mimetype_params.get("boundary", "").encode("latin-1", "replace")
    decoder = MultipartDecoder(boundary, max_parts=MAX_PARTS)
    decoder.receive_data(request.get_data())
    decoder.receive_data(None)
    field, value = None, b""
    while not isinstance(part := decoder.next_event(), Epilogue | NeedData):
        if isinstance(part, Data):
            value += part.data
            if field and not part.more_data:
                mimetype = field.headers.get("Content-Type", "")
                yield field.name, parse_options_header(mimetype)[1].get("charset"), value
        else:
            field, value = part if isinstance(part, Field) else None, b""
