"""A front end: a process that speaks HTTP and has no engine. `service.workers.supervisor` starts
it, with two file descriptors:

    python -m service.workers.front_end WIRE LISTENER

It answers requests for predictions but for their rows, which the engine process runs. All others it
relays, and so what it would refuse: only the engine process knows whether what this one remembers
is still true.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable

import structlog
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tokenizers import Tokenizer

from service.http import answers
from service.http.auth import Guard
from service.http.middleware import (
    App,
    Message,
    OurHosts,
    Receive,
    RequestContext,
    Scope,
    Send,
    announced_bytes,
)
from service.http.protocol import Server, configured
from service.http.routes.predict import predict
from service.http.v2.routes import infer
from service.refusals import BodyTooLarge
from service.telemetry import logs
from service.tokenizer import RequestTokenizer
from service.workers.relay import Relay
from service.workers.remote_predictor import Remote
from service.workers.wire import BrokenWire, Greeting, Wire, greeted

# for 503s to be written once the engine process is gone; what is still being sent cannot be
# answered
LOST_SECONDS = 1

log = structlog.get_logger("service")


def main(wire: int, listener: int) -> None:
    """Serve until a signal, or until the engine process is gone."""
    for asked in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises it again when it is done
        signal.signal(asked, lambda *_: sys.exit(0))
    with socket.socket(fileno=wire) as engine, socket.socket(fileno=listener) as clients:
        try:
            greeting = greeted(engine)
        except BrokenWire as error:  # the engine process was killed meanwhile
            sys.exit(f"error: {error}")
        logs.configure(greeting.log_level, greeting.log_format)
        uvloop.run(serve(greeting, engine, clients))


async def serve(greeting: Greeting, engine: socket.socket, clients: socket.socket) -> None:
    """Answer HTTP on one socket, with the help of the engine process at the other."""
    wire, numbers = Wire(), itertools.count()
    remote = Remote(
        wire,
        numbers,
        tokenizer=RequestTokenizer(Tokenizer.from_str(greeting.tokenizer), greeting.mask_token),
        max_inputs=greeting.max_inputs,
        auto_truncate=greeting.auto_truncate,
        dtype=greeting.dtype,
    )
    relay = Relay(wire, numbers)
    hosts = None if greeting.hosts is None else frozenset(greeting.hosts)
    guard = Guard(None, greeting.api_key, hosts=hosts)
    app = front(remote, guard, relay, greeting.max_body_bytes)
    server = Server(configured(app, greeting.drain_seconds), lambda _: wire.send("ready"))

    def lost() -> None:
        log.error("the engine process is gone; this front end stops", pid=os.getpid())
        server.config.timeout_graceful_shutdown = LOST_SECONDS
        server.should_exit = True
        remote.lost()
        relay.lost()

    handlers = {
        "admitted": remote.answered,
        "ran": remote.answered,
        "failed": remote.failed,
        "order": relay.order,
    }
    await wire.attach(engine, handlers, lost)
    gc.collect()
    gc.freeze()  # as in the engine process
    await server.serve(sockets=[clients])


def front(remote: Remote, guard: Guard, relay: App, max_body_bytes: int) -> Starlette:
    """The ASGI application."""

    def answering(answer: Callable[[Request], Awaitable[Response]]) -> _Prediction:
        return _Prediction(answer, relay, max_body_bytes)

    async def inferred(request: Request) -> Response:
        return await infer(request, request.path_params["task"], request.path_params.get("version"))

    app = Starlette(
        routes=[
            Route("/predict", answering(predict)),
            Route("/v2/models/{task}/infer", answering(inferred)),
            Route("/v2/models/{task}/versions/{version}/infer", answering(inferred)),
        ]
    )
    app.router.redirect_slashes = False
    app.router.default = relay
    app.state.predictor, app.state.guard = remote, guard
    answers.install(app)
    app.add_middleware(OurHosts, guard=guard)
    app.add_middleware(RequestContext)
    return app


class _Prediction:
    """An ASGI app: answers itself, or relays what it would refuse."""

    def __init__(
        self, answer: Callable[[Request], Awaitable[Response]], relay: App, max_body_bytes: int
    ) -> None:
        self._answer, self._relay, self._max_body_bytes = answer, relay, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST" or self._announces_more(scope):  # which must be refused unread
            await self._relay(scope, receive, send)
            return
        heard = _Heard(receive, self._max_body_bytes)
        try:
            response = await self._answer(Request(scope, heard, send))
        except Exception as error:
            if not answers.at_fault(answers.status_of(error)):
                raise
            await self._relay(scope, heard.again(), send)
            return
        await response(scope, receive, send)

    def _announces_more(self, scope: Scope) -> bool:
        announced = announced_bytes(scope)
        return announced is not None and announced > self._max_body_bytes


class _Heard:
    """What a client sends, kept to be heard again: a body up to its limit."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._messages: list[Message] = []
        self._bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._messages.append(message)
        self._bytes += len(message.get("body", b""))
        if self._bytes > self._limit:
            raise BodyTooLarge(self._bytes, self._limit)
        return message

    def again(self) -> Receive:
        """The same from its beginning, and then what follows."""
        messages = iter(self._messages)

        async def receive() -> Message:
            return next(messages, None) or await self._receive()

        return receive


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
