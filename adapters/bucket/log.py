"""A totally ordered log of changes in a bucket: one object a generation, of which a conditional
write lets one writer win.

    log/<20-digit generation>.json    one change; never written twice
    snapshots/<generation>.json       the state after it, every 1,000 changes
    snapshots/latest                  the newest snapshot's generation: a hint, which may be old

A replica follows the log by asking for the one generation that it has not seen. A poll is complete
when that one is not there yet: all that was committed before the poll began is then known.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from adapters.bucket.changes import Change, DamagedState, State, decoded, encoded, unpacked
from adapters.bucket.objects import Objects
from adapters.errors import StoreError, StoreUnreachable, WriteUnknown

SNAPSHOT_EVERY = 1000  # changes
READERS = 16  # changes read at once where many are missing
PAUSE_SECONDS = 0.05  # before a write of unknown outcome is tried again
LATEST = "snapshots/latest"
DIGITS = 20  # of a generation in a key


def key_of(generation: int) -> str:
    """Where the log has a generation's change."""
    return f"log/{generation:0{DIGITS}d}.json"


def clock() -> float:
    """Seconds that also pass while the machine sleeps, and that no clock's correction moves."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Log:
    """The log under one prefix, and the state up to the generation that was read. Safe to use from
    several threads; `state` may be read without a lock.

    `applied` is called with each change after it is in the state.
    """

    def __init__(
        self, objects: Objects, writer: str, seconds: float, applied: Callable[[Change], None]
    ) -> None:
        """`seconds`: how long the outcome of one write is asked for."""
        self.state = State()
        self._objects, self._writer, self._seconds = objects, writer, seconds
        self._applied = applied
        self._lock = threading.RLock()
        self._began: float | None = None
        self._failure: tuple[float, StoreUnreachable] | None = None  # of the last poll that failed

    @property
    def age(self) -> float:
        """Seconds since the last complete poll began; infinite before the first one."""
        return float("inf") if self._began is None else clock() - self._began

    def load(self) -> None:
        """Read the state from the newest snapshot and the changes after it. Raises StoreError."""
        with self._lock:
            self.state = self._snapshot()
            first = self.state.generation
            keys = [
                listed.key
                for listed in self._objects.under("log", key_of(first) if first else None)
            ]
            with ThreadPoolExecutor(READERS) as readers:
                for key, data in zip(keys, readers.map(self._objects.read, keys), strict=True):
                    if key != key_of(self.state.generation + 1) or data is None:
                        break  # the poll that follows goes on from there
                    self._apply(decoded(data, self._name(key)))
            self.refresh()
            if self.state.generation - first >= SNAPSHOT_EVERY:
                self._keep_snapshot()

    def refresh(self) -> bool:
        """One complete poll; whether there was a change. Raises StoreUnreachable, or StoreError for
        a change that this version cannot read: then the state stays as it was before that one."""
        with self._turn():
            before = self.state.generation
            while True:
                began = clock()
                key = key_of(self.state.generation + 1)
                try:
                    data = self._objects.read(key)
                except StoreUnreachable as error:
                    self._failure = clock(), error
                    raise
                if data is None:
                    self._began = began
                    return self.state.generation > before
                self._apply(decoded(data, self._name(key)))

    def commit(self, decide: Callable[[State], Change | None]) -> bool:
        """Append what `decide` makes of the newest state, which it is asked for anew when another
        writer was first; whether there is a change to append. What `decide` raises is raised.

        Raises StoreUnreachable where nothing was written, WriteUnknown where that is unknown.
        """
        with self._turn():
            while True:
                self.refresh()
                change = decide(self.state)
                if change is None:
                    return False
                signed = change.signed(self._writer)
                if self._won(key_of(self.state.generation + 1), signed):
                    self._apply(signed)
                    if self.state.generation % SNAPSHOT_EVERY == 0:
                        self._keep_snapshot()
                    return True

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the others. Where the bucket gave one of them no answer meanwhile, raise what it
        raised: each would wait for the whole time limit, one after the other."""
        asked = clock()
        with self._lock:
            if self._failure is not None and self._failure[0] > asked:
                failure = self._failure[1]
                raise StoreUnreachable(str(failure), failure.detail)
            yield

    def _won(self, key: str, change: Change) -> bool:
        """Whether the generation is this change's. One write after the other of the same content
        can make it so once; what is there in the end decides."""
        deadline, data = clock() + self._seconds, encoded(change)
        while True:
            try:
                if self._objects.create(key, data):
                    return True
                found = self._objects.read(key)
                if found is not None:
                    return decoded(found, self._name(key)).nonce == change.nonce
                reason, detail = "the bucket refused the write, and has no such object", ""
            except StoreUnreachable as error:
                reason, detail = str(error), error.detail
            if clock() > deadline:
                raise WriteUnknown(
                    f"whether the change of task {change.task!r} was written to"
                    f" {self._name(key)} is unknown: {reason}; expected GET /adapters/"
                    f"{change.task} to show it once the bucket answers",
                    detail,
                )
            time.sleep(PAUSE_SECONDS)

    def _apply(self, change: Change) -> None:
        self.state.apply(change)
        self._applied(change)

    def _snapshot(self) -> State:
        """The state of the newest snapshot that can be read; else the empty one, from which the
        whole log is read."""
        hint = self._objects.read(LATEST)
        if hint is None or not hint.isdigit() or len(hint) > DIGITS:
            return State()
        generation = int(hint)
        key = f"snapshots/{generation:0{DIGITS}d}.json"
        data = self._objects.read(key)
        if data is None:
            return State()
        try:
            state = unpacked(data, self._name(key))
        except DamagedState:
            return State()
        return state if state.generation == generation else State()

    def _keep_snapshot(self) -> None:
        """A snapshot saves time at a start, and nothing else: without one the log is read."""
        generation = self.state.generation
        try:
            self._objects.write(f"snapshots/{generation:0{DIGITS}d}.json", self.state.packed())
            self._objects.write(LATEST, str(generation).encode())
        except StoreError:
            return

    def _name(self, key: str) -> str:
        return f"{key!r} of the bucket {self._objects.url}"
