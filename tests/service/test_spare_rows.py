"""Rows that nobody waits for: they never come before a client's row, nor into its batch, and are
dropped where the device has no time for them."""

from __future__ import annotations

import asyncio
from typing import Any

from service.batcher import SPARE_ROWS, SPARE_TOKENS, Batcher, Outcome
from service.spare_rows import MOST_SECONDS, SHARE
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

Done = list[tuple[Text, Any]]


def offered(batcher: Batcher[Text, Text], rows: list[Text], done: Done) -> None:
    """Offer rows; `done` gets each with what came of it."""
    for row in rows:

        def told(result: Outcome[Text] | Exception | None, row: Text = row) -> None:
            done.append((row, result.value if isinstance(result, Outcome) else result))

        batcher.offer(row, told)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)  # turns of the loop: no time passes


@in_loop
async def test_they_run_after_clients_rows_and_by_themselves() -> None:
    """Spare rows wait for every client's row, also for those that come later, and share no batch
    with them; each is answered with its own result."""
    device, done = Device(), Done()
    async with serving(device, max_tokens=2 / SPARE_TOKENS) as batcher:  # type: ignore[arg-type]
        plug = await plugged(batcher, device)
        spare = [Text("a"), Text("a"), Text("a"), Text("b")]
        offered(batcher, spare, done)
        rows = [Text("a"), Text("b")]
        first = await submitted(batcher, rows[:1])
        assert await next_batch(device) == rows[:1]
        second = await submitted(batcher, rows[1:])
        assert await next_batch(device) == rows[1:]
        for batch in (spare[:2], spare[3:], spare[2:3]):  # two tokens, one adapter at a time
            assert await next_batch(device) == batch
        device.end()
        assert await values(first) + await values(second) == rows
        assert len(await plug) == 1
        await asyncio.wait_for(_filled(done, 4), 10)
    assert sorted(done, key=lambda pair: spare.index(pair[0])) == [(row, row) for row in spare]


async def _filled(done: Done, count: int) -> None:
    while len(done) < count:
        await asyncio.sleep(0)


@in_loop
async def test_clients_take_no_notice() -> None:
    """However many spare rows wait, a client's row counts its own queue alone, and is refused no
    sooner."""
    device, done = Device(), Done()
    async with serving(device, max_queue_rows=8) as batcher:
        plug = await plugged(batcher, device)
        offered(batcher, [Text("a") for _ in range(8)], done)
        assert batcher.queued_rows == 0
        request = await submitted(batcher, [Text(str(i)) for i in range(8)])
        assert len(await next_batch(device)) == 8
        assert not device.batches[1:-1]
        device.let_go()
        assert len(await plug) + len(await request) == 9


@in_loop
async def test_the_oldest_are_dropped() -> None:
    """Where more spare rows come than are kept, the oldest are dropped and told so at once; those
    that are left when the batcher is closed, and those that come after, likewise."""
    device, done = Device(), Done()
    async with serving(device, max_queue_rows=round(2 / SPARE_ROWS)) as batcher:
        await plugged(batcher, device)
        rows = [Text("a"), Text("b"), Text("b")]
        offered(batcher, rows, done)
        assert done == [(rows[0], None)]
        closing = asyncio.ensure_future(batcher.close())
        await settled()
        device.end()
        await closing
        assert done == [(row, None) for row in rows]
        late = Text("late")
        offered(batcher, [late], done)
        assert done[-1] == (late, None)


@in_loop
async def test_one_that_fails() -> None:
    """What the device raises on spare rows is told to each of that batch; the next batch runs."""
    device, done = Device(), Done()
    async with serving(device) as batcher:
        broken, whole = Text("a", error=ValueError("no")), Text("b")
        offered(batcher, [broken, whole], done)
        assert await device.begins() == [broken]
        assert await next_batch(device) == [whole]
        device.end()
        await asyncio.wait_for(_filled(done, 2), 10)
        request = await submitted(batcher, [Text("c")])
        assert len(await device.begins()) == 1
        device.end()
        assert len(await request) == 1
    assert done == [(broken, broken.error), (whole, whole)]


@in_loop
async def test_a_tenth_of_a_busy_device() -> None:
    """A client that asks again as soon as it is answered leaves a tenth of the time to spare rows,
    though the device is free each time."""
    device, done, clock = Device(), Done(), Clock()
    async with clock.serving(device, max_tokens=round(1 / SPARE_TOKENS)) as batcher:
        offered(batcher, [Text("spare") for _ in range(400)], done)

        ran: list[str] = []

        async def work() -> None:
            while True:
                (row,) = await device.begins()
                ran.append(row.task)
                clock.now += MOST_SECONDS / 10
                device.end()

        working = asyncio.ensure_future(work())
        for _ in range(200):
            await batcher.submit([Text("client")])
        working.cancel()
        clients, spare = ran.count("client"), ran.count("spare")
        assert clients == 200
        assert SHARE * clients - 10 <= spare <= SHARE * clients + 15  # and what was saved up first
