"""Which addresses a webhook may reach: public ones, and those the operator allows (SSRF)."""

import ipaddress
import re
from urllib.parse import urlsplit

from flask import current_app

from service import outbound

MAX_URL = 2048
RESOLVE_SECONDS = 3
# The special parts of global unicast (https://www.iana.org/assignments/iana-ipv6-special-registry):
# Teredo and other protocol assignments, documentation, 6to4
_SPECIAL_V6 = "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
# 6to4 relays, multicast, and a cloud's metadata service on a public address
_SPECIAL_V4 = "192.88.99.0/24", "224.0.0.0/4", "168.63.129.16/32"
_SPECIAL = [ipaddress.ip_network(network) for network in _SPECIAL_V4 + _SPECIAL_V6]


class ForbiddenUrl(Exception):
    """A webhook URL that may not be used; the message says why."""


def may_dial(address: str) -> bool:
    """Whether a webhook may be sent to this IP address (text)."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if any(ip in network for network in current_app.config["WEBHOOK_ALLOWED_NETWORKS"]):
        return True
    if not ip.is_global or any(ip in network for network in _SPECIAL):
        return False
    return ip.version == 4 or ip in _GLOBAL_V6


def check_url(url: str) -> None:
    """Raise ForbiddenUrl unless `url` may be a webhook URL now; asked when it is saved, to tell the
    user early: may_dial() decides at every connection."""
    check_form(url)
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = outbound.resolve(parts.hostname or "", port, RESOLVE_SECONDS)
    except outbound.Unresolved as e:
        raise ForbiddenUrl("names a host that cannot be found") from e
    if not all(may_dial(address[0]) for _, address in found):
        raise ForbiddenUrl("names a host that is not on the public internet")


def check_form(url: str) -> None:
    """Raise ForbiddenUrl if the form of `url` alone rules it out as a webhook URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise ForbiddenUrl("is not a valid one") from e
    if parts.scheme not in ("http", "https") or not host:
        raise ForbiddenUrl("must begin with https:// and name a host")
    if parts.scheme == "http" and current_app.config["WEBHOOK_REQUIRE_HTTPS"]:
        raise ForbiddenUrl("must begin with https://")
    if "@" in parts.netloc:
        raise ForbiddenUrl("must hold no user name or password")
    if len(url) > MAX_URL:
        raise ForbiddenUrl(f"is longer than {MAX_URL:,} characters")
    if port == 0 or re.search(r"[\s\x00-\x20\x7f\\]", url):
        raise ForbiddenUrl("is not a valid one")
