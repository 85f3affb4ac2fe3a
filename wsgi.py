"""The WSGI entry point: `gunicorn wsgi:app`, and what `flask` finds by itself."""

from config import ConfigError
from service import create_app

try:
    app = create_app()
except ConfigError as e:
    raise SystemExit(f"Error: {e}") from None
