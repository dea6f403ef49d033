"""Adapters read from disk, off the event loop and before their rows are queued: no batch waits for a file."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from adapters.file import Adapter
from adapters.store import Store

THREADS = 8  # of their own, so that files that hang hold up neither uploads nor, up to so many, other tasks' files


class Loader:
    """Reads each file once, however many requests wait for it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="loader")
        self._under_way: dict[str, asyncio.Future[Adapter]] = {}

    async def load(self, task: str, digest: str) -> Adapter:
        """One version of a task. Raises as `Store.get`; the next request tries again."""
        adapter = self._store.held(digest)
        if adapter is not None:
            return adapter
        reading = self._under_way.get(digest)
        if reading is None:
            reading = asyncio.get_running_loop().run_in_executor(self._threads, self._store.get, task, digest)
            self._under_way[digest] = reading
            reading.add_done_callback(lambda _: self._under_way.pop(digest))
        return await asyncio.shield(reading)  # a client that leaves does not end it for the others
