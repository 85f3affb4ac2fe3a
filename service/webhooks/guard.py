"""Which addresses a webhook may reach: public ones, and those the operator allows (SSRF)."""

import ipaddress
import re
import unicodedata
from urllib.parse import urlsplit

from flask import current_app

from service import dialling
from service.webhooks.special_addresses import EMBEDDING, FORBIDDEN_V4, FORBIDDEN_V6, GLOBAL_V6

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
MAX_URL = 2048
RESOLVE_SECONDS = 3
# Shown as nothing, or as a space, beside those of the category "format": Unicode's
# Default_Ignorable_Code_Point, and the blank of Braille
_BLANKS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)


class ForbiddenUrl(Exception):
    """A webhook URL that may not be used; the message says why."""


def may_dial(address: str) -> bool:
    """Whether a webhook may be sent to this IP address (text)."""
    given = ipaddress.ip_address(address)
    ip = _embedded(given) or given
    allowed = current_app.config["WEBHOOK_ALLOWED_NETWORKS"]
    if any(ip in network or given in network for network in allowed):
        return True
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in FORBIDDEN_V4)
    return ip in GLOBAL_V6 and not any(ip in network for network in FORBIDDEN_V6)


def _embedded(ip: IPAddress) -> ipaddress.IPv4Address | None:
    """The IPv4 address that is reached by way of this IPv6 one."""
    if any(ip in network for network in EMBEDDING):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None


def check_url(url: str) -> None:
    """Raise ForbiddenUrl unless `url` may be a webhook URL now; asked when it is saved, to tell the
    user early: may_dial() decides at every connection."""
    _check_visible(url)
    check_form(url)
    try:
        host, port = dialling.target(url)
        found = dialling.resolve(host, port, RESOLVE_SECONDS)
    except ValueError as e:
        raise ForbiddenUrl("names a host that is not a valid name") from e
    except dialling.Unresolved as e:
        raise ForbiddenUrl("names a host that cannot be found") from e
    if not all(may_dial(address[0]) for _, address in found):
        raise ForbiddenUrl("names a host that is not on the public internet")


def _check_visible(url: str) -> None:
    """Raise ForbiddenUrl if something in `url` cannot be seen, or changes the order of the rest."""
    for character in url:
        category = unicodedata.category(character)
        is_control = category == "Cc" and not character.isascii()
        if is_control or category in ("Cf", "Cs") or _BLANKS.match(character):
            code = f"U+{ord(character):04X}"
            raise ForbiddenUrl(f"must hold no invisible character ({code})")


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
    has_zone = ":" in host and "%" in host  # of a network interface: RFC 6874
    if port == 0 or has_zone or re.search(r"[\s\x00-\x20\x7f\\]", url):
        raise ForbiddenUrl("is not a valid one")
