"""A front end: a process that speaks HTTP and has no engine. `service.workers.supervisor` starts
it, with two file descriptors:

    python -m service.workers.front_end WIRE LISTENER

It answers predictions, whose rows the engine process runs. It relays every other request, and every
prediction that it would refuse: what it remembers of a task may be out of date, so only the engine
process can say what is wrong.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

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
    GENERATION,
    App,
    OurHosts,
    PlainPaths,
    Receive,
    RequestContext,
    Scope,
    Send,
    announced_bytes,
    header,
)
from service.http.routes.predict import predict
from service.http.server import Config, Server
from service.http.v2.routes import infer
from service.keys.keys import Keys
from service.telemetry import logs
from service.tokenizer import RequestTokenizer
from service.workers.messages import (
    AdmitResult,
    AppReceive,
    AppReturned,
    AppSend,
    BrokenWire,
    Greeting,
    Message,
    Ping,
    Pong,
    Ready,
    Refused,
    RunResult,
)
from service.workers.relay import Relay
from service.workers.remote_predictor import RemotePredictor
from service.workers.request_body import KeptBodies, RequestBody
from service.workers.wire import Wire, read_greeting

# Once the engine process has ended: time to write 503s. A request that is still being sent cannot
# be answered.
LOST_SECONDS = 1
# Bodies beyond that, all of them together, are not kept; their requests are relayed.
MAX_KEPT_BYTES = 64 << 20

log = structlog.get_logger("service")


def main(wire: int, listener: int) -> None:
    """Serve until a signal, or until the engine process ends."""
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises it again when it has drained
        signal.signal(number, lambda *_: sys.exit(0))
    with socket.socket(fileno=wire) as engine, socket.socket(fileno=listener) as clients:
        try:
            greeting = read_greeting(engine)
        except BrokenWire as error:  # the engine process was killed before it sent one
            sys.exit(f"error: {error}")
        logs.configure(greeting.log_level, greeting.log_format)
        uvloop.run(serve(greeting, engine, clients))


async def serve(greeting: Greeting, engine: socket.socket, clients: socket.socket) -> None:
    """Answer HTTP on one socket, with the engine process at the other."""
    wire, calls = Wire(), itertools.count()
    predictor = RemotePredictor(
        wire,
        calls,
        tokenizer=RequestTokenizer(
            Tokenizer.from_str(greeting.tokenizer), greeting.mask_token, greeting.max_wait_seconds
        ),
        max_inputs=greeting.max_inputs,
        auto_truncate=greeting.auto_truncate,
        dtype=greeting.dtype,
    )
    relay = Relay(wire, calls)
    hosts = None if greeting.hosts is None else frozenset(greeting.hosts)
    # One that takes another's place may meet a damaged file. It relays what it refuses, and the
    # engine process still has the keys of before.
    keys = None if greeting.keys_file is None else Keys(Path(greeting.keys_file), required=False)
    guard = Guard(None, greeting.api_key, hosts=hosts, keys=keys)
    app = create_app(predictor, guard, relay, greeting.root_path, greeting.max_body_bytes)
    server = Server(
        Config(app, greeting.drain_seconds, greeting.connections), lambda: wire.send(Ready())
    )

    def lost() -> None:
        log.error("the engine process has ended; this front end stops", pid=os.getpid())
        server.config.timeout_graceful_shutdown = LOST_SECONDS
        server.should_exit = True
        predictor.lost()
        relay.lost()

    handlers: dict[type[Message], Callable[[Any], None]] = {
        Ping: lambda _: wire.send(Pong()),
        AdmitResult: predictor.answered,
        RunResult: predictor.answered,
        Refused: predictor.refused,
        AppReceive: relay.next,
        AppSend: relay.next,
        AppReturned: relay.next,
    }
    await wire.attach(engine, handlers, lost)
    gc.collect()
    gc.freeze()  # as in the engine process
    if keys is not None:
        keys.start()
    await server.serve(sockets=[clients])


def create_app(
    predictor: RemotePredictor, guard: Guard, relay: App, root_path: str, max_body_bytes: int
) -> Starlette:
    """The ASGI application."""
    kept = KeptBodies(MAX_KEPT_BYTES)

    def prediction(answer: Callable[[Request], Awaitable[Response]]) -> _Prediction:
        return _Prediction(answer, relay, guard, max_body_bytes, kept)

    async def inferred(request: Request) -> Response:
        return await infer(request, request.path_params["task"], request.path_params.get("version"))

    app = Starlette(
        routes=[
            Route("/predict", prediction(predict)),
            Route("/v2/models/{task}/infer", prediction(inferred)),
            Route("/v2/models/{task}/versions/{version}/infer", prediction(inferred)),
        ]
    )
    app.router.redirect_slashes = False
    app.router.default = relay
    app.state.predictor, app.state.guard = predictor, guard
    answers.install(app)
    app.add_middleware(PlainPaths, root_path=root_path)
    app.add_middleware(OurHosts, guard=guard)
    app.add_middleware(RequestContext)
    return app


class _Prediction:
    """An ASGI app that answers a prediction, or relays what it would refuse."""

    def __init__(
        self,
        answer: Callable[[Request], Awaitable[Response]],
        relay: App,
        guard: Guard,
        max_body_bytes: int,
        kept: KeptBodies,
    ) -> None:
        self._answer, self._relay, self._guard = answer, relay, guard
        self._max_body_bytes, self._kept = max_body_bytes, kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A body that is announced as too large must be refused unread; a generation that the
        # request bears is for the process that has the store.
        if (
            scope["method"] != "POST"
            or (announced_bytes(scope) or 0) > self._max_body_bytes
            or header(scope, GENERATION) is not None
        ):
            await self._relay(scope, receive, send)
            return
        with RequestBody(receive, self._max_body_bytes, self._kept) as body:
            response = await self._answered(Request(scope, body, send))
            if response is None:
                await self._relay(scope, body.again, send)
        if response is not None:
            await response(scope, receive, send)

    async def _answered(self, request: Request) -> Response | None:
        """None where the request would be refused. In a function of its own, so that what has been
        read of the request is released before it is relayed."""
        try:
            return await self._answer(request)
        except Exception as error:
            if not answers.at_fault(answers.status_of(error)):
                raise
        self._guard.give_back(request)
        return None


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
