"""The batcher with plain callables: budgets, turns, bounds, failures, and its end."""

from __future__ import annotations

import asyncio
import itertools
import math
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batcher, BatchReport
from service.refusals import AdapterNotLoaded, Closed, QueueFull
from tests.service.device import (
    Clock,
    Device,
    Text,
    in_loop,
    next_batch,
    plugged,
    serving,
    submitted,
    values,
)


def test_knows_neither_torch_nor_http() -> None:
    """Importing the batcher in a fresh interpreter imports neither torch nor FastAPI."""
    script = (
        "import sys, service.batcher; print(sorted({'torch', 'fastapi', 'starlette', 'pydantic'} &"
        " set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
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
async def test_callers_that_ask_again_stay_together() -> None:
    """The first caller to ask again after a batch is no batch of its own: it is joined by half of
    those answered with it."""
    device = Device()
    callers = 8

    async def asks_again(turns: int) -> None:
        while True:
            await batcher.submit([Text(f"caller{turns}")])
            await _turns(turns)

    async with serving(device, patience=1e6) as batcher:
        plug = await plugged(batcher, device)
        asking = [asyncio.ensure_future(asks_again(10 * i)) for i in range(callers)]
        sizes = []
        for _ in range(6):
            await _turns(10 * callers)  # while the device works all others ask again
            sizes.append(len(await next_batch(device)))
        assert sizes == [8, 4, 4, 4, 4, 4]
        for request in asking:
            request.cancel()
        await asyncio.gather(plug, *asking, return_exceptions=True)


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)  # one turn of the loop: no time passes


@in_loop
async def test_patience_ends() -> None:
    """A row whose former companions do not ask again is run all the same, when a part of their
    batch's time is over."""
    device = Device()
    async with serving(device, patience=0.5) as batcher:
        plug = await plugged(batcher, device)
        companions = [await submitted(batcher, [Text("a")]) for _ in range(8)]
        assert len(await next_batch(device)) == len(companions)
        late = await submitted(batcher, [Text("late")])
        assert [row.task for row in await next_batch(device)] == ["late"]
        device.end()
        for request in (plug, *companions, late):
            assert len(await request) == 1


@in_loop
async def test_budget() -> None:
    """A batch holds as many rows as the token budget allows and never more, unless one row alone
    exceeds it."""
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
    """A row too large for what is left of a batch leaves the place to another task's row, and
    begins the next batch."""
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
    """A row that arrives behind hundreds of another task's rows is in the very next batch if its
    tokens fit."""
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
@given(
    flood=st.lists(st.integers(1, 20), min_size=60, max_size=60),
    late=st.integers(1, 20),
    before=st.integers(0, 3),
)
def test_a_flood_of_one_task_delays_another_by_one_batch_at_most(
    flood: list[int], late: int, before: int
) -> None:
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
    """Where more tasks flood the queue than a batch has adapters, the batches go round all of
    them."""
    device = Device()
    async with serving(device, max_tokens=6, max_adapters=2) as batcher:
        await plugged(batcher, device)
        for task in "abcde":
            await submitted(batcher, [Text(task) for _ in range(50)])
        tasks = [sorted({row.task for row in await next_batch(device)}) for _ in range(5)]
        assert tasks == [["a", "b"], ["c", "d"], ["a", "e"], ["b", "c"], ["d", "e"]]


@in_loop
async def test_outcomes_are_in_the_order_of_the_rows() -> None:
    """A request's results come in its rows' order, however its rows were spread over tasks and
    batches."""
    device = Device()
    async with serving(device, max_tokens=5) as batcher:
        await plugged(batcher, device)
        rows = [
            Text(task, size)
            for task, size in zip("aaabcacbbca", [1, 5, 2, 3, 1, 4, 2, 1, 1, 5, 2], strict=True)
        ]
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
    """A request that does not fit into the queue raises QueueFull and none of its rows is queued or
    run."""
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
async def test_a_flood_leaves_places_to_other_tasks() -> None:
    """A task alone takes four fifths of the queue, a second one four fifths of the rest, and a
    task with nothing queued finds a place; rows of a fan-out count for their tasks."""
    device = Device()
    async with serving(device, max_queue_rows=100) as batcher:
        await plugged(batcher, device)
        for task, places in (("flood", 80), ("second", 16), ("third", 4)):
            for _ in range(places):
                await submitted(batcher, [Text(task)])
            with pytest.raises(QueueFull):
                await batcher.submit([Text(task)])
            if places > 4:
                with pytest.raises(QueueFull):
                    await batcher.submit([Text("new"), Text("flood")])
        assert batcher.queued_rows == 100


@in_loop
async def test_a_task_whose_turn_comes_too_late_is_refused() -> None:
    """Once the pace is known, a task may queue until its next row would wait longer than `max_wait`
    behind its own rows and as many of each other task; QueueFull says how long it would."""
    clock, device = Clock(), Device()
    async with clock.serving(device, max_tokens=10, max_wait=5.0) as batcher:
        await _learn(batcher, device, clock, seconds=1.0)  # for each ten tokens
        flood = [await submitted(batcher, [Text("flood")] * 10) for _ in range(6)]
        with pytest.raises(QueueFull, match="try again in 6 seconds") as raised:
            await batcher.submit([Text("flood")])
        assert raised.value.retry_after == 6
        assert batcher.queued_rows == 60
        other = [await submitted(batcher, [Text("other", 10)]) for _ in range(10)]
        assert not any(request.done() for request in (*flood, *other))


