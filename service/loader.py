"""Adapters read from disk, and brought to a GPU, off the event loop and before their rows are
queued: no batch waits for a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from adapters.adapter_store import AdapterStore
from adapters.file import Adapter
from service.engine.slots import Slots

T = TypeVar("T")

# of their own, so that files that hang hold up neither uploads nor, up to so many, other tasks'
# files
THREADS = 8


class Loader:
    """Reads each file once, and copies each adapter once, however many requests wait for it."""

    def __init__(self, store: AdapterStore, slots: Slots) -> None:
        self._store, self._slots = store, slots
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="loader")
        self._read: dict[str, asyncio.Future[Adapter]] = {}
        self._copied: dict[str, asyncio.Future[None]] = {}

    async def load(self, task: str, digest: str) -> Adapter:
        """One version of a task. Raises as `Store.get`; the next request tries again."""
        adapter = self._store.held(digest)
        if adapter is not None:
            return adapter
        return await self._once(self._read, digest, lambda: self._store.get(task, digest))

    async def prefetch(self, adapter: Adapter) -> None:
        """Bring an adapter to the device, if there is a slot to be had before its batch. Not on a
        CPU: there the copy would take a core from the batch that runs, and more memory, from each
        thread's own heap."""
        if self._slots.apart and not self._slots.resident(adapter.digest):
            await self._once(self._copied, adapter.digest, lambda: self._slots.prefetch(adapter))

    async def _once(
        self, under_way: dict[str, asyncio.Future[T]], digest: str, job: Callable[[], T]
    ) -> T:
        done = under_way.get(digest)
        if done is None:
            done = under_way[digest] = asyncio.get_running_loop().run_in_executor(
                self._threads, job
            )
            done.add_done_callback(lambda _: under_way.pop(digest))
        return await asyncio.shield(done)  # a client that leaves does not end it for the others
