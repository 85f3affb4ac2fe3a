"""Hands out phone numbers from a main server and delivers the OTPs that arrive for them."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

import click
from flask import Flask, Response, request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.middleware.proxy_fix import ProxyFix

from config import Config, ConfigError
from service import commands, limits, logs, metrics, pages, upstream, waiting, watch
from service.api import routes
from service.database.engine import db, restrict, set_up_mysql, set_up_sqlite
from service.database.health import is_old_schema
from service.errors import Busy, SchemaNotCurrent
from service.pages import session
from service.webhooks import attempt, by_hand, outcomes, pace, queue

MAX_BODY_BYTES = 256 * 2**10
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def create_app(config: Config | None = None) -> Flask:
    """The WSGI application, configured by `config` (default: the environment)."""
    config = config or Config.from_environment()
    logs.configure(config.LOG_LEVEL, _log_stream())
    app = Flask(__name__)
    app.config.from_object(config)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES, PROPAGATE_EXCEPTIONS=False)
    app.json.sort_keys = False  # type: ignore[attr-defined]  # on Flask's default provider
    app.json.ensure_ascii = False  # type: ignore[attr-defined]  # escapes treble most texts
    app.url_map.merge_slashes = False  # a key may contain "//", and must not be redirected
    if not config.SECRET_KEY:
        app.config["SECRET_KEY"] = _development_secret(Path(app.instance_path))
        app.config["SECRET_KEY_IS_OWN"] = True
    if hops := config.TRUSTED_PROXIES:
        proxied = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)
        app.wsgi_app = proxied  # type: ignore[method-assign]  # as Flask documents it

    db.init_app(app)
    restrict(Path(app.instance_path))  # which holds the database and a key
    with app.app_context():
        if db.engine.dialect.name == "sqlite":
            set_up_sqlite(db.engine)
        else:
            set_up_mysql(db.engine, config.DATABASE_HOSTS)
    for part in (
        logs, limits, waiting, upstream, queue, attempt, outcomes, pace, by_hand, session, commands,
    ):  # fmt: skip
        part.init_app(app)
    metrics.init_app(app, watch.read)
    app.register_blueprint(routes.bp)
    app.register_blueprint(pages.bp)
    app.register_error_handler(Exception, _answer_error)
    app.after_request(_add_headers)
    return app


def _log_stream() -> str:
    """A command prints its output on stdout, so it logs to stderr; `flask run` is a server."""
    command = click.get_current_context(silent=True)
    return "stdout" if command is None or command.info_name == "run" else "stderr"


def _development_secret(folder: Path) -> str:
    """A random key kept in instance/, for one machine; raises ConfigError if it cannot be kept."""
    path = folder / "secret_key"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            # Written atomically, since several processes start at once
            with tempfile.NamedTemporaryFile("w", dir=folder) as draft:
                draft.write(secrets.token_urlsafe(48))
                draft.flush()
                with contextlib.suppress(FileExistsError):
                    os.link(draft.name, path)
        return path.read_text()
    except OSError as e:
        raise ConfigError(f"SECRET_KEY is not set, and none can be kept in instance/: {e}") from e


def _answer_error(error: Exception) -> Any:
    if isinstance(error, PoolTimeout):
        error = Busy()
    elif isinstance(error, DBAPIError) and is_old_schema(error):
        error = SchemaNotCurrent()
    return routes.answer_error(error) if routes.serves(request) else pages.answer_error(error)


def _add_headers(response: Response) -> Response:
    """Add the request id, and headers against foreign scripts, framing and leaks, and log the
    response."""
    response.headers.setdefault("Content-Security-Policy", POLICY)
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("X-Frame-Options", "DENY")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    if request.is_secure:
        response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
    if request.endpoint != "static":
        response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Request-ID"] = logs.request_id()
    logs.log_request(response)
    return response
