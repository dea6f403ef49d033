"""Answers that go through all tasks: few at once, and in turns.

Each keeps the interpreter's lock for as long as it may. Forty such threads, each with its turn of
some milliseconds, would leave the event loop a fortieth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from starlette.requests import Request

from service.fair_threads import FairThreads
from service.http.leaving import unless_client_leaves

THREADS = 2  # one that waits for a bucket does not hold up all others
PIECE_TASKS = 256
SECONDS_PER_TASK = 5e-5  # at first; then what the pieces take

T = TypeVar("T")


class Lists:
    """The threads of one app."""

    def __init__(self) -> None:
        self._threads = FairThreads(THREADS, "list", seconds_per_cost=SECONDS_PER_TASK)

    async def run(self, request: Request, tasks: int, job: Callable[[], T]) -> T:
        """What a job returns that goes through so many tasks. Raises what it raises, and
        ClientClosed."""
        (result,) = await self.pieces(request, [(tasks, job)])
        return result

    async def pieces(
        self, request: Request, pieces: Sequence[tuple[int, Callable[[], T]]]
    ) -> list[T]:
        """The same for several jobs, between which others have their turn."""
        # a piece of work costs something even where there is no task
        costs = [(tasks + 1, job) for tasks, job in pieces]
        return await unless_client_leaves(request, self._threads.run(costs))
