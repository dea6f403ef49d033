"""A whole request, from a front end to the engine process's app: ASGI's own messages over the wire,
and two of ours.

    relay.receive   the app asks what the client does: answered by an event
    relay.end       the app is done

Nothing is read ahead: a body's next piece comes when the app asks for it, and what it refuses
unread is not read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import structlog

from service.http.middleware import App, Message, Receive, Scope, Send
from service.refusals import Closed
from service.workers.wire import Wire

PIECE = 256 << 10  # bytes of a body in one message: a prediction on the same wire waits for no more
# messages of one answer that are under way: the app waits for a client that reads slowly, as in one
# process
AHEAD = 4
SCOPE = (
    *(
        "type",
        "http_version",
        "method",
        "scheme",
        "path",
        "raw_path",
        "query_string",
        "root_path",
        "headers",
    ),
    *("client", "server", "subprotocols"),
)

log = structlog.get_logger("service")


class Relay:
    """At the front end: an ASGI app that is the engine process's. Raises Closed once that process
    is gone."""

    def __init__(self, wire: Wire, numbers: Iterator[int]) -> None:
        self._wire, self._numbers = wire, numbers
        self._orders: dict[int, asyncio.Queue[Message]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._wire.open:
            raise Closed
        number = next(self._numbers)
        self._orders[number] = asyncio.Queue()
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        self._wire.send(
            "relay", number, request_id, {name: scope[name] for name in SCOPE if name in scope}
        )
        try:
            await self._obey(number, receive, send)
        except BaseException:
            self._wire.send("leave", number)
            raise
        finally:
            del self._orders[number]

    def order(self, number: int, message: Message) -> None:
        """What the engine process's app does next."""
        if number in self._orders:  # else given up
            self._orders[number].put_nowait(message)

    def lost(self) -> None:
        """The engine process is gone."""
        for orders in self._orders.values():
            orders.put_nowait({"type": "relay.lost"})

    async def _obey(self, number: int, receive: Receive, send: Send) -> None:
        async def hear() -> None:
            self._wire.send("event", number, await receive())

        async with contextlib.AsyncExitStack() as hearing:
            while True:
                message = await self._orders[number].get()
                if message["type"] == "relay.receive":
                    hearing.callback(asyncio.create_task(hear()).cancel)
                elif message["type"] == "relay.lost":
                    raise Closed
                elif message["type"] == "relay.end":
                    return
                else:
                    await send(message)
                    self._wire.send("sent", number)


class Relayed:
    """At the engine process: one such request."""

    def __init__(self, wire: Wire, number: int) -> None:
        self._wire, self._number = wire, number
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._asked = False
        self._room = asyncio.Semaphore(AHEAD)

    async def answer(self, app: App, request_id: str, scope: Scope) -> None:
        """Let the app answer it. The front end has given it its id, and tells the log of it."""
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await app({**scope, "asgi": {"version": "3.0"}}, self._receive, self._send)
        except Exception as error:
            log.error("the app failed on a request", exc_info=error)
        self._order({"type": "relay.end"})

    def event(self, message: Message) -> None:
        """What the client does."""
        self._asked = False
        self._events.put_nowait(message)

    def sent(self) -> None:
        """The client has room for one more message."""
        self._room.release()

    async def _receive(self) -> Message:
        # a receive before this one may have been given up
        if not self._asked and self._events.empty():
            self._asked = True
            self._order({"type": "relay.receive"})
        return await self._events.get()

    async def _send(self, message: Message) -> None:
        body = memoryview(message.get("body", b""))
        while len(body) > PIECE:
            await self._room.acquire()
            self._order({**message, "body": bytes(body[:PIECE]), "more_body": True})
            body = body[PIECE:]
        await self._room.acquire()
        self._order({**message, "body": bytes(body)} if "body" in message else message)

    def _order(self, message: Message) -> None:
        self._wire.send("order", self._number, message)
