"""The state of a store in a bucket on the local disk, for a start without the bucket."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from adapters import disk
from adapters.bucket.changes import State, unpacked
from adapters.bucket.log import clock
from adapters.regular import read_bytes

# To write the state takes as long as the store is large. It may take one second in so many.
ONE_SECOND_IN = 20


class KeptState:
    """One file. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._generation, self._after = 0, 0.0

    def read(self) -> State:
        """Raises OSError if there is none, StoreError if it is damaged."""
        return unpacked(read_bytes(self.path), f"the file {self.path}")

    def write(self, state: State, *, at_once: bool = False) -> None:
        """Write it, if it changed; but not again and again, unless `at_once`: a later call does
        it then. A disk without room takes no part in serving."""
        with self._lock:
            generation, began = state.generation, clock()
            if generation == self._generation or (began < self._after and not at_once):
                return
            with contextlib.suppress(OSError):
                disk.write_atomically(self.path, state.packed())
                self._generation = generation
            self._after = clock() + ONE_SECOND_IN * (clock() - began)
