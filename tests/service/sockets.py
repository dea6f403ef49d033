"""HTTP by hand: bytes to a server's socket, and what it answers, so that a test can send what no
client would."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.service.conftest import Server

SECONDS = 20  # after which a test fails that waits for an answer


@dataclass(frozen=True)
class Answer:
    """One response; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error_type(self) -> str:
        error: dict[str, Any] = json.loads(self.body)
        assert set(error) == {"error", "error_type"}, error
        return str(error["error_type"])


def connected(server: Server, receive_bytes: int | None = None) -> socket.socket:
    """A connection; `receive_bytes` is the room that the kernel has for what it does not read."""
    address = urlsplit(server.url)
    connection = socket.socket()
    connection.settimeout(SECONDS)
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.connect((address.hostname, address.port))
    return connection


def exchange(server: Server, *segments: bytes) -> list[Answer]:
    """Send the segments so that the server reads them one by one; all that it answers before it
    closes the connection."""
    with connected(server) as connection:
        for segment in segments:
            connection.sendall(segment)
            if len(segments) > 1:
                seen(server)
        return answers(connection)


def seen(server: Server) -> None:
    """Wait until the server has read what was sent before: it answers what came after."""
    with connected(server) as other:
        other.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert [answer.status for answer in answers(other)] == [200]


def answers(connection: socket.socket) -> list[Answer]:
    """Everything until the server closes the connection."""
    return parsed(b"".join(iter(lambda: connection.recv(1 << 16), b"")))


def first_answer(connection: socket.socket) -> Answer:
    """The first answer on a connection that stays open."""
    data = b""
    while not (found := parsed(data, whole=False)):
        piece = connection.recv(1 << 16)
        assert piece, f"the connection was closed after {data!r}"
        data += piece
    return found[0]


def parsed(data: bytes, whole: bool = True) -> list[Answer]:
    """The responses in `data`, each with a Content-Length as all of ours; interim ones are left
    out."""
    found = []
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(_header(lines))
        length = int(headers.get("content-length", 0))
        if not end or len(rest) < length:
            assert not whole, f"the answer is cut: {data!r}"
            break
        version, status, *_ = status_line.split(" ")
        assert version == "HTTP/1.1"
        if status != "100":
            found.append(Answer(int(status), headers, rest[:length]))
        data = rest[length:]
    return found


def _header(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        name, colon, value = line.partition(":")
        assert colon, f"no header: {line!r}"
        yield name.lower(), value.strip()
