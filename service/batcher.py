"""A bounded queue of rows, and batches of them for a device that does one at a time.

Knows neither torch nor HTTP: it is given a plain callable. There is no fixed waiting window: rows
that arrive while the device works form the next batch, so batches grow with the load and a lone row
waits for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from service.refusals import Closed, QueueFull


class Row(Protocol):
    """What the batcher must know of a row."""

    @property
    def task(self) -> str: ...  # whose turn it is
    @property
    def adapter_key(self) -> str: ...  # which adapter it needs on the device
    @property
    def tokens(self) -> int: ...  # what it costs


R = TypeVar("R", bound=Row)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """One row's result, how many seconds it waited, and the batch that it was in."""

    value: T
    queued: float
    batch: BatchReport


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one batch was, and when (`started` is time.monotonic's); `waits` has each row's seconds
    in the queue."""

    rows: int
    tokens: int
    tasks: int
    started: float
    seconds: float
    waits: list[float]


@dataclass(slots=True, eq=False)
class _Request(Generic[T]):
    """The rows of one `submit` that are not answered yet."""

    done: asyncio.Future[None]
    outcomes: list[Outcome[T] | None]
    unanswered: int
    queued: int


@dataclass(frozen=True, slots=True, eq=False)
class _Entry(Generic[R, T]):
    row: R
    index: int
    request: _Request[T]
    arrived: float


class Batcher(Generic[R, T]):
    """Queues rows by task and runs batches of them, one after the other, in a thread of its own.

    A batch takes one row of each waiting task in turn (round robin, going on where the last batch
    stopped) until `max_tokens` tokens or `max_adapters` distinct adapters are reached; it always
    takes at least one row. So a flood of one task delays another task's row by one batch at most.
    `patience`: see `_regroup`.
    """

    def __init__(
        self,
        run: Callable[[list[R]], Sequence[T]],
        *,
        max_tokens: int,
        max_queue_rows: int,
        max_adapters: int,
        patience: float = 0.1,
        observe: Callable[[BatchReport], None] = lambda _: None,
    ) -> None:
        self._run = run
        self.max_tokens = max_tokens
        self.max_queue_rows = max_queue_rows
        self._max_adapters = max_adapters
        self._patience = patience
        self._observe = observe
        self._queues: OrderedDict[str, deque[_Entry[R, T]]] = OrderedDict()
        self._queued_rows = 0
        # how many requests by the last batch; until when (time.monotonic's)
        self._answered, self._patience_ends = 0, 0.0
        self._wake = asyncio.Event()
        self._closing = False
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def queued_rows(self) -> int:
        """Rows that wait for a batch; those of clients that left are not counted."""
        return self._queued_rows

    def start(self) -> None:
        """Begin to run batches, on the running event loop."""
        self._loop_task = asyncio.get_running_loop().create_task(self._loop())

    async def submit(self, rows: Sequence[R]) -> list[Outcome[T]]:
        """Queue the rows of one request and wait for all their results, in order.

        If the caller is cancelled, its rows that have not started are dropped. Raises QueueFull,
        Closed, or whatever the device raised on a batch that held one of the rows.
        """
        if self._closing:
            raise Closed
        if self._queued_rows + len(rows) > self.max_queue_rows:
            raise QueueFull
        if not rows:
            return []
        now = time.monotonic()
        done = asyncio.get_running_loop().create_future()
        request: _Request[T] = _Request(done, [None] * len(rows), len(rows), len(rows))
        for index, row in enumerate(rows):
            self._queues.setdefault(row.task, deque()).append(_Entry(row, index, request, now))
        self._queued_rows += len(rows)
        self._wake.set()
        try:
            await done
        finally:  # answered, failed or left: what still waits is of no use to anybody
            self._queued_rows -= request.queued
            request.queued = 0
        return [outcome for outcome in request.outcomes if outcome is not None]

    async def close(self) -> None:
        """Take no more rows, answer those that are queued, then stop."""
        self._closing = True
        self._wake.set()
        if self._loop_task is not None:
            await self._loop_task
        self._worker.shutdown()

    async def _loop(self) -> None:
        while True:
            await self._regroup()
            batch = self._form()
            if batch:
                await self._execute(batch)
            elif self._closing:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _regroup(self) -> None:
        """Wait until half as many rows are queued as requests were just answered, for a part of
        that batch's time at most.

        Their clients ask again within moments. The first to do so would be a batch of its own, for
        which the others would wait, and then be the next one without it: batches of 1 and 31, for
        ever. Half keep the device busy for the rest.
        """
        while 2 * self._queued_rows < self._answered and not self._closing:
            if (left := self._patience_ends - time.monotonic()) <= 0:
                return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)

    def _form(self) -> list[_Entry[R, T]]:
        batch: list[_Entry[R, T]] = []
        tokens = 0
        adapters: set[str] = set()
        took = True
        while took:
            took = False
            for task in list(self._queues):
                entry = self._head(task)
                if entry is None:
                    continue
                full = tokens + entry.row.tokens > self.max_tokens
                crowded = (
                    entry.row.adapter_key not in adapters and len(adapters) >= self._max_adapters
                )
                if batch and (full or crowded):
                    continue  # stays in front: the next batch begins with it
                self._take(task)
                batch.append(entry)
                tokens += entry.row.tokens
                adapters.add(entry.row.adapter_key)
                took = True
        return batch

    def _head(self, task: str) -> _Entry[R, T] | None:
        """The first row of a task whose client still waits."""
        queue = self._queues[task]
        while queue and queue[0].request.done.done():
            queue.popleft()
        if not queue:
            del self._queues[task]
            return None
        return queue[0]

    def _take(self, task: str) -> None:
        entry = self._queues[task].popleft()
        entry.request.queued -= 1
        self._queued_rows -= 1
        if self._queues[task]:
            self._queues.move_to_end(task)
        else:
            del self._queues[task]

    async def _execute(self, batch: list[_Entry[R, T]]) -> None:
        rows = [entry.row for entry in batch]
        started = time.monotonic()
        try:
            values = await asyncio.get_running_loop().run_in_executor(self._worker, self._run, rows)
            answers = list(zip(batch, values, strict=True))
        except Exception as error:
            for entry in batch:
                if not entry.request.done.done():
                    entry.request.done.set_exception(error)
            return
        seconds = time.monotonic() - started
        waits = [started - entry.arrived for entry in batch]
        tasks = len({row.task for row in rows})
        report = BatchReport(
            len(rows), sum(row.tokens for row in rows), tasks, started, seconds, waits
        )
        for (entry, value), wait in zip(answers, waits, strict=True):
            self._answer(entry, Outcome(value, wait, report))
        self._answered = sum(
            request.unanswered == 0 for request in {entry.request for entry in batch}
        )
        self._patience_ends = time.monotonic() + self._patience * seconds
        # As a callback of its own: what goes wrong in it is logged by the event loop and stops no
        # batch.
        asyncio.get_running_loop().call_soon(self._observe, report)

    @staticmethod
    def _answer(entry: _Entry[R, T], outcome: Outcome[T]) -> None:
        request = entry.request
        request.outcomes[entry.index] = outcome
        request.unanswered -= 1
        if request.unanswered == 0 and not request.done.done():
            request.done.set_result(None)