@in_loop
async def test_the_queue_is_never_kept_too_short_for_full_batches() -> None:
    """However slow the device is, what its smallest batches hold may wait, a quarter of
    `max_tokens`, and an empty queue takes whatever has places."""
    clock, device = Clock(), Device()
    async with clock.serving(device, max_tokens=10, max_wait=0.1) as batcher:
        await _learn(batcher, device, clock, seconds=60.0)
        requests = [await submitted(batcher, [Text("a", 1)]) for _ in range(3)]
        with pytest.raises(QueueFull, match="try again in 18 seconds"):
            await batcher.submit([Text("a", 1)])
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)
        large = await submitted(batcher, [Text("a", 500)] * 100)
        assert batcher.queued_rows == 100
        assert not large.done()


@in_loop
@pytest.mark.parametrize(("seconds", "rows"), [(1.0, 10), (10.0, 5), (12.5, 4), (1000.0, 2)])
async def test_a_slow_device_s_batches_are_shorter(seconds: float, rows: int) -> None:
    """A batch takes as many tokens as the device runs in `max_wait` seconds, by its pace, but a
    quarter of `max_tokens` at least."""
    clock, device = Clock(), Device()
    async with clock.serving(device, max_tokens=10, max_wait=5.0) as batcher:
        await _learn(batcher, device, clock, seconds)  # for each ten tokens
        # a request that finds the queue empty is taken whole
        request = await submitted(batcher, [Text("a")] * 12)
        assert len(await next_batch(device)) == rows
        request.cancel()


@in_loop
async def test_no_more_is_admitted_than_can_be_drained() -> None:
    """A request whose last row would not be run within `max_drain` is refused; one whose turn comes
    sooner is admitted beside it."""
    clock, device = Clock(), Device()
    async with clock.serving(device, max_tokens=10, max_drain=10.0) as batcher:
        await _learn(batcher, device, clock, seconds=1.0)
        for task in "abcde":
            await submitted(batcher, [Text(task, 10), Text(task, 10)])
        with pytest.raises(QueueFull):
            await batcher.submit([Text("new", 10)] * 2)
        await submitted(batcher, [Text("new", 10)])
        assert batcher.queued_rows == 11


async def _learn(
    batcher: Batcher[Text, Text], device: Device, clock: Clock, seconds: float
) -> None:
    """Let a full batch take so long, and keep the device at work after it."""
    await submitted(batcher, [Text("plug", batcher.max_tokens)] * 2)
    await device.begins()
    clock.now += seconds
    await next_batch(device)


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
    """A client that leaves in the middle of its rows takes along those that wait; the device goes
    on with the others."""
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
async def test_a_row_that_fails_fails_its_request_alone() -> None:
    """A row on which the device raises fails its request, whose other rows are dropped; its batch
    mates are answered from parts of the batch, before any other batch runs."""
    device = Device()
    async with serving(device, max_tokens=8) as batcher:
        plug = await plugged(batcher, device)
        error = RuntimeError("index out of range")
        mates = [await submitted(batcher, [Text(task)]) for task in "abcdefg"]
        guilty = await submitted(batcher, [Text("x", error=error), *[Text("x")] * 9])
        later = await submitted(batcher, [Text("late", 8)])
        device.let_go()
        with pytest.raises(RuntimeError) as raised:
            await guilty
        assert raised.value is error
        assert [len(await mate) for mate in mates] == [1] * 7
        assert len(await later) == len(await plug) == 1
        assert batcher.queued_rows == 0
    assert [len(batch) for batch in device.batches[1:]] == [8, 4, 4, 2, 2, 1, 1, 1]
    assert [row.task for row in device.batches[-1]] == ["late"]


@settings(max_examples=60, deadline=None)
@given(faults=st.lists(st.booleans(), min_size=1, max_size=70))
def test_what_failing_rows_cost(faults: list[bool]) -> None:
    """Of n rows of as many requests exactly those fail that must, and each one costs log2(n) failed
    passes beside the first at most; no row is in more than log2(n) + 1 passes."""

    @in_loop
    async def scenario() -> None:
        device = Device()
        errors = [RuntimeError(str(i)) if fault else None for i, fault in enumerate(faults)]
        async with serving(device) as batcher:
            await plugged(batcher, device)
            requests = [await submitted(batcher, [Text("a", error=error)]) for error in errors]
            device.let_go()
            ends = await asyncio.gather(*requests, return_exceptions=True)
        for end, error in zip(ends, errors, strict=True):
            assert end is error if error is not None else isinstance(end, list)
        passes = device.batches[1:]
        failed = [rows for rows in passes if any(row.error for row in rows)]
        halvings = math.ceil(math.log2(len(faults)))
        assert len(failed) <= sum(faults) * halvings + 1
        tries = Counter(row for rows in passes for row in rows)
        assert max(tries.values()) <= halvings + 1

    scenario()


