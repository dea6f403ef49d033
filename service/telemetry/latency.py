"""Latencies: how long each task's last answers took. Kept by the process alone: a histogram for
each of 10,000 tasks would drown Prometheus, and a page wants two numbers."""

from __future__ import annotations

import math
from array import array

KEPT = 256  # answers of a task: 1 KB of it, and enough for the p99 to be the third longest


class Latencies:
    """The last `KEPT` answers of each task that got any."""

    def __init__(self) -> None:
        self._rings: dict[str, _Ring] = {}

    def add(self, task: str, seconds: float) -> None:
        """One answer."""
        if task not in self._rings:
            self._rings[task] = _Ring()
        self._rings[task].add(seconds)

    def quantiles(self, task: str, *wanted: float) -> list[float] | None:
        """In seconds, each one that an answer really took (the nearest rank); None for a task
        without an answer."""
        ring = self._rings.get(task)
        if ring is None:
            return None
        seconds = ring.sorted()
        return [seconds[max(math.ceil(q * len(seconds)), 1) - 1] for q in wanted]

    def forget(self, task: str) -> None:
        """Drop a task that was deleted."""
        self._rings.pop(task, None)


class _Ring:
    """Up to `KEPT` values. When it is full, the newest value replaces the oldest. Values are in
    single precision, whose error is a ten-millionth."""

    __slots__ = ("_next", "_seconds")

    def __init__(self) -> None:
        self._seconds = array("f")
        self._next = 0

    def add(self, seconds: float) -> None:
        if len(self._seconds) < KEPT:
            self._seconds.append(seconds)
            return
        self._seconds[self._next] = seconds
        self._next = (self._next + 1) % KEPT

    def sorted(self) -> list[float]:
        # a copy in one step: the list of tasks is made by another thread
        return sorted(self._seconds.tolist())
