"""The batcher with plain callables for a device: what a batch may be, whose turn it is, and that every request ends."""

from __future__ import annotations

import asyncio
import functools
import itertools
import queue
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batcher, BatchReport, Closed, Outcome, QueueFull


@dataclass(frozen=True, eq=False)
class Text:
    """A row; a device here answers a row with itself."""

    task: str
    tokens: int = 1
    version: str = "1"

    @property
    def adapter_key(self) -> str:
        return f"{self.task}@{self.version}"


class Device:
    """Notes each batch, and works on it until it is told to end it."""

    def __init__(self) -> None:
        self.batches: list[list[Text]] = []
        self._loop = asyncio.get_running_loop()
        self._began: asyncio.Queue[list[Text]] = asyncio.Queue()
        self._verdicts: queue.Queue[Exception | None] = queue.Queue()
        self._free = False

    def __call__(self, rows: list[Text]) -> list[Text]:
        self.batches.append(rows)
        self._loop.call_soon_threadsafe(self._began.put_nowait, rows)
        verdict = None if self._free else self._verdicts.get(timeout=10)
        if verdict is not None:
            raise verdict
        return rows

    async def begins(self) -> list[Text]:
        """The next batch, once the device works on it."""
        return await self._began.get()

    def end(self, error: Exception | None = None) -> None:
        """Let the batch that runs (or else the next one) end."""
        self._verdicts.put(error)

    def let_go(self) -> None:
        """Hold no batch any more."""
        self._free = True
        self._verdicts.put(None)


