"""Hands out phone numbers from a main server and delivers the OTPs that arrive for them."""

import contextlib
import logging
import os
import secrets
import tempfile
from pathlib import Path

import click
from flask import Flask, request
from werkzeug.middleware.proxy_fix import ProxyFix

from config import Config, ConfigError
from service import api, cli, delivery, history, logs, profile, sessions, upstream
from service.models import db, migrate, set_up_mysql, set_up_sqlite

MAX_BODY_BYTES = 256 * 2**10


def create_app(config=None):
    """The WSGI application, with the settings of `config` (default: the environment's)."""
    config = config or Config.from_environment()
    logs.configure(config.LOG_LEVEL, _log_stream())
    app = Flask(__name__)
    app.config.from_object(config)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY_BYTES, PROPAGATE_EXCEPTIONS=False)
    app.json.sort_keys = False
    app.url_map.merge_slashes = False  # a key may have two in it, and is not to be redirected
    logs.hide(config.SYSTEM_API_KEY)
    if not config.SECRET_KEY:
        app.config["SECRET_KEY"] = _development_secret(Path(app.instance_path))
        app.config["SECRET_KEY_IS_OWN"] = True
        logs.event(app.logger, "no_secret_key", logging.WARNING, used="instance/secret_key")
    if hops := config.TRUSTED_PROXIES:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)

    db.init_app(app)
    migrate.init_app(
        app, db, directory=str(Path(__file__).with_name("migrations")), render_as_batch=False
    )
    with app.app_context():
        if db.engine.dialect.name == "sqlite":
            set_up_sqlite(db.engine)
        else:
            set_up_mysql(db.engine, config.DATABASE_HOSTS)
    upstream.init_app(app)
    delivery.init_app(app)
    history.init_app(app)

    sessions.init_app(app)
    app.register_blueprint(api.bp)
    app.register_blueprint(profile.bp)
    app.register_error_handler(Exception, _answer_error)
    app.after_request(profile.secure)
    app.after_request(_tell_request_id)
    cli.init_app(app)
    return app


def _log_stream():
    """A command's stdout is its answer, so it logs to stderr; `flask run` is a server."""
    command = click.get_current_context(silent=True)
    return "stdout" if command is None or command.info_name == "run" else "stderr"


def _development_secret(folder):
    """A random key kept in instance/: for one machine; `flask doctor` asks for a real one.

    Raises ConfigError where it cannot be kept.
    """
    path = folder / "secret_key"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Whole or not at all, since processes start together
            with tempfile.NamedTemporaryFile("w", dir=folder) as draft:
                draft.write(secrets.token_urlsafe(48))
                draft.flush()
                with contextlib.suppress(FileExistsError):
                    os.link(draft.name, path)
        return path.read_text()
    except OSError as e:
        raise ConfigError(f"SECRET_KEY is not set, and none can be kept in instance/: {e}") from e


def _answer_error(error):
    return api.answer_error(error) if api.serves(request) else profile.answer_error(error)


def _tell_request_id(response):
    response.headers["X-Request-ID"] = logs.request_id()
    return response
