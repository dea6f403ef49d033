"""How often keys may ask: a token bucket each for requests and for rows.

A bucket holds what its limit gives in a second, at least 1, and is full at first. A request that
needs more rows than a bucket holds waits until it is full and leaves a debt: so every request can
be made, and the mean rate is the limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from service.keys.key import Key
from service.refusals import KeyLimited

ROUNDING = 1e-6  # seconds by which a wait may be longer for lack of precision


class Bucket:
    """`rate` a second."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate, self.size = rate, max(rate, 1.0)
        self._left, self._at = self.size, now

    def wait(self, number: float, now: float) -> float:
        """Seconds until so many can be taken; 0 for now."""
        self._fill(now)
        return max(0.0, (min(number, self.size) - self._left) / self.rate)

    def take(self, number: float, now: float) -> None:
        """Take them, also those that are not there."""
        self._fill(now)
        self._left -= number

    def _fill(self, now: float) -> None:
        self._left = min(self.size, self._left + (now - self._at) * self.rate)
        self._at = now


class Limits:
    """The buckets of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def take_request(self, key: Key) -> None:
        """One request of a key. Raises KeyLimited, and then takes nothing."""
        bucket = self._bucket(key, "requests", key.requests_per_second)
        if bucket is None:
            return
        now = self._clock()
        wait = bucket.wait(1, now)
        if wait > ROUNDING:
            raise KeyLimited(key.name, "requests", bucket.rate, _whole(wait))
        bucket.take(1, now)

    def take_rows(self, key: Key, rows: int) -> None:
        """So many rows of a request that was taken. Raises KeyLimited, and then takes none of
        them; the next request may be made when both limits allow it."""
        bucket = self._bucket(key, "rows", key.rows_per_second)
        if bucket is None:
            return
        now = self._clock()
        wait = bucket.wait(rows, now)
        if wait > ROUNDING:
            requests = self._bucket(key, "requests", key.requests_per_second)
            wait = max(wait, 0.0 if requests is None else requests.wait(1, now))
            raise KeyLimited(key.name, "rows", bucket.rate, _whole(wait))
        bucket.take(rows, now)

    def owe_rows(self, key: Key, rows: int) -> None:
        """Rows of a request under way that were not known before, such as a text's windows."""
        bucket = self._bucket(key, "rows", key.rows_per_second)
        if bucket is not None:
            bucket.take(rows, self._clock())

    def give_back(self, key: Key, requests: int, rows: int) -> None:
        """What was taken for a request that another process counts."""
        now = self._clock()
        for what, rate, number in (
            ("requests", key.requests_per_second, requests),
            ("rows", key.rows_per_second, rows),
        ):
            bucket = self._bucket(key, what, rate)
            if bucket is not None:
                bucket.take(-number, now)

    def forget(self, names: set[str]) -> None:
        """Drop the buckets of all keys but these."""
        for name, what in list(self._buckets):
            if name not in names:
                self._buckets.pop((name, what), None)

    def _bucket(self, key: Key, what: str, rate: float | None) -> Bucket | None:
        if rate is None:
            return None
        found = self._buckets.get((key.name, what))
        if found is None or found.rate != rate:  # the file was changed
            found = self._buckets[key.name, what] = Bucket(rate, self._clock())
        return found


def _whole(seconds: float) -> int:
    """Retry-After has whole seconds: the first at which the wait is over."""
    return max(1, math.ceil(seconds - ROUNDING))