def in_loop(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test to its end; one that hangs fails."""

    @functools.wraps(scenario)
    def test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(scenario(*args, **kwargs), 20))

    return test


@asynccontextmanager
async def serving(
    device: Device,
    *,
    max_tokens: int = 100,
    max_queue_rows: int = 1000,
    max_adapters: int = 100,
    observe: Any = lambda _: None,
) -> AsyncIterator[Batcher[Text, Text]]:
    batcher: Batcher[Text, Text] = Batcher(
        device, max_tokens=max_tokens, max_queue_rows=max_queue_rows, max_adapters=max_adapters, observe=observe
    )
    batcher.start()
    try:
        yield batcher
    finally:
        device.let_go()
        await batcher.close()


async def submitted(batcher: Batcher[Text, Text], rows: Sequence[Text]) -> asyncio.Task[list[Outcome[Text]]]:
    """A request whose rows are queued by now."""
    request = asyncio.ensure_future(batcher.submit(rows))
    await asyncio.sleep(0)  # one turn of the loop: no time passes
    return request


async def plugged(batcher: Batcher[Text, Text], device: Device) -> asyncio.Task[list[Outcome[Text]]]:
    """A row of its own task that keeps the device at work, so that what follows is queued."""
    plug = await submitted(batcher, [Text("plug")])
    await device.begins()
    return plug


async def next_batch(device: Device) -> list[Text]:
    """End the batch that runs; the one that follows."""
    device.end()
    return await device.begins()


async def values(request: Awaitable[list[Outcome[Text]]]) -> list[Text]:
    return [outcome.value for outcome in await request]


def test_knows_neither_torch_nor_http() -> None:
    """Importing the batcher in a fresh interpreter imports neither torch nor FastAPI."""
    script = "import sys, service.batcher; print(sorted({'torch', 'fastapi', 'starlette', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@in_loop
async def test_a_lone_row_waits_for_nothing() -> None:
    """A row that finds the device idle is run at once, by itself."""
    device = Device()
    async with serving(device) as batcher:
        row = Text("a")
        request = await submitted(batcher, [row])
        assert await device.begins() == [row]
        assert batcher.queued_rows == 0
        device.end()
        assert await values(request) == [row]


@in_loop
async def test_the_next_batch_forms_while_the_device_works() -> None:
    """Rows of several requests that arrive while the device works form the next batch together."""
    device = Device()
    async with serving(device) as batcher:
        plug = await plugged(batcher, device)
        rows = [Text("a"), Text("b"), Text("a"), Text("c")]
        requests = [await submitted(batcher, [row]) for row in rows]
        assert len(device.batches) == 1
        assert batcher.queued_rows == len(rows)
        assert set(await next_batch(device)) == set(rows)
        assert batcher.queued_rows == 0
        device.end()
        assert [await values(request) for request in requests] == [[row] for row in rows]
        assert len(await plug) == 1


@in_loop
async def test_budget() -> None:
    """A batch holds as many rows as the token budget allows and never more, unless one row alone exceeds it."""
    device = Device()
    async with serving(device, max_tokens=10) as batcher:
        await plugged(batcher, device)
        sizes = [4, 4, 4, 25, 10, 1, 9, 11]
        request = await submitted(batcher, [Text("a", size) for size in sizes])
        batches = [[row.tokens for row in await next_batch(device)] for _ in range(6)]
        assert batches == [[4, 4], [4], [25], [10], [1, 9], [11]]
        device.end()
        assert [row.tokens for row in await values(request)] == sizes


@in_loop
async def test_small_rows_fill_what_a_large_one_leaves() -> None:
    """A row too large for what is left of a batch leaves the place to another task's row, and begins the next batch."""
    device = Device()
    async with serving(device, max_tokens=10) as batcher:
        await plugged(batcher, device)
        await submitted(batcher, [Text("a", 6)])
        large = Text("b", 9)
        await submitted(batcher, [large])
        await submitted(batcher, [Text("c", 1) for _ in range(30)])
        assert [row.task for row in await next_batch(device)] == ["a", *"cccc"]
        assert (await next_batch(device))[0] is large


@in_loop
async def test_distinct_adapters() -> None:
    """A batch uses at most `max_adapters` distinct adapters, two versions of a task being two."""
    device = Device()
    async with serving(device, max_adapters=2) as batcher:
        await plugged(batcher, device)
        rows = [Text(task, version=version) for task in "ab" for version in "1122"]
        request = await submitted(batcher, rows)
        seen = [await next_batch(device)]
        while sum(map(len, seen)) < len(rows):
            seen.append(await next_batch(device))
        assert all(len({row.adapter_key for row in batch}) <= 2 for batch in seen)
        assert len(seen) == 2, "two adapters a batch, four adapters in all"
        device.end()
        assert await values(request) == rows


@in_loop
async def test_a_flood_of_one_task_delays_another_by_no_batch_where_it_fits() -> None:
    """A row that arrives behind hundreds of another task's rows is in the very next batch if its tokens fit."""
    device = Device()
    async with serving(device, max_tokens=16) as batcher:
        await plugged(batcher, device)
        await submitted(batcher, [Text("flood", 4) for _ in range(400)])
        await next_batch(device)
        late = Text("late", 8)
        request = await submitted(batcher, [late])
        assert late in await next_batch(device)
        device.end()
        assert await values(request) == [late]
        assert batcher.queued_rows > 380


@settings(max_examples=40, deadline=None)
@given(flood=st.lists(st.integers(1, 20), min_size=60, max_size=60), late=st.integers(1, 20), before=st.integers(0, 3))
def test_a_flood_of_one_task_delays_another_by_one_batch_at_most(flood: list[int], late: int, before: int) -> None:
    """Whatever the rows' sizes, another task's row runs in the next batch or the one after it."""

    @in_loop
    async def scenario() -> None:
        device = Device()
        async with serving(device, max_tokens=16) as batcher:
            await plugged(batcher, device)
            await submitted(batcher, [Text("flood", size) for size in flood])
            for _ in range(before):
                await next_batch(device)
            row = Text("late", late)
            await submitted(batcher, [row])
            assert row in await next_batch(device) or row in await next_batch(device)

    scenario()


@in_loop
async def test_tasks_beyond_the_slots_take_turns() -> None:
    """Where more tasks flood the queue than a batch has adapters, the batches go round all of them."""
    device = Device()
    async with serving(device, max_tokens=6, max_adapters=2) as batcher:
        await plugged(batcher, device)
        for task in "abcde":
            await submitted(batcher, [Text(task) for _ in range(50)])
        tasks = [sorted({row.task for row in await next_batch(device)}) for _ in range(5)]
        assert tasks == [["a", "b"], ["c", "d"], ["a", "e"], ["b", "c"], ["d", "e"]]


@in_loop
async def test_outcomes_are_in_the_order_of_the_rows() -> None:
    """A request's results come in its rows' order, however its rows were spread over tasks and batches."""
    device = Device()
    async with serving(device, max_tokens=5) as batcher:
        await plugged(batcher, device)
        rows = [Text(task, size) for task, size in zip("aaabcacbbca", [1, 5, 2, 3, 1, 4, 2, 1, 1, 5, 2], strict=True)]
        request = await submitted(batcher, rows)
        device.let_go()
        assert await values(request) == rows
        ran = [row for batch in device.batches[1:] for row in batch]
        assert ran != rows
        assert sorted(map(id, ran)) == sorted(map(id, rows))


@in_loop
async def test_a_request_of_no_rows() -> None:
    """A request of no rows is answered at once, with nothing."""
    async with serving(Device()) as batcher:
        assert await batcher.submit([]) == []


@in_loop
async def test_a_full_queue_refuses_the_whole_request() -> None:
    """A request that does not fit into the queue raises QueueFull and none of its rows is queued or run."""
    device = Device()
    async with serving(device, max_queue_rows=5) as batcher:
        await plugged(batcher, device)
        kept = await submitted(batcher, [Text("a")] * 3)
        with pytest.raises(QueueFull):
            await batcher.submit([Text("refused")] * 3)
        assert batcher.queued_rows == 3
        fitting = await submitted(batcher, [Text("b")] * 2)
        assert batcher.queued_rows == 5
        with pytest.raises(QueueFull):
            await batcher.submit([Text("refused")])
        device.let_go()
        assert len(await kept) == 3
        assert len(await fitting) == 2
        assert "refused" not in {row.task for batch in device.batches for row in batch}


@in_loop
async def test_places_in_the_queue_are_free_once_rows_run() -> None:
    """Rows under way take no place in the queue."""
    device = Device()
    async with serving(device, max_queue_rows=2) as batcher:
        await submitted(batcher, [Text("a")] * 2)
        await device.begins()
        await submitted(batcher, [Text("b")] * 2)
        with pytest.raises(QueueFull):
            await batcher.submit([Text("c")])
        assert len(await next_batch(device)) == 2
        await submitted(batcher, [Text("c")] * 2)
        assert batcher.queued_rows == 2


@in_loop
async def test_rows_of_a_client_that_left_never_run() -> None:
    """Cancelling a submit drops its rows that have not started and frees their places at once."""
    device = Device()
    async with serving(device, max_queue_rows=4) as batcher:
        await plugged(batcher, device)
        gone = await submitted(batcher, [Text("a"), Text("b"), Text("a")])
        stays = await submitted(batcher, [Text("a")])
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.queued_rows == 1
        others = await submitted(batcher, [Text("c")] * 3)
        assert sorted(row.task for row in await next_batch(device)) == ["a", "c", "c", "c"]
        device.end()
        assert len(await stays) == 1
        assert len(await others) == 3


@in_loop
async def test_leaving_while_rows_run() -> None:
    """A client that leaves in the middle of its rows takes along those that wait; the device goes on with the others."""
    device = Device()
    async with serving(device, max_tokens=2) as batcher:
        first = [Text("a"), Text("a"), Text("a")]
        gone = await submitted(batcher, first)
        assert await device.begins() == first[:2]
        other = await submitted(batcher, [Text("b")])
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert [row.task for row in await next_batch(device)] == ["b"]
        device.end()
        assert len(await other) == 1
        assert len(device.batches) == 2


@in_loop
async def test_a_batch_that_raises_fails_its_requests_only() -> None:
    """What the device raises goes to the requests of that batch, whose other rows are dropped; the rest is run."""
    device = Device()
    async with serving(device, max_tokens=2) as batcher:
        plug = await plugged(batcher, device)
        failing = await submitted(batcher, [Text("a"), Text("a"), Text("a")])
        fellow = await submitted(batcher, [Text("b")])
        later = await submitted(batcher, [Text("c")])
        assert [row.task for row in await next_batch(device)] == ["a", "b"]
        error = RuntimeError("out of memory")
        device.end(error)
        assert [row.task for row in await device.begins()] == ["c"]
        device.end()
        for request in (failing, fellow):
            with pytest.raises(RuntimeError) as raised:
                await request
            assert raised.value is error
        assert len(await later) == len(await plug) == 1
        assert batcher.queued_rows == 0
        again = await submitted(batcher, [Text("a")])
        assert len(await device.begins()) == 1
        device.end()
        assert len(await again) == 1


@in_loop
async def test_a_device_that_loses_rows_fails_its_batch_only() -> None:
    """A device that answers fewer results than rows fails that batch's requests, and the loop goes on."""
    answers: list[list[str]] = [["one"], ["one", "two"]]
    batcher: Batcher[Text, str] = Batcher(lambda _: answers.pop(0), max_tokens=9, max_queue_rows=9, max_adapters=9)
    batcher.start()
    with pytest.raises(ValueError, match="shorter"):
        await asyncio.wait_for(batcher.submit([Text("a"), Text("a")]), 5)
    assert [outcome.value for outcome in await batcher.submit([Text("a"), Text("a")])] == ["one", "two"]
    await batcher.close()


@in_loop
async def test_close_answers_what_is_queued() -> None:
    """`close` returns once every queued row is answered, and refuses rows from its call on."""
    device = Device()
    async with serving(device, max_tokens=2) as batcher:
        await plugged(batcher, device)
        queued = await submitted(batcher, [Text("a")] * 5)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Closed):
            await batcher.submit([Text("b")])
        assert not closing.done()
        device.let_go()
        await closing
        assert queued.done()
        assert len(await queued) == 5
        with pytest.raises(Closed):
            await batcher.submit([Text("b")])
    assert len(device.batches) == 4


