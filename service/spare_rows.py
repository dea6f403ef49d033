"""Rows that no client waits for: kept for the time that a device has to spare, and dropped where it
has none. `service.batcher` runs them, in batches of their own."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

SHARE = 0.1  # of the time that the device works for clients
# Seconds that can be saved up: so long clients' rows may have to wait for spare ones, once.
MOST_SECONDS = 0.1

R = TypeVar("R")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class SpareRow(Generic[R, T]):
    """`done` gets the row's result, what the device raised, or None if the row was dropped.
    `since`: when it was offered."""

    row: R
    tokens: int
    since: float
    done: Callable[[T | Exception | None], None]


class SpareRows(Generic[R, T]):
    """At most `most` rows, by their adapters, which take turns. Where one more comes, the oldest
    row goes of the adapter whose turn it is."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._queues: OrderedDict[str, deque[SpareRow[R, T]]] = OrderedDict()
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def put(self, adapter_key: str, row: SpareRow[R, T]) -> None:
        """Keep one more row."""
        self._queues.setdefault(adapter_key, deque()).append(row)
        self._rows += 1
        if self._rows > self._most:
            self.take(1)[0].done(None)

    def tokens(self, limit: int) -> int:
        """How many tokens `take` would take."""
        return sum(row.tokens for row in self._first(limit))

    def take(self, limit: int) -> list[SpareRow[R, T]]:
        """The oldest rows of the adapter whose turn it is: one, and more up to `limit` tokens. So
        where the device raises, one adapter is at fault."""
        taken = self._first(limit)
        key, queue = next(iter(self._queues.items()))
        for _ in taken:
            queue.popleft()
        self._rows -= len(taken)
        self._queues.move_to_end(key)
        if not queue:
            del self._queues[key]
        return taken

    def drop(self) -> None:
        """Drop all rows."""
        while self._queues:
            for row in self._queues.popitem()[1]:
                row.done(None)
        self._rows = 0

    def _first(self, limit: int) -> list[SpareRow[R, T]]:
        found: list[SpareRow[R, T]] = []
        tokens = 0
        for row in next(iter(self._queues.values())):
            tokens += row.tokens
            if found and tokens > limit:
                break
            found.append(row)
        return found


class SpareTime:
    """Seconds that the device may give to spare rows: all in which it is idle, and `SHARE` of those
    in which it works for clients. At most `MOST_SECONDS` are saved up. What a batch takes longer is
    owed."""

    def __init__(self, now: float) -> None:
        self._seconds, self._idle_since = MOST_SECONDS, now

    def worked(self, seconds: float, now: float) -> None:
        """The device has just worked so long for clients."""
        self._settle(now - seconds)
        self._seconds = min(MOST_SECONDS, self._seconds + SHARE * seconds)
        self._idle_since = now

    def spent(self, seconds: float, now: float) -> None:
        """The device has just worked so long on spare rows."""
        self._settle(now - seconds)
        self._seconds -= seconds
        self._idle_since = now

    def lacking(self, seconds: float, now: float) -> float:
        """How long the device must still be idle for a batch that takes so long."""
        self._settle(now)
        return min(seconds, MOST_SECONDS) - self._seconds

    def _settle(self, now: float) -> None:
        self._seconds = min(MOST_SECONDS, self._seconds + max(0.0, now - self._idle_since))
        self._idle_since = now
