"""Parsed adapters in memory: at most so many bytes of files, the least recently used one makes
room."""

from __future__ import annotations

import threading
from collections import OrderedDict

from adapters.file import Adapter


class AdapterCache:
    """Adapters by digest; safe to use from several threads. It always keeps the newest, whatever
    its size.

    Its lock is never held over disk work, so that a request which finds its adapter here waits for
    nobody.
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