@in_loop
async def test_close_ends_the_device_s_thread() -> None:
    """An idle batcher closes at once and leaves no thread behind."""
    before = threading.active_count()
    device = Device()
    async with serving(device) as batcher:
        request = await submitted(batcher, [Text("a")])
        await device.begins()
        assert threading.active_count() == before + 1
        device.end()
        await request
    assert threading.active_count() == before


@in_loop
async def test_timings() -> None:
    """A row's queueing ends when its batch begins, and a row of a later batch has waited through the earlier ones."""
    device = Device()
    began = time.monotonic()
    async with serving(device, max_tokens=1) as batcher:
        request = await submitted(batcher, [Text("a"), Text("a"), Text("a")])
        device.let_go()
        outcomes = await request
        elapsed = time.monotonic() - began
    for earlier, later in itertools.pairwise(outcomes):
        assert later.queued >= earlier.queued + earlier.ran - 1e-6
    assert all(outcome.queued >= 0 and outcome.ran > 0 for outcome in outcomes)
    assert outcomes[-1].queued + outcomes[-1].ran <= elapsed + 1e-6


@in_loop
async def test_reports() -> None:
    """Each batch that ran is reported with its rows, tokens, distinct tasks, seconds and each row's wait."""
    reports: list[BatchReport] = []
    device = Device()
    async with serving(device, max_tokens=10, observe=reports.append) as batcher:
        plug = await plugged(batcher, device)
        request = await submitted(batcher, [Text("a", 3), Text("b", 4), Text("a", 2, "2"), Text("b", 8)])
        device.let_go()
        outcomes = await request
        await plug
    assert [(report.rows, report.tokens, report.tasks) for report in reports] == [(1, 1, 1), (3, 9, 2), (1, 8, 1)]
    assert sorted(reports[1].waits) == sorted(outcome.queued for outcome in outcomes[:3])
    assert reports[2].waits == [outcomes[3].queued]
    assert [report.seconds for report in reports[1:]] == [outcomes[0].ran, outcomes[3].ran]


