"""The bodies of requests, kept by a front end so that it can relay a request which it has read."""

from __future__ import annotations

from collections import deque

from service.http.middleware import Message, Receive
from service.refusals import BodyTooLarge, Referred


class KeptBodies:
    """The bytes of all bodies that are kept now, at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0


class RequestBody:
    """What a client sends: an ASGI receive() that keeps what it returns. A body is released when
    its `with` block ends."""

    def __init__(self, receive: Receive, max_bytes: int, kept: KeptBodies) -> None:
        self._receive, self._max_bytes, self._kept = receive, max_bytes, kept
        self._messages: deque[Message] = deque()
        self._read = self._held = 0

    def __enter__(self) -> RequestBody:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.bytes -= self._held
        self._held = 0
        self._messages.clear()

    async def __call__(self) -> Message:
        """Raises BodyTooLarge, and Referred where all bodies together are too large to keep."""
        message = await self._receive()
        size = len(message.get("body", b""))
        self._messages.append(message)
        self._read += size
        self._held += size
        self._kept.bytes += size
        if self._read > self._max_bytes:
            raise BodyTooLarge(self._read, self._max_bytes)
        if self._kept.bytes > self._kept.max_bytes:
            raise Referred
        return message

    async def again(self) -> Message:
        """The same messages from the first one on, each released as it is returned; then those that
        follow. An ASGI receive()."""
        if not self._messages:
            return await self._receive()
        message = self._messages.popleft()
        size = len(message.get("body", b""))
        self._held -= size
        self._kept.bytes -= size
        return message
