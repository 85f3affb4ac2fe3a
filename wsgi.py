"""The WSGI entry point: `gunicorn wsgi:app`, and what `flask` finds by itself."""

from service import create_app

app = create_app()
