"""Logging: one line an event on stdout, with the request id, and never a key."""

import logging
import logging.config
import re
import time
import traceback
import uuid
from types import TracebackType
from typing import Any

from flask import g, has_request_context, request
from sqlalchemy.exc import DBAPIError

# Keys in paths (/api/init/KEY), wherever a URL ends up in a line, and keys that we made
_PATH_KEY = re.compile(r"(/api/+[\w-]+/+)[^\s?\"'<>]+", re.IGNORECASE)
# The SMS itself, which some gateways send in the query string, perhaps with raw spaces
_SMS_QUERY = re.compile(r"(/api/+ingest\b[^\s?]*\?)(?:.*(?= HTTP/)|.*)", re.IGNORECASE)
# gunicorn quotes the part of a request that it does not understand, which may be any
_QUOTED = re.compile(r"(Invalid request from ip=\S*: [\w ]*|No more data after: ).*")
_OWN_KEY = re.compile(r"(?<![A-Za-z0-9])(usr|ing|whsec)_[\w+/=-]{16,}")
_literals: set[str] = set()
_log = logging.getLogger(__name__)

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def hide(secret: str | None) -> None:
    """Mask `secret`, a key that we did not make, in every later line."""
    if secret:
        _literals.add(secret)


def mask(text: str) -> str:
    """`text` with every key in it, and an SMS in a query string, replaced by `***`."""
    for secret in _literals:
        text = text.replace(secret, "***")
    text = _SMS_QUERY.sub(r"\1***", _PATH_KEY.sub(r"\1***", text))
    return _OWN_KEY.sub(r"\1_***", _QUOTED.sub(r"\1***", text))


class LineFormatter(logging.Formatter):
    """One event, one line: UTC time, level, request id, then the message, masked."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s request_id=%(request_id)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.request_id = request_id() if has_request_context() else "-"
        line = mask(super().format(record))
        if line.isprintable():
            return line
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)

    def formatException(self, exc_info: ExcInfo) -> str:
        frames = traceback.extract_tb(exc_info[2])[-8:]
        places = " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames))
        return f"error={describe(exc_info[1])!r} at={places}"


def describe(error: BaseException | None) -> str:
    """The type of an error, and its text unless that may quote stored data."""
    if isinstance(error, DBAPIError):
        # A driver's sentence may hold the row's values: only its number is kept
        code = next((a for a in getattr(error.orig, "args", ()) if isinstance(a, int)), "")
        return f"{type(error).__name__} {type(error.orig).__name__} {code}".strip()
    return f"{type(error).__name__}: {error}"


def event(name: str, level: int = logging.INFO, *, exc_info: bool = False, **fields: Any) -> None:
    """Log one event as `event=name key=value …`; a field of None is left out."""
    pairs = "".join(f" {k}={v}" for k, v in fields.items() if v is not None)
    _log.log(level, "event=%s%s", name, pairs, exc_info=exc_info)


def request_id() -> str:
    """This request's id: the caller's X-Request-ID where it is a plain one, else a new one."""
    if "request_id" not in g:
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if re.fullmatch(r"[\w.-]{8,64}", given, re.ASCII) else uuid.uuid4().hex
    return str(g.request_id)


def dict_config(level: str = "INFO", stream: str = "stdout") -> dict[str, Any]:
    """The `logging.config` of every process, gunicorn's own loggers included."""
    to_root = {"level": level, "handlers": [], "propagate": True}
    output = {"class": "logging.StreamHandler", "stream": f"ext://sys.{stream}"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": LineFormatter}},
        "handlers": {stream: output | {"formatter": "line"}},
        "root": {"level": level, "handlers": [stream]},
        "loggers": {
            "gunicorn.error": to_root,
            "gunicorn.access": to_root,
            # Below WARNING these write URLs and SQL, which is noise even when masked
            "urllib3": {"level": "WARNING"},
            "alembic": {"level": "WARNING"},
            "sqlalchemy": {"level": "WARNING"},
        },
    }


def configure(level: str, stream: str = "stdout") -> None:
    """Send every logger of this process to `stream` in this module's form."""
    logging.config.dictConfig(dict_config(level, stream))
