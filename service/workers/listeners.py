"""The sockets of several front ends at one address: each listens on its own, and the kernel spreads
the connections over them.

On one shared socket, the process that wakes first would take a whole burst of connections.
"""

from __future__ import annotations

import socket

from service.http.addresses import bound, bound_at


def claimed(host: str, port: int) -> socket.socket:
    """A socket that holds an address which no other service has. It never listens. Raises as
    `bound` does."""
    # bound alone first: SO_REUSEPORT would also share the address of another service
    with bound(host, port) as alone:
        address = alone.getsockname()
    return bound_at(alone.family, address, shared=True)


def listener_at(place: socket.socket) -> socket.socket:
    """A new socket to listen on, at the address of a `claimed` one."""
    return bound_at(place.family, place.getsockname(), shared=True)
