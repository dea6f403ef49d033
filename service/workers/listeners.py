"""The address of several front ends: each listens on it by a socket of its own, over which the
kernel spreads connections.

On one shared socket whichever process wakes first would take a whole burst of them.
"""

from __future__ import annotations

import socket


def claimed(host: str, port: int) -> socket.socket:
    """A place at an address that nobody else has; it never listens. Raises OSError, and
    UnicodeError for what is no name."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # SO_REUSEPORT would share another one's
    with _bound(family, (host, port), socket.SO_REUSEADDR) as alone:
        address = alone.getsockname()
    return _bound(family, address, socket.SO_REUSEADDR, socket.SO_REUSEPORT)


def listener_at(place: socket.socket) -> socket.socket:
    """A fresh socket to listen on there."""
    return _bound(place.family, place.getsockname(), socket.SO_REUSEADDR, socket.SO_REUSEPORT)


def _bound(
    family: socket.AddressFamily, address: tuple[object, ...], *options: int
) -> socket.socket:
    bound = socket.socket(family)
    try:
        for option in options:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:  # as uvicorn: `::` is not 0.0.0.0 too
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound
