"""Requests that the engine process answers for a front end, whole. The app of the engine process
runs there; its receive() and send() cross the wire, as `service.workers.messages` draws it.

Nothing is read ahead. The next piece of a body is read when the app asks for it, so a body that the
app refuses unread is not read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import structlog

from service.http.middleware import App, Message, Receive, Scope, Send, may_write
from service.refusals import Closed, OutcomeUnknown
from service.workers.messages import (
    AppReceive,
    AppReturned,
    AppSend,
    Cancel,
    Received,
    RelayRequest,
    Sent,
)
from service.workers.wire import Wire

PIECE = 256 << 10  # bytes of a body in one message: a prediction on the same wire waits for no more
# Messages of one answer that may be on their way. The app waits for a client that reads slowly, as
# it does in one process.
AHEAD = 4
# The keys of an ASGI scope that cross the wire.
SCOPE = (
    *("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"),
    *("headers", "client", "server", "subprotocols"),
)

KEY = "key"  # in the log's context, by `service.http.auth`

log = structlog.get_logger("service")


class Relay:
    """At the front end: an ASGI app that passes each request to the engine process's app.

    Raises Closed if the engine process has ended; OutcomeUnknown if it ends during a write. Raises
    neither once the answer has begun: the server cuts it if it is not whole.
    """

    def __init__(self, wire: Wire, calls: Iterator[int]) -> None:
        self._wire, self._calls = wire, calls
        # None: the engine process has ended
        self._waiting: dict[int, asyncio.Queue[AppReceive | AppSend | AppReturned | None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._wire.open:
            raise Closed
        call = next(self._calls)
        self._waiting[call] = asyncio.Queue()
        request_id = structlog.contextvars.get_contextvars()["request_id"]
        carried = {name: scope[name] for name in SCOPE if name in scope}
        self._wire.send(RelayRequest(call, request_id, carried))
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if not await self._finished(call, receive, send_on) and not begun:
                raise OutcomeUnknown if may_write(scope) else Closed
        except BaseException:
            self._wire.send(Cancel(call))
            raise
        finally:
            del self._waiting[call]

    def next(self, message: AppReceive | AppSend | AppReturned) -> None:
        """Handle what the app does next."""
        if message.call in self._waiting:  # else the request was cancelled
            self._waiting[message.call].put_nowait(message)

    def lost(self) -> None:
        """The engine process has ended."""
        for waiting in self._waiting.values():
            waiting.put_nowait(None)

    async def _finished(self, call: int, receive: Receive, send: Send) -> bool:
        """Do what the app asks until it has returned. False if the engine process ends first."""

        async def receive_for_app() -> None:
            self._wire.send(Received(call, dict(await receive())))

        async with contextlib.AsyncExitStack() as receiving:
            while True:
                message = await self._waiting[call].get()
                if isinstance(message, AppReceive):
                    receiving.callback(asyncio.create_task(receive_for_app()).cancel)
                elif isinstance(message, AppSend):
                    await send(message.message)
                    self._wire.send(Sent(call))
                elif isinstance(message, AppReturned):
                    if message.key is not None:  # the front end logs the request
                        structlog.contextvars.bind_contextvars(**{KEY: message.key})
                    return True
                else:
                    return False


class UnreadAnswers:
    """What all answers of the engine process hold for clients that have not read them yet, together
    at most `max_bytes`. Where there is more, those that began first are cut short."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[RelayedRequest, int] = {}  # in the order of their beginning

    def hold(self, request: RelayedRequest, size: int) -> None:
        """So many bytes of the request's answer wait now."""
        self._held[request] = size
        while sum(self._held.values()) > self._max_bytes:
            first = next(iter(self._held))
            self.release(first)
            first.cut()

    def release(self, request: RelayedRequest) -> None:
        """Nothing of its answer waits any more."""
        self._held.pop(request, None)


class RelayedRequest:
    """At the engine process: one request of a front end's relay."""

    def __init__(self, wire: Wire, call: int, unread: UnreadAnswers) -> None:
        self._wire, self._call, self._unread = wire, call, unread
        self._cut = False
        self._received: asyncio.Queue[Message] = asyncio.Queue()
        self._asked = False
        self._room = asyncio.Semaphore(AHEAD)

    async def answer(self, app: App, request_id: str, scope: Scope) -> None:
        """Let the app answer it. The front end gave it the id, and logs it."""
        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await app({**scope, "asgi": {"version": "3.0"}}, self._receive, self._send)
        except Exception as error:
            log.error("the app failed on a request", exc_info=error)
        key = structlog.contextvars.get_contextvars().get(KEY)
        self._wire.send(AppReturned(self._call, key))

    def received(self, message: Message) -> None:
        """Handle what receive() has returned at the front end."""
        self._asked = False
        self._received.put_nowait(message)

    def sent(self) -> None:
        """The client has room for one more message."""
        self._room.release()

    def cut(self) -> None:
        """Send no more of the answer. The front end then closes the connection, since the answer is
        not whole."""
        self._cut = True
        self._room.release()

    async def _receive(self) -> Message:
        # The app may have given up waiting for an earlier receive(), which is still under way.
        if not self._asked and self._received.empty():
            self._asked = True
            self._wire.send(AppReceive(self._call))
        return await self._received.get()

    async def _send(self, message: Message) -> None:
        body = memoryview(message.get("body", b""))
        try:
            while len(body) > PIECE:
                self._unread.hold(self, len(body))
                await self._send_piece({**message, "body": bytes(body[:PIECE]), "more_body": True})
                if self._cut:
                    return
                body = body[PIECE:]
        finally:
            self._unread.release(self)
        await self._send_piece({**message, "body": bytes(body)} if "body" in message else message)

    async def _send_piece(self, message: Message) -> None:
        if not self._cut:
            await self._room.acquire()
        if not self._cut:
            self._wire.send(AppSend(self._call, dict(message)))
