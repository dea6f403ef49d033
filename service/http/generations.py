"""Middleware of a service whose store is in a bucket: a request is answered by the state that it
may rely on, and a write is acknowledged once it holds on every replica."""

from __future__ import annotations

import asyncio

from starlette.requests import HTTPConnection

from adapters.errors import AdaMixError
from adapters.spec import shown
from service.http.answers import refused
from service.http.auth import Guard
from service.http.middleware import (
    GENERATION,
    PROBES,
    App,
    Message,
    Receive,
    Scope,
    Send,
    may_write,
)
from service.refusals import InvalidRequest
from service.replication import Replication

MAX_DIGITS = 20


class Generations:
    """Reads X-Adamix-Generation of a request, and answers it for a write."""

    def __init__(self, app: App, replication: Replication, guard: Guard) -> None:
        self._app, self._replication, self._guard = app, replication, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        try:
            if await self._guard.knows(HTTPConnection(scope)):  # else the route refuses it
                await self._replication.see(_asked(scope))
        except AdaMixError as error:
            await refused(error)(scope, receive, send)
            return

        async def acknowledge(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 300:
                # Also where nothing was to be done: what another replica wrote just now may not
                # have been acknowledged yet.
                await asyncio.sleep(self._replication.lease)
                generation = str(self._replication.generation).encode()
                message["headers"] = [*message.get("headers", []), (GENERATION, generation)]
            await send(message)

        await self._app(scope, receive, acknowledge if may_write(scope) else send)


def _asked(scope: Scope) -> int:
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == GENERATION]
    if not values:
        return 0
    value = ", ".join(values)  # what several mean (RFC 9110, 5.2): no number
    if not (value.isascii() and value.isdecimal() and len(value) <= MAX_DIGITS):
        raise InvalidRequest(
            f"X-Adamix-Generation is {shown(value)}; expected the number that a write answered"
        )
    return int(value)