@in_loop
async def test_a_failed_batch_is_not_reported() -> None:
    """A batch that raised is no batch that ran: nothing is reported of it."""
    reports: list[BatchReport] = []
    device = Device()
    async with serving(device, observe=reports.append) as batcher:
        request = await submitted(batcher, [Text("a")])
        await device.begins()
        device.end(RuntimeError("no"))
        with pytest.raises(RuntimeError):
            await request
    assert reports == []


@dataclass(frozen=True)
class Submit:
    rows: list[Text]


@dataclass(frozen=True)
class End:
    """The running batch ends, well or not."""

    error: Exception | None


@dataclass(frozen=True)
class Leave:
    """One of the clients that still wait leaves."""

    which: int


ROWS = st.builds(Text, st.sampled_from("abcd"), st.integers(1, 12), st.sampled_from("12"))
STEPS = st.one_of(
    st.builds(Submit, st.lists(ROWS, min_size=1, max_size=6)),
    st.builds(End, st.sampled_from([None, None, None, RuntimeError("the device failed")])),
    st.builds(Leave, st.integers(0, 20)),
)


@dataclass(eq=False)
class Client:
    rows: list[Text]
    request: asyncio.Task[list[Outcome[Text]]]


@dataclass
class Model:
    """What a queue of these limits must do, kept by hand beside the real one."""

    max_tokens: int
    max_queue_rows: int
    max_adapters: int
    clients: list[Client] = field(default_factory=list)
    waiting: list[tuple[Text, Client]] = field(default_factory=list)
    running: list[tuple[Text, Client]] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)

    def begin(self, batch: list[Text]) -> None:
        assert batch
        assert sum(row.tokens for row in batch) <= self.max_tokens or len(batch) == 1
        assert len({row.adapter_key for row in batch}) <= self.max_adapters
        for task in {row.task for row in batch}:
            queued = [row for row, _ in self.waiting if row.task == task]
            ran = [row for row in batch if row.task == task]
            assert queued[: len(ran)] == ran, "a task's rows run in the order in which they came, each once"
        left = {row.task for row, _ in self.waiting} - {row.task for row in batch}
        self.passed_over = {task: self.passed_over.get(task, 0) + 1 for task in left}
        assert all(times <= 3 for times in self.passed_over.values()), "of four tasks each has its turn in four batches"
        self.running = [entry for entry in self.waiting if entry[0] in batch]
        self.waiting = [entry for entry in self.waiting if entry[0] not in batch]

    def drop(self, clients: list[Client]) -> None:
        self.waiting = [entry for entry in self.waiting if entry[1] not in clients]


