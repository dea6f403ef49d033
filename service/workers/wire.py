"""The wire: one end of the socket between the engine process and a front end, which only these two
have. `service.workers.messages` says what goes over it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgpack
import structlog

from service.workers.messages import BrokenWire, Greeting, Message, fields_of, packed, unpacked

# of one message: a thousand times what a request of 256 rows of 512 tokens takes
MAX_BYTES = 256 << 20

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
    """Bytes, cut anywhere → messages. msgpack itself tells where one ends."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=max_bytes, unicode_errors="surrogatepass")

    def read(self, data: bytes) -> list[Message]:
        """The messages that end in `data`. Raises BrokenWire."""
        try:
            self._unpacker.feed(data)
            values = list(self._unpacker)
        except (msgpack.UnpackException, ValueError) as error:
            raise BrokenWire(f"the wire has bytes that are no msgpack: {error!r}") from None
        return [unpacked(value) for value in values]


class Wire(asyncio.Protocol):
    """One end."""

    def __init__(self) -> None:
        self._handlers: Mapping[type[Message], Callable[[Any], None]] = {}
        self._lost: Callable[[], None] = lambda: None
        self._reader = MessageReader()
        self._packer = msgpack.Packer(default=fields_of, unicode_errors="surrogatepass")
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
        data = self._packer.pack(packed(message))
        if len(data) > MAX_BYTES:
            raise BrokenWire(
                f"the message {type(message).__name__} has {len(data)} bytes; expected at most"
                f" {MAX_BYTES}"
            )
        if self._transport is not None:
            self._transport.write(data)

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
