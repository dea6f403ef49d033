"""The address of several front ends: each listens on it by a socket of its own, over which the
kernel spreads connections.

On one shared socket whichever process wakes first would take a whole burst of them.
"""

from __future__ import annotations

import socket

from service.http.addresses import bound, bound_at


def claimed(host: str, port: int) -> socket.socket:
    """A place at an address that nobody else has; it never listens. Raises as `bound` does."""
    with bound(host, port) as alone:  # a shared one would share another service's
        address = alone.getsockname()
    return bound_at(alone.family, address, shared=True)


def listener_at(place: socket.socket) -> socket.socket:
    """A fresh socket to listen on there."""
    return bound_at(place.family, place.getsockname(), shared=True)
