"""The wire between the engine process and a front end: msgpack messages over a socket that only
these two have.

A message is a list: its kind, the number of the request that it belongs to, and what the kind has.

    from the front end
      ready                                 it answers HTTP
      admit  n  task, version               → admitted or failed
      run    n  [[task, version, digest, [[ids, types, mask], …]], …]    the rows of one request →
      ran or failed
      leave  n                              nobody waits for n any more
      tokenized  seconds                    for the metrics, as the next
      count  tasks, status, seconds
      relay  n  request's id, ASGI scope    a whole request → orders
      event  n  ASGI message                what its client does, where an order asks for it
      sent   n                              its client has room for more than an order's message

    from the engine process
      greet  Greeting                       the first one
      admitted  n  digest, signature
      ran    n  [[logits, seconds queued, batch], …], [[rows, tokens, tasks, started, seconds], …]
      of each row and batch
      failed n  error                       QueueFull, Closed or Referred
      order  n  ASGI message                to be sent to the client, or one of `relay`'s own
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import msgpack
import structlog

# of one message: a thousand times what a request of 256 rows of 512 tokens takes
MAX_BYTES = 256 << 20

log = structlog.get_logger("service")


class BrokenWire(Exception):
    """Bytes that are no message, or too many for one."""


@dataclass(frozen=True)
class Greeting:
    """What a front end must know before it serves. `tokenizer` is its JSON, `dtype` the backbone's
    on the device; `hosts` are `Guard`'s."""

    tokenizer: str
    mask_token: str | None
    api_key: str | None
    dtype: str
    max_inputs: int
    auto_truncate: bool
    hosts: list[str] | None
    max_body_bytes: int
    drain_seconds: int
    log_level: str
    log_format: str


def greeted(by: socket.socket) -> Greeting:
    """Wait for the first message; nothing follows it unasked. Raises BrokenWire, also where the
    other process is gone."""
    messages = Messages()
    while data := by.recv(1 << 16):
        for _, fields in messages.read(data):
            return Greeting(**fields)
    raise BrokenWire("the wire ended before its first message")


class Messages:
    """Bytes as they come, in any pieces → whole messages. msgpack tells by itself where one
    ends."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=max_bytes, unicode_errors="surrogatepass")

    def read(self, data: bytes) -> Iterable[list[Any]]:
        """The messages that end in `data`. Raises BrokenWire."""
        try:
            self._unpacker.feed(data)
            messages = list(self._unpacker)
        except (msgpack.UnpackException, ValueError) as error:
            raise BrokenWire(f"the wire has what is no msgpack: {error!r}") from None
        for message in messages:
            if not isinstance(message, list) or not message or not isinstance(message[0], str):
                raise BrokenWire(
                    f"the wire has a {type(message).__name__}; expected a list that begins with its"
                    " kind"
                )
        return messages


class Wire(asyncio.Protocol):
    """One end of it."""

    def __init__(self) -> None:
        self._handlers: Mapping[str, Callable[..., None]] = {}
        self._lost: Callable[[], None] = lambda: None
        self._messages = Messages()
        self._packer = msgpack.Packer(unicode_errors="surrogatepass")
        self._transport: asyncio.Transport | None = None

    async def attach(
        self,
        to: socket.socket,
        handlers: Mapping[str, Callable[..., None]],
        lost: Callable[[], None],
    ) -> None:
        """Tell `handlers` what comes, by its kind, and `lost` that the other process is gone, or
        sends no messages."""
        self._handlers, self._lost = handlers, lost
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=to)

    @property
    def open(self) -> bool:
        """Whether the other process is there."""
        return self._transport is not None

    def send(self, kind: str, *rest: Any) -> None:
        """Put a message on the wire; where nobody is at its other end any more it is dropped.
        Raises BrokenWire for one that is too long."""
        message = self._packer.pack((kind, *rest))
        if len(message) > MAX_BYTES:
            raise BrokenWire(
                f"a message {kind!r} has {len(message)} bytes; expected at most {MAX_BYTES}"
            )
        if self._transport is not None:
            self._transport.write(message)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one by its methods alone
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for kind, *rest in self._messages.read(data):
                self._handlers[kind](*rest)
        except BrokenWire as error:
            log.error("a wire between two processes is broken", error=str(error))
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._lost()
