"""Work for a client that may leave before its answer is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from service.refusals import ClientClosed

WATCH_AFTER_SECONDS = 0.02  # from when on it is noticed that a client has left

T = TypeVar("T")


async def unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """Wait for `work`, but give it up when the connection closes: nobody would read the answer.
    Raises ClientClosed then."""
    waiting = asyncio.current_task()
    assert waiting is not None
    leaving: asyncio.Task[None] | None = None
    answered = False

    def watch() -> None:
        nonlocal leaving
        leaving = asyncio.create_task(_disconnected(request))
        leaving.add_done_callback(give_up)

    def give_up(left: asyncio.Task[None]) -> None:
        if not answered and not left.cancelled():
            waiting.cancel()

    # Not at once: a request that is answered before needs no task beside its own.
    watching = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, watch)
    try:
        return await work
    except asyncio.CancelledError:
        left = leaving is not None and leaving.done()
        if left and waiting.uncancel() == 0:  # else somebody else cancelled it, too
            raise ClientClosed(
                "the client closed the connection before its answer was ready"
            ) from None
        raise
    finally:
        answered = True
        watching.cancel()
        if leaving is not None:
            leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
