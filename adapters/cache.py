"""Keep parsed adapters in memory, up to a number of bytes; the least recently used go first."""

from __future__ import annotations

import threading
from collections import OrderedDict

from adapters.file import Adapter


class AdapterCache:
    """Adapters by digest. Safe to use from several threads. Always keeps the newest, whatever its
    size.

    No disk work is done under its lock, so a request that finds its adapter here never waits.
    """

    def __init__(self, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._max_bytes = max_bytes
        self._bytes = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._adapters

    def get(self, digest: str) -> Adapter | None:
        with self._lock:
            adapter = self._adapters.get(digest)
            if adapter is not None:
                self._adapters.move_to_end(digest)
            return adapter

    def put(self, adapter: Adapter) -> None:
        with self._lock:
            self._drop(adapter.digest)
            self._adapters[adapter.digest] = adapter
            self._bytes += adapter.bytes
            while len(self._adapters) > 1 and self._bytes > self._max_bytes:
                self._drop(next(iter(self._adapters)))

    def drop(self, digest: str) -> None:
        with self._lock:
            self._drop(digest)

    def _drop(self, digest: str) -> None:
        adapter = self._adapters.pop(digest, None)
        self._bytes -= adapter.bytes if adapter else 0
