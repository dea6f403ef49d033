"""Threads that requests share: small work overtakes large, too much is refused, and what nobody
waits for does not run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.fair_threads import FairThreads
from service.refusals import QueueFull
from tests.service.device import in_loop


class Work:
    """Notes what begins; the first piece, "plug", holds its thread until it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = threading.Event()

    def __call__(self, name: str) -> str:
        self.begun.append(name)
        if name == "plug":
            assert self.go.wait(timeout=10)
        return name

    def of(self, name: str, *costs: int) -> list[tuple[int, Callable[[], str]]]:
        return [(cost, partial(self, name)) for cost in costs]


async def started(run: Coroutine[Any, Any, list[str]]) -> asyncio.Task[list[str]]:
    """A request whose first piece waits for a thread by now."""
    request = asyncio.ensure_future(run)
    await asyncio.sleep(0)
    return request


@in_loop
async def test_small_work_overtakes_large() -> None:
    """A request of little cost waits for about as much of each other one, whoever came first, and
    every request gets its pieces' results in order."""
    work, threads = Work(), FairThreads(1, "test", seconds_per_cost=1e-6)
    requests = [await started(threads.run(work.of("plug", 100)))]
    for large in ("large", "huge"):
        requests.append(await started(threads.run(work.of(large, *[100] * 5))))
    requests.append(await started(threads.run(work.of("small", 30, 30))))
    work.go.set()
    assert [await request for request in requests] == [
        ["plug"],
        ["large"] * 5,
        ["huge"] * 5,
        ["small"] * 2,
    ]
    assert work.begun == ["plug", "small", "small", *["large", "huge"] * 5]


@in_loop
async def test_large_work_is_not_starved() -> None:
    """However many small requests come after it, a large one begins once as much cost of theirs was
    done as it has itself."""
    work, threads = Work(), FairThreads(1, "test", seconds_per_cost=1e-6)
    plug = await started(threads.run(work.of("plug", 1)))
    large = await started(threads.run(work.of("large", 100)))
    small = [await started(threads.run(work.of("small", *[10] * 9))) for _ in range(3)]
    work.go.set()
    await asyncio.gather(plug, large, *small)
    assert work.begun.index("large") <= 31


@in_loop
async def test_what_nobody_waits_for_does_not_run() -> None:
    """Pieces of a request that was given up do not begin, and it delays nobody's admission."""
    work, threads = Work(), FairThreads(1, "test", max_wait=1.0, seconds_per_cost=0.1)
    plug = await started(threads.run(work.of("plug", 1)))
    gone = await started(threads.run(work.of("gone", 5, 5)))
    with pytest.raises(QueueFull):
        await threads.run(work.of("refused", 10))
    gone.cancel()
    await asyncio.wait([gone])
    stays = await started(threads.run(work.of("stays", 10)))
    work.go.set()
    await asyncio.gather(plug, stays)
    assert work.begun == ["plug", "stays"]


@in_loop
async def test_too_long_a_wait_is_refused() -> None:
    """A request waits for no more of each other one than its own cost: a large one behind large
    ones is refused with the seconds that it would have waited, a small one is not."""
    work, threads = Work(), FairThreads(2, "test", max_wait=2.0, seconds_per_cost=0.1)
    requests = [await started(threads.run(work.of("plug", 30)))]
    requests.append(await started(threads.run(work.of("plug", 30))))
    with pytest.raises(QueueFull) as raised:
        await threads.run(work.of("refused", 50))
    assert raised.value.retry_after == 3
    requests.append(await started(threads.run(work.of("small", 5))))
    work.go.set()
    await asyncio.gather(*requests)
    assert "refused" not in work.begun


@in_loop
async def test_a_piece_that_raises_fails_its_request_alone() -> None:
    """What a piece raises is its request's, whose other pieces do not run; the threads go on."""

    def broken() -> str:
        raise ValueError("no text")

    work, threads = Work(), FairThreads(1, "test", seconds_per_cost=1e-6)
    with pytest.raises(ValueError, match="no text"):
        await threads.run([(1, broken), *work.of("after", 1)])
    assert await threads.run(work.of("next", 1, 1)) == ["next", "next"]
    assert work.begun == ["next", "next"]


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.lists(st.integers(1, 50), min_size=1, max_size=4), st.booleans()), max_size=12
    ),
    count=st.integers(1, 3),
)
def test_every_piece_runs_once(requests: list[tuple[list[int], bool]], count: int) -> None:
    """For any requests, of which some are given up while they wait, every piece that is due runs
    once, and its request gets its result."""

    @in_loop
    async def scenario() -> None:
        work, threads = Work(), FairThreads(count, "test", seconds_per_cost=1e-6)
        plugs = [await started(threads.run(work.of("plug", 1))) for _ in range(count)]
        runs = [
            await started(threads.run(work.of(str(i), *costs)))
            for i, (costs, _) in enumerate(requests)
        ]
        for run, (_, leaves) in zip(runs, requests, strict=True):
            if leaves:
                run.cancel()
        work.go.set()
        ends = await asyncio.gather(*runs, return_exceptions=True)
        await asyncio.gather(*plugs)
        for i, (end, (costs, leaves)) in enumerate(zip(ends, requests, strict=True)):
            if leaves:
                assert isinstance(end, asyncio.CancelledError)
            else:
                assert end == [str(i)] * len(costs)
            assert work.begun.count(str(i)) == (0 if leaves else len(costs))

    scenario()
