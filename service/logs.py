"""Logging: one line per event on stdout, made of known fields alone, so that no key is in it."""

import errno
import itertools
import logging
import logging.config
import os
import re
import threading
import time
import traceback
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from types import TracebackType
from typing import Any

from flask import Flask, Response, current_app, g, has_request_context, request
from sqlalchemy.exc import DBAPIError

METHODS = {"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT"}
# What a caller may choose as the id of a request; a key, or a code, may be none
_REQUEST_ID = re.compile(r"(?!(?:usr|ing|whsec|system)_|[0-9]+$)[\w.-]{8,64}", re.ASCII)
# Values that need no quotes; a path always has some
_PLAIN = re.compile(r"(?!/)[^\s\"'=\\]+")
# Of repeated refusals, one line for each address in so many seconds; for so many addresses at once
REPEAT_SECONDS, MAX_ADDRESSES = 10, 1000
# How many causes of an error are named
MAX_CAUSES = 4
_log = logging.getLogger(__name__)
# The process that starts gunicorn's workers reads no request: what it says can be quoted
_starter = os.getpid()

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def init_app(app: Flask) -> None:
    app.extensions["refusals"] = Refusals()
    app.before_request(_begin)


# --- what is logged -----------------------------------------------------------------------


def event(
    name: str, level: int = logging.INFO, *, exc_info: bool | Exception = False, **fields: Any
) -> None:
    """Log one event as `event=name key=value …`; fields that are None are left out."""
    _log.log(level, f"event={name}{_pairs(fields)}", exc_info=exc_info)


def note_caller(**fields: Any) -> None:
    """Add who calls to the line of this request."""
    g.caller = fields


def log_request(response: Response) -> None:
    """Log this request: its method, its route, the answer's status and the time it took (µs).

    Refused keys are counted, so that a flood of them fills no log.
    """
    refusals: Refusals = current_app.extensions["refusals"]
    path = route()
    if response.status_code == 401 and path.startswith("/api/") and "passed_on" not in g:
        # Who is known by the key was refused for the signature
        name = "wrong_signature" if g.get("caller") else "wrong_key"
        refusals.note(name, path=path, **g.get("caller", {}))
        return
    refusals.log_ended()
    method = request.method if request.method in METHODS else "other"
    us = round((time.perf_counter() - g.get("started", time.perf_counter())) * 1e6)
    answer = {"status": response.status_code, "us": us}
    event("request", method=method, path=path, **answer, **g.get("caller", {}))


def route() -> str:
    """The path of this request as far as it is known: `/api/init/***`; of an unknown one, the
    first part, if that is the first of a known one."""
    if rule := request.url_rule:
        return _masked(rule.rule)
    rules = {rule.rule for rule in current_app.url_map.iter_rules()}
    if request.path in rules:  # with another method
        return request.path
    first = request.path.split("/")[1]
    return f"/{first}/***" if first in {rule.split("/")[1] for rule in rules} - {""} else "/***"


@cache
def _masked(rule: str) -> str:
    return re.sub("<[^>]*>", "***", rule)


def caller_ip() -> IPv4Address | IPv6Address | None:
    """The caller's address, an IPv4 one however it is written; None if it is none."""
    try:
        ip = ip_address(_without_port())
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def caller_address() -> str:
    """The caller's address; for IPv6 its /64, which usually is one subscriber."""
    ip = caller_ip()
    if ip is None:
        return _without_port()
    return str(ip if isinstance(ip, IPv4Address) else ip_network((ip, 64), strict=False))


def _without_port() -> str:
    text = request.remote_addr or ""
    return text.partition(":")[0] if text.count(":") == 1 else text  # some proxies add the port


