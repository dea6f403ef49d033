"""Threads that requests share fairly: small work overtakes large, and nobody waits for what was
given up."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from service.refusals import QueueFull

T = TypeVar("T")

GAIN = 0.2  # weight of the latest piece in what is known of the pace


@dataclass(slots=True, eq=False)
class _Request(Generic[T]):
    """What is left to do for one `run`: its pieces, the next one last, and their cost."""

    pieces: list[tuple[int, Callable[[], T]]]
    cost: int
    done: asyncio.Future[None]
    results: list[T] = field(default_factory=list)


class FairThreads:
    """Runs requests' work, piece by piece, in `threads` threads.

    The order is self-clocked fair queueing (Golestani 1994, "A self-clocked fair queueing scheme
    for broadband applications"). Each request is a flow. A piece's tag is its cost plus the tag of
    the piece that was begun last. The piece with the lowest tag is begun first. So for each other
    request, a request waits for about as much work as it has itself.
    """

    def __init__(
        self, threads: int, name: str, *, max_wait: float = math.inf, seconds_per_cost: float
    ) -> None:
        """A request that would wait longer than `max_wait` seconds is refused. `seconds_per_cost`
        is what one unit of cost takes, until pieces tell."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = self._idle = threads
        self._max_wait, self._seconds_per_cost = max_wait, seconds_per_cost
        self._requests: set[_Request[Any]] = set()
        self._waiting: list[tuple[int, int, _Request[Any]]] = []  # a heap, by tag and then arrival
        self._tag = 0
        self._numbers = itertools.count()

    async def run(self, pieces: Sequence[tuple[int, Callable[[], T]]]) -> list[T]:
        """What a request's pieces give, in order; each comes with its cost, and begins when the one
        before it has ended.

        If the caller is cancelled, what has not begun is dropped. Raises QueueFull, or what a piece
        raises.
        """
        cost = sum(cost for cost, _ in pieces)
        self._check_room(cost)
        request: _Request[T] = _Request(
            list(reversed(pieces)), cost, asyncio.get_running_loop().create_future()
        )
        self._requests.add(request)
        self._queue(request)
        self._begin()
        try:
            await request.done
        finally:
            self._requests.remove(request)
            request.pieces.clear()  # with the texts that they hold
        return request.results

    def _check_room(self, cost: int) -> None:
        """Raises QueueFull where what others do before a request of this cost takes longer than
        `max_wait`. An idle thread takes whatever comes."""
        if len(self._requests) < self._threads:
            return
        ahead = sum(min(request.cost, cost) for request in self._requests) / self._threads
        seconds = ahead * self._seconds_per_cost
        if seconds > self._max_wait:
            raise QueueFull(math.ceil(seconds))

    def _queue(self, request: _Request[Any]) -> None:
        tag = self._tag + request.pieces[-1][0]
        heapq.heappush(self._waiting, (tag, next(self._numbers), request))

    def _begin(self) -> None:
        while self._idle and self._waiting:
            tag, _, request = heapq.heappop(self._waiting)
            if request.done.done():  # its caller was cancelled
                continue
            self._tag = tag
            self._idle -= 1
            cost, work = request.pieces.pop()
            started = time.monotonic()
            running = asyncio.get_running_loop().run_in_executor(self._pool, work)
            running.add_done_callback(partial(self._end, request, cost, started))

    def _end(
        self, request: _Request[T], cost: int, started: float, ended: asyncio.Future[T]
    ) -> None:
        self._idle += 1
        pace = (time.monotonic() - started) / cost
        self._seconds_per_cost += GAIN * (pace - self._seconds_per_cost)
        request.cost -= cost
        error = ended.exception()
        if not request.done.done():
            if error is not None:
                request.done.set_exception(error)
            else:
                request.results.append(ended.result())
                if request.pieces:
                    self._queue(request)
                else:
                    request.done.set_result(None)
        self._begin()
