"""The URLs under which a gateway may know this service, for signatures that include the URL."""

import re

from flask import Request


def candidates(request: Request) -> list[str]:
    """The URL of the request, without its query, as its sender may have signed it.

    A proxy may have turned https into http, and gateways differ on whether they sign the port. The
    host has to come through, or be told by a trusted proxy (TRUSTED_PROXIES).
    """
    name = re.sub(r":\d+\Z", "", request.host)
    return [
        f"{scheme}://{host}{request.path}"
        for scheme, port in (("https", 443), ("http", 80))
        for host in (request.host, name, f"{name}:{port}")
    ]


def query(request: Request) -> str:
    """The query string as it was sent, still percent-encoded; empty if there is none."""
    return request.query_string.decode("utf-8", "replace")