class Refusals:
    """Logs refused requests: the first of an address at once, the number of the next ones after
    REPEAT_SECONDS."""

    def __init__(self) -> None:
        # (event, address): since when, how many more, the fields
        self._open: OrderedDict[tuple[str, str], tuple[float, int, dict[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, name: str, **fields: Any) -> None:
        """Count one refusal of this request's caller."""
        self.log_ended()
        key = (name, caller_address())
        with self._lock:
            since, more, first = self._open.get(key, (time.monotonic(), -1, fields))
            self._open[key] = since, more + 1, first
        if more < 0:
            event(name, logging.WARNING, address=key[1], count=1, **fields)

    def log_ended(self) -> None:
        """Log the counts that are REPEAT_SECONDS old."""
        while self._open:
            with self._lock:
                key = next(iter(self._open), None)
                if key is None or not self._has_ended(key):
                    return
                _, more, fields = self._open.pop(key)
            if more:
                event(key[0], logging.WARNING, address=key[1], count=more, **fields)

    def __len__(self) -> int:
        return len(self._open)

    def _has_ended(self, key: tuple[str, str]) -> bool:
        is_old = time.monotonic() - self._open[key][0] >= REPEAT_SECONDS
        return is_old or len(self._open) > MAX_ADDRESSES


def request_id() -> str:
    """This request's id: the caller's X-Request-ID if it is well-formed, else a new one."""
    if "request_id" not in g:
        given = request.headers.get("X-Request-ID", "")
        is_taken = _REQUEST_ID.fullmatch(given) and not _has_part_of_key(given)
        g.request_id = given if is_taken else uuid.uuid4().hex
    return str(g.request_id)


def _has_part_of_key(text: str) -> bool:
    """Whether six characters in a row of a system key are in `text`."""
    keys = (current_app.config["SYSTEM_API_KEY"], *current_app.config["SYSTEM_API_KEY_FALLBACKS"])
    return any(key[n : n + 6] in text for key in keys if key for n in range(max(1, len(key) - 5)))


def _begin() -> None:
    g.started = time.perf_counter()


# --- how it is written --------------------------------------------------------------------


def describe(error: BaseException | None) -> str:
    """An error's type, and those of its causes, with what is known to be our own words, a number
    or a name. A foreign error's message is left out: it may quote a request, or stored data."""
    return " < ".join(map(_words, itertools.islice(_causes(error), MAX_CAUSES)))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, DBAPIError):
            return  # its name has that of the driver's error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _words(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, DBAPIError):
        code = next((a for a in getattr(error.orig, "args", ()) if isinstance(a, int)), "")
        code = getattr(error.orig, "sqlite_errorname", code)  # such as SQLITE_FULL
        return f"{name} {type(error.orig).__name__} {code}".strip()
    if words := getattr(error, "log_words", None):
        return f"{name}: {words}"
    number = errno.errorcode.get(getattr(error, "errno", None) or 0)  # of an OSError
    return f"{name} {number}" if number else name


def _pairs(fields: dict[str, Any]) -> str:
    return "".join(f" {name}={_value(v)}" for name, v in fields.items() if v is not None)


def _value(value: Any) -> str:
    """`value`, in quotes unless it is one word: it cannot end its field, or the line."""
    text = str(value)
    if _PLAIN.fullmatch(text) and text.isprintable():
        return text
    quoted = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped(quoted)}"'


def escaped(text: str) -> str:
    """`text` without what would change a line or a terminal: control characters and the like are
    written as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class LineFormatter(logging.Formatter):
    """One line per event: UTC time, level, request id, then the event.

    Of a library's own message, only the constant part is logged: the rest may quote a request.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        head = f"{self.formatTime(record)} {record.levelname}"
        id = request_id() if has_request_context() else "-"
        text = record.getMessage() if record.name == __name__ else _foreign(record)
        error = f" {self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{head} request_id={id} {text}{error}"

    def formatException(self, exc_info: ExcInfo) -> str:
        frames = traceback.extract_tb(exc_info[2])[-8:]
        places = " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames))
        return f"error={describe(exc_info[1])!r} at={places}"


def _foreign(record: logging.LogRecord) -> str:
    """The line of a library, which is quoted where it has read no request."""
    message = None
    if record.name == "gunicorn.error" and os.getpid() == _starter:
        message = record.getMessage()
    elif record.name == "werkzeug":  # once, before it reads a request
        message = "Running on " + " ".join(re.findall(r"\n \* Running on (\S+)", str(record.msg)))
    elif record.args:
        message = str(record.msg)
    place = f"{record.module}:{record.lineno}"
    return "event=library" + _pairs({"logger": record.name, "at": place, "message": message})


class _Startup(logging.Filter):
    """Of the development server, only how it started: its lines of requests quote them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "\n * Running on " in str(record.msg) and not record.args


def dict_config(level: str = "INFO", stream: str = "stdout") -> dict[str, Any]:
    """The `logging.config` for every process, including gunicorn's own loggers."""
    output = {"class": "logging.StreamHandler", "stream": f"ext://sys.{stream}"}
    quiet = {"level": "WARNING" if level in ("DEBUG", "INFO") else level}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": LineFormatter}},
        "filters": {"startup": {"()": _Startup}},
        "handlers": {stream: output | {"formatter": "line"}},
        # Libraries say nothing of use below WARNING, and say it of requests and of SQL
        "root": quiet | {"handlers": [stream]},
        "loggers": {
            "service": {"level": level},
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            "werkzeug": {"level": "INFO", "filters": ["startup"]},
        },
    }


def configure(level: str, stream: str = "stdout") -> None:
    """Send every logger of this process to `stream` in this module's format."""
    logging.config.dictConfig(dict_config(level, stream))
