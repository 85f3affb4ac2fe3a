"""Logging: one line per event on stdout, with the request id, and never a key."""

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

# Keys in paths (/api/init/KEY), wherever a line contains a URL, and keys that we generated
_PATH_KEY = re.compile(r"(/api/+[\w-]+/+)[^\s?\"'<>]+", re.IGNORECASE)
# The SMS itself, which some gateways send in the query string, perhaps with raw spaces
_SMS_QUERY = re.compile(r"(/api/+ingest\b[^\s?]*\?)(?:.*(?= HTTP/)|.*)", re.IGNORECASE)
# gunicorn quotes the part of a request that it cannot parse, which may be any part
_QUOTED = re.compile(r"(Invalid request from ip=\S*: [\w ]*|No more data after: ).*")
_OWN_KEY = re.compile(r"(?<![A-Za-z0-9])(usr|ing|whsec)_[\w+/=-]{16,}")
_literals: set[str] = set()
_log = logging.getLogger(__name__)

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def hide(secret: str | None) -> None:
    """Mask `secret`, a key that we did not generate, in every later line."""
    if secret:
        _literals.add(secret)


def mask(text: str) -> str:
    """`text` with every key, and any SMS in a query string, replaced by `***`."""
    for secret in _literals:
        text = text.replace(secret, "***")
    text = _SMS_QUERY.sub(r"\1***", _PATH_KEY.sub(r"\1***", text))
    return _OWN_KEY.sub(r"\1_***", _QUOTED.sub(r"\1***", text))


class LineFormatter(logging.Formatter):
    """One line per event: UTC time, level, request id, then the masked message."""

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
    """An error's type and its message, unless that may quote stored data."""
    if isinstance(error, DBAPIError):
        # A driver's message may contain the row's values: only its number or name is kept
        code = next((a for a in getattr(error.orig, "args", ()) if isinstance(a, int)), "")
        code = getattr(error.orig, "sqlite_errorname", code)  # such as SQLITE_FULL
        return f"{type(error).__name__} {type(error.orig).__name__} {code}".strip()
    return f"{type(error).__name__}: {error}"


def event(name: str, level: int = logging.INFO, *, exc_info: bool = False, **fields: Any) -> None:
    """Log one event as `event=name key=value …`; fields that are None are left out."""
    pairs = "".join(f" {k}={v}" for k, v in fields.items() if v is not None)
    _log.log(level, "event=%s%s", name, pairs, exc_info=exc_info)


def request_id() -> str:
    """This request's id: the caller's X-Request-ID if it is well-formed, else a new one."""
    if "request_id" not in g:
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if re.fullmatch(r"[\w.-]{8,64}", given, re.ASCII) else uuid.uuid4().hex
    return str(g.request_id)


def dict_config(level: str = "INFO", stream: str = "stdout") -> dict[str, Any]:
    """The `logging.config` for every process, including gunicorn's own loggers."""
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
            # Below WARNING these log URLs and SQL, which is noise even when masked
            "urllib3": {"level": "WARNING"},
            "alembic": {"level": "WARNING"},
            "sqlalchemy": {"level": "WARNING"},
        },
    }


def configure(level: str, stream: str = "stdout") -> None:
    """Send every logger of this process to `stream` in this module's format."""
    logging.config.dictConfig(dict_config(level, stream))