@settings(max_examples=120, deadline=None)
@given(steps=st.lists(STEPS, max_size=30))
def test_every_row_is_run_once_and_answered_with_its_own_result(steps: list[Submit | End | Leave]) -> None:
    """For any submissions, failures and departures, each row that is due is run once and answered with its own result, the
    limits hold in every batch, and the queue's count is true."""

    @in_loop
    async def scenario() -> None:
        await _play(steps, Model(max_tokens=10, max_queue_rows=12, max_adapters=2))

    scenario()


async def _play(steps: list[Submit | End | Leave], model: Model) -> None:
    device = Device()
    limits = {name: getattr(model, name) for name in ("max_tokens", "max_queue_rows", "max_adapters")}
    async with serving(device, **limits) as batcher:
        for step in steps:
            if isinstance(step, Submit):
                await _submit(step, batcher, model)
            elif isinstance(step, End) and model.running:
                await _end(step, device, model)
            elif isinstance(step, Leave):
                await _leave(step, model)
            if not model.running and model.waiting:
                model.begin(await device.begins())
            assert batcher.queued_rows == len(model.waiting)
        started = {row for batch in device.batches for row in batch} | {row for row, _ in model.waiting}
        device.let_go()
        for client in model.clients:
            assert await values(client.request) == client.rows
    ran = [row for batch in device.batches for row in batch]
    assert len(set(ran)) == len(ran)
    assert set(ran) == started, "nothing runs that was dropped"


async def _submit(step: Submit, batcher: Batcher[Text, Text], model: Model) -> None:
    rows = [Text(row.task, row.tokens, row.version) for row in step.rows]  # hypothesis may repeat a row
    client = Client(rows, await submitted(batcher, rows))
    if len(model.waiting) + len(rows) > model.max_queue_rows:
        with pytest.raises(QueueFull):
            await client.request
    else:
        model.clients.append(client)
        model.waiting += [(row, client) for row in rows]


async def _end(step: End, device: Device, model: Model) -> None:
    concerned = list(dict.fromkeys(client for _, client in model.running))
    model.running = []
    if step.error is not None:
        model.drop(concerned)
    unfinished = {client for _, client in model.waiting}
    device.end(step.error)
    for client in concerned:
        if client in model.clients and client not in unfinished:
            await asyncio.wait([client.request])
            if step.error is not None:
                assert client.request.exception() is step.error
                model.clients.remove(client)


async def _leave(step: Leave, model: Model) -> None:
    waiting = [client for client in model.clients if not client.request.done()]
    if not waiting:
        return
    client = waiting[step.which % len(waiting)]
    client.request.cancel()
    await asyncio.wait([client.request])
    assert client.request.cancelled()
    model.drop([client])
    model.clients.remove(client)
