"""Replication: what is promised to a request where several replicas share the store of one bucket.

A write is acknowledged one lease after it was committed. A replica whose last complete poll began
longer ago than the lease refreshes before it answers. So what was acknowledged holds on every
replica that reaches the bucket, and neither a list of the replicas nor a shared clock is needed:
each measures durations alone.
"""

from __future__ import annotations

import asyncio
import time

from adapters.bucket.store import BucketStore
from adapters.errors import StoreError
from service.refusals import BehindGeneration, Stale

RETRY_SECONDS = 0.05  # between two polls of a request that waits


class Replication:
    """This replica's view of the bucket, for requests on the event loop."""

    def __init__(
        self, store: BucketStore, *, poll_seconds: float, lease_seconds: float, wait_seconds: float
    ) -> None:
        self._store, self._poll = store, poll_seconds
        self.lease, self._wait = lease_seconds, wait_seconds

    def start(self) -> None:
        """Poll from now on, in a thread."""
        self._store.follow(self._poll)

    def stop(self) -> None:
        """Poll and write no more."""
        self._store.close()

    @property
    def generation(self) -> int:
        """How many changes this replica knows."""
        return self._store.generation

    @property
    def age(self) -> float:
        """Seconds since the last complete poll began."""
        return self._store.age

    async def see(self, generation: int = 0) -> None:
        """Wait until this replica knows all that was acknowledged before now, and `generation`.

        Where the bucket gives no answer in time, what is known is served. Raises BehindGeneration
        where that is older than `generation`.
        """
        store = self._store
        fresh = store.age <= self.lease or not store.reached
        if fresh and store.generation >= generation:
            return
        deadline = time.monotonic() + self._wait
        while (left := deadline - time.monotonic()) > 0:
            # shielded: others wait for the same poll
            poll = asyncio.shield(asyncio.wrap_future(store.soon()))
            try:
                await asyncio.wait_for(poll, left)
            except TimeoutError:
                store.reached = False  # until a poll is complete, nobody waits for one again
            except StoreError:
                pass  # what is known is served
            if store.generation >= generation:
                return
            await asyncio.sleep(min(RETRY_SECONDS, max(0.0, deadline - time.monotonic())))
        if store.generation < generation:
            raise BehindGeneration(store.generation, generation)

    def check_fresh(self) -> None:
        """Raises Stale if the lease has run out."""
        age = self._store.age
        if age > self.lease:
            raise Stale(age, self.lease)
