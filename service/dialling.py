"""From the host of a URL to a connected socket, in bounded time."""

import contextlib
import ipaddress
import itertools
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any, cast
from urllib.parse import urlsplit

import requests

Address = tuple[socket.AddressFamily, tuple[Any, ...]]
CONNECT_SECONDS = 3
# How long an address is tried alone (RFC 8305, section 5, "Connection Attempt Delay")
HEAD_START_SECONDS = 0.25
# A name may have thousands of addresses, and each attempt is an open file
MAX_ADDRESSES = 20


class Unresolved(Exception):
    """A host name that was not resolved, or not in time."""


def target(url: str) -> tuple[str, int]:
    """The host and the port that requests dials for `url`; raises ValueError.

    The host is in ASCII as IDNA 2008 has it (`straße.example` is `xn--strae-oqa.example`), where
    `socket` alone would look up the name of IDNA 2003 (`strasse.example`): somebody else's, maybe.
    """
    request = requests.PreparedRequest()
    request.prepare_url(url, None)
    parts = urlsplit(request.url or "")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def resolve(host: str, port: int, seconds: float) -> list[Address]:
    """The (family, address) pairs of `host`, found within `seconds`; raises Unresolved."""
    host = host.strip("[]")
    try:
        version = ipaddress.ip_address(host).version
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]
    except ValueError:
        pass
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as e:
            found.put(e)

    # getaddrinfo has no time limit of its own: a slow one is left behind
    threading.Thread(target=look_up, daemon=True).start()
    try:
        answers = found.get(timeout=seconds)
    except queue.Empty:
        raise Unresolved("timed out") from None
    if isinstance(answers, Exception):
        raise Unresolved(str(answers)) from answers
    return [(family, address) for family, _, _, _, address in answers]


def connect(addresses: list[Address], options: Iterable[Any], ends: float) -> socket.socket:
    """A socket connected to the first of `addresses` that accepts; raises OSError.

    The addresses share the time until `ends` (of time.monotonic): one that does not answer gets
    a head start, and then the next one is tried beside it (RFC 8305, section 5). `options` are
    for setsockopt.
    """
    if not addresses:
        raise OSError("the name has no address")
    waiting = _interleaved(addresses)[:MAX_ADDRESSES]
    head_start = min(HEAD_START_SECONDS, (ends - time.monotonic()) / len(waiting))
    winner: socket.socket | None = None
    attempts: list[socket.socket] = []
    errors: list[OSError] = []
    try:
        with selectors.DefaultSelector() as selector:
            for n, (family, address) in enumerate(waiting, 1):
                attempts.append(socket.socket(family, socket.SOCK_STREAM))
                try:
                    _begin(attempts[-1], address, options, selector)
                except OSError as e:
                    errors.append(e)
                is_last = n == len(waiting)
                until = time.monotonic() + (CONNECT_SECONDS if is_last else head_start)
                winner = _first_connected(selector, min(until, ends), is_last, errors)
                if winner:
                    return winner
        raise errors[-1] if errors else TimeoutError("no answer")
    finally:
        for sock in attempts:
            if sock is not winner:
                sock.close()


def _interleaved(addresses: list[Address]) -> list[Address]:
    """The families by turns, beginning with the first one's (RFC 8305, section 4)."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    pairs = itertools.zip_longest(first, others)
    return [address for pair in pairs for address in pair if address is not None]


def _begin(
    sock: socket.socket, address: Any, options: Iterable[Any], selector: selectors.BaseSelector
) -> None:
    for option in options:
        sock.setsockopt(*option)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect(address)
    selector.register(sock, selectors.EVENT_WRITE)


def _first_connected(
    selector: selectors.BaseSelector, until: float, is_last: bool, errors: list[OSError]
) -> socket.socket | None:
    """The first of the sockets under way that is connected by `until`.

    None as soon as one fails: it is the next one's turn then. After the last one began, all that
    are under way are waited for.
    """
    while selector.get_map() and (seconds := until - time.monotonic()) > 0:
        for key, _ in selector.select(seconds):
            sock = cast(socket.socket, key.fileobj)
            selector.unregister(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                return sock
            errors.append(OSError(code, os.strerror(code)))
            if not is_last:
                return None
    return None
