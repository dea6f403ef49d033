"""The wire: one end of the socket between the engine process and a front end, which only these two
have. `service.workers.messages` says what goes over it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, cast

import structlog

from service.workers.messages import BrokenWire, Greeting, Message, packed, unpacked

# of one message: a thousand times what a request of 256 rows of 512 tokens takes
MAX_BYTES = 256 << 20
LENGTH_BYTES = 4

log = structlog.get_logger("service")


def read_greeting(engine: socket.socket) -> Greeting:
    """Wait for the first message. The engine process sends nothing more until it is answered.
    Raises BrokenWire, also where the engine process has ended."""
    reader = MessageReader()
    while data := engine.recv(1 << 16):
        for message in reader.read(data):
            if not isinstance(message, Greeting):
                raise BrokenWire(
                    f"the first message is {type(message).__name__}; expected Greeting"
                )
            return message
    raise BrokenWire("the wire ended before its first message")


class MessageReader:
    """Bytes, cut anywhere → messages. Before each message stands its length, in LENGTH_BYTES."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._unread = bytearray()

    def read(self, data: bytes) -> list[Message]:
        """The messages that end in `data`. Raises BrokenWire."""
        self._unread += data
        messages, start = [], 0
        while len(self._unread) >= (begin := start + LENGTH_BYTES):
            length = int.from_bytes(self._unread[start:begin], "big")
            if length > self._max_bytes:
                raise BrokenWire(
                    f"the wire has a message of {length} bytes; expected at most {self._max_bytes}"
                )
            end = begin + length
            if len(self._unread) < end:
                break
            messages.append(unpacked(self._unread[begin:end]))
            start = end
        del self._unread[:start]
        return messages


class Wire(asyncio.Protocol):
    """One end."""

    def __init__(self) -> None:
        self._handlers: Mapping[type[Message], Callable[[Any], None]] = {}
        self._lost: Callable[[], None] = lambda: None
        self._reader = MessageReader()
        self._transport: asyncio.Transport | None = None

    async def attach(
        self,
        to: socket.socket,
        handlers: Mapping[type[Message], Callable[[Any], None]],
        lost: Callable[[], None],
    ) -> None:
        """Give each message that arrives to the handler of its class. Call `lost` once the other
        process has ended, or has sent what no handler is for."""
        self._handlers, self._lost = handlers, lost
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=to)

    @property
    def open(self) -> bool:
        """Whether the other process is there."""
        return self._transport is not None

    def send(self, message: Message) -> None:
        """Send a message, or drop it where the other process has ended. Raises BrokenWire for a
        message that is too long."""
        data = packed(message)
        if len(data) > MAX_BYTES:
            raise BrokenWire(
                f"the message {type(message).__name__} has {len(data)} bytes; expected at most"
                f" {MAX_BYTES}"
            )
        if self._transport is not None:
            self._transport.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has the methods, but not the base class
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.read(data):
                self._handler(message)(message)
        except BrokenWire as error:
            log.error("a wire between two processes is broken", error=str(error))
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._lost()

    def _handler(self, message: Message) -> Callable[[Any], None]:
        handler = self._handlers.get(type(message))
        if handler is None:
            raise BrokenWire(f"the wire has {type(message).__name__}, which goes the other way")
        return handler
