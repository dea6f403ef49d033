"""A device under a test's control, and the batcher that serves rows on it."""

from __future__ import annotations

import asyncio
import functools
import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from service.batcher import Batcher, Outcome


@dataclass(frozen=True, eq=False)
class Text:
    """A row; a device here answers a row with itself, and raises `error` on a batch that holds one
    with it."""

    task: str
    tokens: int = 1
    version: str = "1"
    error: Exception | None = None

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
        for error in (verdict, *(row.error for row in rows)):
            if error is not None:
                raise error
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
    patience: float = 0.0,
    **options: Any,
) -> AsyncIterator[Batcher[Text, Text]]:
    batcher: Batcher[Text, Text] = Batcher(
        device,
        max_tokens=max_tokens,
        max_queue_rows=max_queue_rows,
        max_adapters=max_adapters,
        patience=patience,
        **options,
    )
    batcher.start()
    try:
        yield batcher
    finally:
        device.let_go()
        await batcher.close()


class Clock:
    """time.monotonic, as a batcher reads it, under a test's control."""

    def __init__(self) -> None:
        self.now = 1000.0

    @asynccontextmanager
    async def serving(self, device: Device, **options: Any) -> AsyncIterator[Batcher[Text, Text]]:
        """As `serving`, by this clock."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("service.batcher.time", SimpleNamespace(monotonic=lambda: self.now))
            async with serving(device, **options) as batcher:
                yield batcher


async def submitted(
    batcher: Batcher[Text, Text], rows: Sequence[Text]
) -> asyncio.Task[list[Outcome[Text]]]:
    """A request whose rows are queued by now."""
    request = asyncio.ensure_future(batcher.submit(rows))
    await asyncio.sleep(0)  # one turn of the loop: no time passes
    return request


async def plugged(
    batcher: Batcher[Text, Text], device: Device
) -> asyncio.Task[list[Outcome[Text]]]:
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
