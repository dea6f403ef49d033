"""The address that the service listens on: one, of IPv4 or IPv6; `::` takes clients of both."""

from __future__ import annotations

import socket

Address = tuple[str | int | bytes, ...]  # as the address family has it


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address that no other socket has. It does not listen yet. For a name it takes
    the first of its addresses, IPv4 before IPv6. Raises OSError (gaierror for a name without an
    address), and UnicodeError for a text that is no name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return bound_at(family, address)


def bound_at(
    family: socket.AddressFamily | int, address: Address, *, shared: bool = False
) -> socket.socket:
    """The same, at an address that is known. With `shared`, other `shared` sockets may have it too.
    Raises OSError."""
    place = socket.socket(family)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # whatever the system's default is
            place.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        place.bind(address)
    except BaseException:
        place.close()
        raise
    return place
