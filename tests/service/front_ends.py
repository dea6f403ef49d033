"""The front ends of a server: their processes, and a client that is connected to one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx2
import psutil

if TYPE_CHECKING:  # which has fixtures that need this module
    from tests.service.conftest import Server


def front_ends(server: Server) -> list[psutil.Process]:
    """The processes that speak HTTP."""
    return [
        process
        for process in psutil.Process(server.process.pid).children()
        if process.status() != "zombie"
    ]


def holds(front_end: psutil.Process, port: int) -> bool:
    """Whether that front end has the connection from this port."""
    return any(
        connection.raddr and connection.raddr.port == port
        for connection in front_end.net_connections("tcp")
    )


@contextlib.contextmanager
def client_of(server: Server, front_end: psutil.Process) -> Iterator[httpx2.Client]:
    """A client with one connection, to that front end: it connects until the kernel gives it to
    that one."""
    for _ in range(200):
        with server.client(limits=httpx2.Limits(max_connections=1)) as client:
            if _is_given_to(front_end, client):
                yield client
                return
    raise AssertionError(f"200 connections, and none to {front_end}")


def _is_given_to(front_end: psutil.Process, client: httpx2.Client) -> bool:
    """Whether the kernel gave the client's connection to that front end."""
    try:
        with client.stream("GET", "/static/icon.svg") as answer:
            assert answer.status_code == 200
            _, port = answer.extensions["network_stream"].get_extra_info("client_addr")
            answer.read()
    except httpx2.NetworkError:
        return False  # it was given to one that was just killed
    return holds(front_end, port)