@in_loop
async def test_an_adapter_that_cannot_be_loaded_fails_its_rows_alone() -> None:
    """Where the device cannot take an adapter, its rows fail with that at once; all others of the
    batch are run together."""
    device = Device()
    refusal = AdapterNotLoaded("b@1", "no memory for b")
    async with serving(device) as batcher:
        await plugged(batcher, device)
        failing = [await submitted(batcher, [Text("b", error=refusal)]) for _ in range(5)]
        mates = [await submitted(batcher, [Text(task)]) for task in "aacc"]
        newer = await submitted(batcher, [Text("b", version="2")])
        device.let_go()
        ends = await asyncio.gather(*failing, return_exceptions=True)
        assert ends == [refusal] * 5
        assert [len(await mate) for mate in (*mates, newer)] == [1] * 5
    assert [len(batch) for batch in device.batches[1:]] == [10, 5]


@in_loop
async def test_rows_of_a_client_that_left_are_in_no_part() -> None:
    """A client that leaves while its batch runs has no row in the parts of a batch that fails."""
    device = Device()
    async with serving(device) as batcher:
        gone = await submitted(batcher, [Text("gone"), Text("gone")])
        error = RuntimeError("no")
        await device.begins()
        stays = await submitted(batcher, [Text("a")])
        fails = await submitted(batcher, [Text("b", error=error), Text("gone")])
        gone.cancel()
        await asyncio.wait([gone])
        device.end(error)
        assert len(await device.begins()) == 3
        fails.cancel()
        await asyncio.wait([fails])
        device.let_go()
        assert len(await stays) == 1
    assert [[row.task for row in batch] for batch in device.batches[2:]] == [["a"]]


@in_loop
async def test_a_device_that_loses_rows_fails_its_batch_only() -> None:
    """A device that answers fewer results than rows fails that request, and the loop goes on."""
    answers: list[list[str]] = [["one"], [], ["one", "two"]]
    batcher: Batcher[Text, str] = Batcher(
        lambda _: answers.pop(0), max_tokens=9, max_queue_rows=9, max_adapters=9
    )
    batcher.start()
    with pytest.raises(ValueError, match="shorter"):
        await asyncio.wait_for(batcher.submit([Text("a"), Text("a")]), 5)
    assert [outcome.value for outcome in await batcher.submit([Text("a"), Text("a")])] == [
        "one",
        "two",
    ]
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
    """A row's queueing ends when its batch begins, and a row of a later batch has waited through
    the earlier ones."""
    device = Device()
    began = time.monotonic()
    async with serving(device, max_tokens=1) as batcher:
        request = await submitted(batcher, [Text("a"), Text("a"), Text("a")])
        device.let_go()
        outcomes = await request
        elapsed = time.monotonic() - began
    for earlier, later in itertools.pairwise(outcomes):
        assert later.queued >= earlier.queued + earlier.batch.seconds - 1e-6
    assert all(outcome.queued >= 0 and outcome.batch.seconds > 0 for outcome in outcomes)
    assert outcomes[-1].queued + outcomes[-1].batch.seconds <= elapsed + 1e-6


@in_loop
async def test_reports() -> None:
    """Each batch that ran is reported with its rows, tokens, distinct tasks, seconds and each row's
    wait."""
    reports: list[BatchReport] = []
    device = Device()
    async with serving(device, max_tokens=10, observe=reports.append) as batcher:
        plug = await plugged(batcher, device)
        request = await submitted(
            batcher, [Text("a", 3), Text("b", 4), Text("a", 2, "2"), Text("b", 8)]
        )
        device.let_go()
        outcomes = await request
        await plug
    assert [(report.rows, report.tokens, report.tasks) for report in reports] == [
        (1, 1, 1),
        (3, 9, 2),
        (1, 8, 1),
    ]
    assert sorted(reports[1].waits) == sorted(outcome.queued for outcome in outcomes[:3])
    assert reports[2].waits == [outcomes[3].queued]
    assert [outcomes[0].batch, outcomes[3].batch] == reports[1:]


@in_loop
async def test_a_failed_batch_is_told_of_and_not_reported() -> None:
    """A batch that raised is no batch that ran: it is told of once, and only the parts of it that
    ran are reported."""
    reports: list[BatchReport] = []
    told: list[tuple[Exception, int]] = []
    device = Device()
    error = RuntimeError("no")
    async with serving(
        device, observe=reports.append, failed=lambda *what: told.append(what)
    ) as batcher:
        await plugged(batcher, device)
        requests = [await submitted(batcher, [Text("a")]) for _ in range(3)]
        fails = await submitted(batcher, [Text("b", error=error)])
        device.let_go()
        with pytest.raises(RuntimeError):
            await fails
        assert [len(await request) for request in requests] == [1, 1, 1]
    assert told == [(error, 4)]
    assert [report.rows for report in reports] == [1, 2, 1]
