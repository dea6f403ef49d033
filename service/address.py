"""The address of several front ends: each listens on it by a socket of its own, over which the kernel spreads connections.

On one shared socket whichever process wakes first would take a whole burst of them.
"""

from __future__ import annotations

import socket

from service.settings import InvalidSettings


def claimed(host: str, port: int) -> socket.socket:
    """A place at an address that nobody else has; it never listens. Raises InvalidSettings."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with _bound(family, (host, port), socket.SO_REUSEADDR) as alone:  # SO_REUSEPORT would share another one's
            address = alone.getsockname()
        return _bound(family, address, socket.SO_REUSEADDR, socket.SO_REUSEPORT)
    except (socket.gaierror, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InvalidSettings(f"setting ADAMIX_HOST is {host!r}, which is no address: {reason}") from None
    except OSError as error:
        reason = str(error.strerror).lower()
        raise InvalidSettings(f"setting ADAMIX_PORT is {port}, but on {host}: {reason}") from None


def listener_at(place: socket.socket) -> socket.socket:
    """A fresh socket to listen on there."""
    return _bound(place.family, place.getsockname(), socket.SO_REUSEADDR, socket.SO_REUSEPORT)


def _bound(family: socket.AddressFamily, address: tuple[object, ...], *options: int) -> socket.socket:
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
