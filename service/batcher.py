"""A bounded queue of rows, and batches of them for a device that does one at a time.

Knows neither torch nor HTTP: it is given a plain callable. There is no fixed waiting window: rows
that arrive while the device works form the next batch, so batches grow with the load and a lone row
waits for nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from service.refusals import AdapterNotLoaded, Closed, DeviceOutOfMemory, QueueFull
from service.spare_rows import SpareRow, SpareRows, SpareTime

# A task may queue four times as many rows as places are free: alone it gets four fifths of the
# queue, and each further task still finds room. This is the dynamic threshold of Choudhury and
# Hahne (1998), "Dynamic queue length thresholds for shared-memory packet switches".
ROWS_PER_FREE_PLACE = 4
# Weight of what is known of the device's pace, against 1 for a new batch: about ten batches count.
KEPT = 0.9
# A slow device's batches end within `max_wait`, but no batch is limited to less than this part of
# `max_tokens`: small batches take longer a token.
SMALLEST_LIMIT = 1 / 4
# Of what clients' rows may take: so many spare rows are kept, and in one batch so many tokens.
SPARE_ROWS, SPARE_TOKENS = 1 / 2, 1 / 8


class Queueable(Protocol):
    """What the batcher must know of a row."""

    @property
    def task(self) -> str: ...  # whose turn it is
    @property
    def adapter_key(self) -> str: ...  # which adapter it needs on the device
    @property
    def tokens(self) -> int: ...  # what it costs


R = TypeVar("R", bound=Queueable)
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


@dataclass(slots=True, eq=False)
class _Entry(Generic[R, T]):
    row: R
    task: str
    tokens: int
    index: int
    request: _Request[T]
    arrived: float
    queued: bool = True


@dataclass(slots=True, eq=False)
class _TaskQueue(Generic[R, T]):
    """The entries of one task, in their order. `rows` counts those that are still `queued`."""

    entries: deque[_Entry[R, T]] = field(default_factory=deque)
    rows: int = 0


class Batcher(Generic[R, T]):
    """Queues rows by task and runs batches of them, one after the other, in a thread of its own.

    A batch takes one row of each waiting task in turn (round robin, going on where the last batch
    stopped) until `batch_tokens` tokens or `max_adapters` distinct adapters are reached; it always
    takes at least one row. So a flood of one task delays another task's row by one batch at most.
    `patience`: see `_regroup`. Which requests are admitted: see `_check_room`. Rows that nobody
    waits for: see `offer`.
    """

    def __init__(
        self,
        run: Callable[[list[R]], Sequence[T]],
        *,
        max_tokens: int,
        max_queue_rows: int,
        max_adapters: int,
        max_wait: float = math.inf,
        max_drain: float = math.inf,
        patience: float = 0.1,
        observe: Callable[[BatchReport], None] = lambda _: None,
        failed: Callable[[Exception, int], None] = lambda _error, _rows: None,
    ) -> None:
        """`max_wait` seconds are what a request may have to wait before its first row runs, and
        what a batch may take. In `max_drain` seconds everything that is queued must be done.
        `observe` is told of each batch that ran, `failed` of each that raised, with its rows."""
        self._run = run
        self.max_tokens = max_tokens
        self.max_queue_rows = max_queue_rows
        self._max_adapters = max_adapters
        self._max_wait, self._max_drain = max_wait, max_drain
        self._patience = patience
        self._observe, self._failed = observe, failed
        self._queues: OrderedDict[str, _TaskQueue[R, T]] = OrderedDict()
        self._queued_rows = self._queued_tokens = 0
        self._pace = _Pace()
        self._spare: SpareRows[R, Outcome[T]] = SpareRows(
            max(1, round(SPARE_ROWS * max_queue_rows))
        )
        self._spare_time = SpareTime(time.monotonic())
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

    @property
    def batch_tokens(self) -> int:
        """How many tokens a batch has at most now: `max_tokens`, or what the device is expected to
        run in `max_wait` seconds. A longer batch would make every row that comes meanwhile wait for
        longer than that."""
        tokens = self._pace.tokens(self._max_wait)
        return max(1, round(max(SMALLEST_LIMIT * self.max_tokens, min(self.max_tokens, tokens))))

    def start(self) -> None:
        """Begin to run batches, on the running event loop."""
        self._loop_task = asyncio.get_running_loop().create_task(self._loop())

    async def submit(self, rows: Sequence[R]) -> list[Outcome[T]]:
        """Queue the rows of one request and wait for all their results, in order.

        If the caller is cancelled, its rows that have not started are dropped. Raises QueueFull,
        Closed, or whatever the device raised on one of the rows alone.
        """
        if self._closing:
            raise Closed
        if not rows:
            return []
        self._check_room(rows)
        now = time.monotonic()
        done = asyncio.get_running_loop().create_future()
        request: _Request[T] = _Request(done, [None] * len(rows), len(rows))
        entries = [
            _Entry(row, row.task, row.tokens, index, request, now) for index, row in enumerate(rows)
        ]
        for entry in entries:
            self._put(entry)
        self._wake.set()
        try:
            await done
        except BaseException:  # failed or left: what still waits is of no use to anybody
            for entry in entries:
                if entry.queued:
                    self._uncount(entry)
            raise
        return [outcome for outcome in request.outcomes if outcome is not None]

    def offer(self, row: R, done: Callable[[Outcome[T] | Exception | None], None]) -> None:
        """Run a row when the device has time to spare, in a batch without clients' rows: no answer
        to a client changes by it, in any bit. `done` is called on the event loop with the result,
        with what the device raised, or with None if the row was dropped: others came, or the
        batcher was closed, before there was time."""
        if self._closing:
            done(None)
            return
        self._spare.put(row.adapter_key, SpareRow(row, row.tokens, time.monotonic(), done))
        self._wake.set()

    async def close(self) -> None:
        """Take no more rows, answer those that are queued, then stop."""
        self._closing = True
        self._wake.set()
        if self._loop_task is not None:
            await self._loop_task
        self._worker.shutdown()

    def _check_room(self, rows: Sequence[R]) -> None:
        """Raises QueueFull if the queue lacks places for the rows. Raises it too if one of their
        tasks exceeds its share of the places, waits longer than `max_wait` for its turn, or longer
        than `max_drain` for the turn of its last row. An empty queue takes all rows that it has
        places for: a later try would not help.
        """
        free = self.max_queue_rows - self._queued_rows
        if len(rows) > free:
            raise self._refusal(self._queued_tokens)
        if not self._queued_rows:
            return
        all_rows = self._queued_rows + len(rows)
        all_tokens = self._queued_tokens + sum(row.tokens for row in rows)
        if all_tokens <= self.batch_tokens and 2 * all_rows <= self.max_queue_rows:
            return  # one batch, and no share can be too large: no need to look at the tasks
        wanted = Counter(row.task for row in rows)
        tasks = len(self._queues) + sum(task not in self._queues for task in wanted)
        for task, count in wanted.items():
            queue = self._queues.get(task)
            before = 0 if queue is None else queue.rows
            # Tasks take turns: until one has sent some rows, each has sent as many, or all it has.
            ahead = self._queued_tokens * min(1.0, before * tasks / self._queued_rows)
            in_all = all_tokens * min(1.0, (before + count) * tasks / all_rows)
            if (
                (before and before + count > ROWS_PER_FREE_PLACE * free)
                or self._takes_longer(ahead, self._max_wait)
                or self._takes_longer(in_all, self._max_drain)
            ):
                raise self._refusal(ahead)

    def _takes_longer(self, tokens: float, seconds: float) -> bool:
        """Whether so many tokens take longer than that, as far as the pace is known. However slow
        the device is, one batch may wait: else the next one could not be full."""
        return tokens > self.batch_tokens and self._pace.seconds(tokens) > seconds

    def _refusal(self, ahead: float) -> QueueFull:
        # rounded, so that the last bits of a sum do not make a second more
        return QueueFull(max(1, math.ceil(round(self._pace.seconds(ahead), 6))))

    def _put(self, entry: _Entry[R, T]) -> None:
        queue = self._queues.get(entry.task)
        if queue is None:
            queue = self._queues[entry.task] = _TaskQueue()
        queue.entries.append(entry)
        queue.rows += 1
        self._queued_rows += 1
        self._queued_tokens += entry.tokens

    def _uncount(self, entry: _Entry[R, T]) -> None:
        """An entry waits no more: it was taken, or nobody waits for it."""
        entry.queued = False
        queue = self._queues[entry.task]
        queue.rows -= 1
        self._queued_rows -= 1
        self._queued_tokens -= entry.tokens
        if not queue.rows:
            del self._queues[entry.task]

    async def _loop(self) -> None:
        busy_since = None  # the end of the last batch, if that left rows behind
        while True:
            await self._regroup()
            batch = self._form()
            if batch:
                tokens, full = sum(entry.tokens for entry in batch), self._queued_rows > 0
                began = busy_since or time.monotonic()
                await self._execute(batch)
                ended = time.monotonic()
                self._pace.add(tokens, ended - began, full=full)
                self._spare_time.worked(ended - began, ended)
                busy_since = ended if full else None
            elif self._closing:
                self._spare.drop()
                return
            else:
                busy_since = None
                await self._idle()

    async def _idle(self) -> None:
        """Wait for rows; where there is time for spare ones, run some."""
        self._wake.clear()
        if not self._spare:
            await self._wake.wait()
            return
        limit = round(SPARE_TOKENS * self.batch_tokens)
        seconds = self._pace.seconds(self._spare.tokens(limit))
        lacking = self._spare_time.lacking(seconds, time.monotonic())
        if lacking <= 0:
            await self._run_spare(self._spare.take(limit))
            return
        end = asyncio.get_running_loop().call_later(lacking, self._wake.set)
        await self._wake.wait()
        end.cancel()

    async def _run_spare(self, batch: list[SpareRow[R, Outcome[T]]]) -> None:
        """Run spare rows. It is no batch to any statistic of clients' batches."""
        loop, started = asyncio.get_running_loop(), time.monotonic()
        waits = [started - spare.since for spare in batch]
        results: Sequence[Outcome[T] | Exception]
        try:
            rows = [spare.row for spare in batch]
            values = await loop.run_in_executor(self._worker, self._run, rows)
            tokens, seconds = sum(row.tokens for row in batch), time.monotonic() - started
            report = BatchReport(len(batch), tokens, 1, started, seconds, waits)
            results = [
                Outcome(value, wait, report) for value, wait in zip(values, waits, strict=True)
            ]
        except Exception as error:
            results = [error] * len(batch)
        ended = time.monotonic()
        self._spare_time.spent(ended - started, ended)
        for spare, result in zip(batch, results, strict=True):
            # as `_observe`: what goes wrong in it stops no batch
            loop.call_soon(spare.done, result)

    async def _regroup(self) -> None:
        """Wait until the queue has half as many rows as the last batch answered requests. Wait no
        longer than a part of that batch's time.

        The answered clients ask again within moments. Without this wait, the first of them would
        get a batch of its own. The others would wait for it and form the next batch without it, and
        so on: batches of 1 and 31, for ever. Half of the rows keep the device busy until the rest
        have come.
        """
        while 2 * self._queued_rows < self._answered and not self._closing:
            if (left := self._patience_ends - time.monotonic()) <= 0:
                return
            self._wake.clear()
            # not asyncio.wait_for, which makes a task: this happens once a lone request
            end = asyncio.get_running_loop().call_later(left, self._wake.set)
            await self._wake.wait()
            end.cancel()

    def _form(self) -> list[_Entry[R, T]]:
        batch: list[_Entry[R, T]] = []
        tokens, limit = 0, self.batch_tokens
        adapters: set[str] = set()
        took = True
        while took:
            took = False
            for task in list(self._queues):
                entry = self._head(task)
                if entry is None:
                    continue
                full = tokens + entry.tokens > limit
                crowded = (
                    entry.row.adapter_key not in adapters and len(adapters) >= self._max_adapters
                )
                if batch and (full or crowded):
                    continue  # stays in front: the next batch begins with it
                self._take(entry)
                batch.append(entry)
                tokens += entry.tokens
                adapters.add(entry.row.adapter_key)
                took = True
        return batch

    def _head(self, task: str) -> _Entry[R, T] | None:
        """The first row of a task whose client still waits."""
        queue = self._queues[task]
        while queue.rows:
            entry = queue.entries[0]
            if entry.queued and not entry.request.done.done():
                return entry
            queue.entries.popleft()
            if entry.queued:  # its request has just failed
                self._uncount(entry)
        return None

    def _take(self, entry: _Entry[R, T]) -> None:
        task = entry.task
        self._queues[task].entries.popleft()
        self._queues.move_to_end(task)
        self._uncount(entry)

    async def _execute(self, batch: list[_Entry[R, T]]) -> None:
        """Run a batch. If it raises, run its parts, down to single rows, before any other batch.
        So a row that cannot be run fails alone. It costs its batch the further passes that halving
        needs to find it."""
        try:
            await self._pass(batch)
            return
        except Exception as error:
            if isinstance(error, DeviceOutOfMemory):
                self.max_tokens = max(1, self.max_tokens // 2)
            self._failed(error, len(batch))
            parts = _parts(batch, error)
        while parts:
            part = [entry for entry in parts.pop() if not entry.request.done.done()]
            try:
                if part:
                    await self._pass(part)
            except Exception as error:
                parts += _parts(part, error)

    async def _pass(self, batch: list[_Entry[R, T]]) -> None:
        """Run entries together and answer them. Raises what the device raises."""
        rows = [entry.row for entry in batch]
        started = time.monotonic()
        values = await asyncio.get_running_loop().run_in_executor(self._worker, self._run, rows)
        answers = list(zip(batch, values, strict=True))
        seconds = time.monotonic() - started
        waits = [started - entry.arrived for entry in batch]
        tasks = len({entry.task for entry in batch})
        tokens = sum(entry.tokens for entry in batch)
        report = BatchReport(len(rows), tokens, tasks, started, seconds, waits)
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


def _parts(batch: list[_Entry[R, T]], error: Exception) -> list[list[_Entry[R, T]]]:
    """The parts of a batch that raised that are worth another pass. The part to run first stands
    last. The other rows fail with the error.

    Rows of one adapter stay together: if the adapter is at fault, this takes the fewest passes.
    """
    if isinstance(error, AdapterNotLoaded):
        rest = [entry for entry in batch if entry.row.adapter_key != error.adapter_key]
        if len(rest) < len(batch):
            _fail([entry for entry in batch if entry.row.adapter_key == error.adapter_key], error)
            return [rest] if rest else []
    if len(batch) == 1:
        _fail(batch, error)
        return []
    ordered = sorted(batch, key=lambda entry: entry.row.adapter_key)
    middle = (len(ordered) + 1) // 2
    return [ordered[middle:], ordered[:middle]]


def _fail(entries: list[_Entry[R, T]], error: Exception) -> None:
    for entry in entries:
        if not entry.request.done.done():
            entry.request.done.set_exception(error)


class _Pace:
    """How fast the device works, by the latest batches.

    Once a batch left rows behind, only such batches count: smaller ones take longer a token, and
    say little of a queue.
    """

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._full = False

    def add(self, tokens: int, seconds: float, *, full: bool) -> None:
        """One batch; `full`: it left rows behind."""
        if full and not self._full:
            self._tokens = self._seconds = 0.0
            self._full = True
        if full or not self._full:
            self._tokens = KEPT * self._tokens + tokens
            self._seconds = KEPT * self._seconds + seconds

    def seconds(self, tokens: float) -> float:
        """How long so many tokens take; 0 as long as nothing is known."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0

    def tokens(self, seconds: float) -> float:
        """How many tokens take so long; without a limit as long as nothing is known."""
        return seconds * self._tokens / self._seconds if self._seconds else math.inf
