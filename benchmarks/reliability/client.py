"""HTTP/1.1 over raw sockets: a client that costs little beside the server, and one that sends any
bytes."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Self, cast
from urllib.parse import urlsplit

SECONDS = 60  # after which an answer that has not come is a hang
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_BOUNDARY = b"a-boundary-that-no-file-holds"


class NoAnswer(Exception):
    """The server closed the connection before its answer was whole, or answered for too long."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One response; `head` is its status line and its headers as they came."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        found = re.search(rb"(?i)\r\n%b: *([^\r]*)" % re.escape(name.encode()), self.head)
        return found[1].decode("latin-1") if found else None


def request(
    method: str, path: str, body: bytes = b"", content_type: str = "application/json"
) -> bytes:
    """The bytes of a request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body:
        head += f"Content-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def upload(file: bytes, *, activate: bool = True) -> bytes:
    """The bytes of an upload."""
    field = b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
    parts = field % (_BOUNDARY, b"file", b'; filename="a"', file)
    parts += field % (_BOUNDARY, b"activate", b"", b"true" if activate else b"false")
    body = parts + b"--%b--\r\n" % _BOUNDARY
    return request("POST", "/adapters", body, f"multipart/form-data; boundary={_BOUNDARY.decode()}")


class Connection(asyncio.Protocol):
    """A connection that stays open, with one request under way at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._body_at = self._end = 0
        self._answer: asyncio.Future[Answer] | None = None

    @classmethod
    async def open(cls, url: str) -> Connection:
        """Raises OSError."""
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, address.hostname, address.port)
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await asyncio.sleep(0)  # a turn of the loop, in which it is closed

    async def ask(self, data: bytes) -> Answer:
        """Send a request and wait for its answer. Raises NoAnswer."""
        if self._transport is None or self._transport.is_closing():
            raise NoAnswer("the server has closed the connection")
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        late = loop.call_later(SECONDS, self._fail, f"no answer within {SECONDS} seconds")
        self._transport.write(data)
        try:
            return await self._answer
        finally:
            late.cancel()
            self._answer = None

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._end:
            head_end = self._received.find(b"\r\n\r\n")
            if head_end < 0:
                return
            length = _LENGTH.search(self._received, 0, head_end)
            self._body_at = head_end + 4
            self._end = self._body_at + (int(length[1]) if length else 0)
        if len(self._received) < self._end:
            return
        head = bytes(self._received[: self._body_at])
        answer = Answer(int(head[9:12]), head, bytes(self._received[self._body_at : self._end]))
        del self._received[: self._end]
        self._end = 0
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the connection was closed before the answer: {error or 'by the server'}")
        self._transport = None

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswer(reason))


async def exchange(url: str, data: bytes) -> bytes:
    """Send any bytes, then nothing more; all that the server sends until it closes the connection.
    Raises NoAnswer where it does not close it, OSError where it resets it."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        async with asyncio.timeout(SECONDS):
            writer.write(data)
            writer.write_eof()
            return await reader.read()
    except TimeoutError:
        raise NoAnswer(f"the connection is still open after {SECONDS} seconds") from None
    finally:
        writer.close()
