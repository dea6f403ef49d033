"""A discrete-event simulation of replicas behind Envoys, from a request's arrival to its answer.

One request is one text of one task. An Envoy chooses a replica by what it knows. There the adapter
comes to memory first, if it is not there: from the disk, or from the bucket, which eight threads
do, one reader for each file. Then the row queues, and batches run one after the other. Adapters
without a slot are put into one by the batch, which takes that much longer, as on a CPU.

Not modelled: HTTP, tokenising and the network (a millisecond together); that threads which read
files take the processor from a batch; that files leave the disk (in a run's minutes).
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from benchmarks.scale.batches import Queue
from benchmarks.scale.costs import Costs
from benchmarks.scale.popularity import Floats, recent
from benchmarks.scale.routing import SELECTIONS, Counts, Policy
from service.loader import THREADS

MAX_RETRIES = 1024  # at once, of one Envoy: circuit_breakers.max_retries of the configuration
RETRIES = 3  # of one request: num_retries
BACK_OFF = 0.025  # seconds, within which Envoy sends a request again; twice as long each time

# What happened to a request, as bits.
LOADED = 1  # it put its adapter into a slot: a miss on the device
READ = 2  # it read its adapter into memory: a miss in memory
FETCHED = 4  # it fetched its adapter's file from the bucket
REFUSED = 8  # 429: the queue had no room
FAILED = 16  # 502 to 504: no replica answered
RETRIED = 32  # it was sent to another replica once or more


@dataclass(frozen=True)
class Sizes:
    """Of one replica's tiers, in adapters. 8 GiB of disk, as in deploy/kubernetes-many, hold 55,480
    files of the embedded backbone's adapters."""

    slots: int = 256
    memory: int = 9_000
    disk: int = 55_480


@dataclass(frozen=True)
class Requests:
    """What arrives: times in seconds, ascending; each request's task, tokens and Envoy. `[n]`."""

    times: Floats
    tasks: NDArray[np.int64]
    tokens: NDArray[np.int64]
    envoys: NDArray[np.int64]


@dataclass(frozen=True)
class Outcomes:
    """Of each request: seconds from its arrival to its answer (NaN if it got none), the replica
    that had it last, and what happened. `[n]`."""

    requests: Requests
    latencies: Floats
    replicas: NDArray[np.int64]
    flags: NDArray[np.uint8]


class Replica:
    """Its tiers hold adapters by number, the one used longest ago first."""

    __slots__ = (
        "alive",
        "copies",
        "device",
        "loading",
        "memory",
        "queue",
        "readers",
        "running",
        "silent",
        "timer",
        "unread",
    )

    def __init__(self, adapters: int, slots: int) -> None:
        self.device: OrderedDict[int, None] = OrderedDict()
        self.memory: OrderedDict[int, None] = OrderedDict()
        self.copies = bytearray(adapters)  # 1 for each file on the disk
        self.queue = Queue(slots)
        self.loading: dict[int, list[int]] = {}  # adapter: the requests that wait for it
        self.unread: deque[int] = deque()  # adapters that no reader has begun with
        self.readers = THREADS  # that are free
        self.alive, self.running = True, False
        self.timer = False  # whether a put-off batch has its time
        # after how many seconds its requests are given up, and whether they are sent again then
        self.silent: tuple[float, bool] | None = None


@dataclass(eq=False)
class Cluster:
    """So many tasks, whose adapters are numbered as they are; `further` adapters may be uploaded.
    `bucket_seconds` come to each fetch from the bucket, beside what was measured."""

    tasks: int
    costs: Costs
    policy: Policy
    envoys: int = 1
    sizes: Sizes = field(default_factory=Sizes)
    further: int = 0
    bucket_seconds: float = 0.0
    replicas: list[Replica] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.active = list(range(self.tasks))  # the adapter of each task
        self.counts = [Counts([]) for _ in range(self.envoys)]
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = count()
        self._chance = random.Random(0)  # of the time until a request is sent again
        for _ in range(1 + max(self.policy.hosts)):
            self.add()

    def add(self) -> int:
        """A further replica that has nothing yet; its number. No Envoy knows it."""
        self.replicas.append(Replica(self.tasks + self.further, self.sizes.slots))
        for counts in self.counts:
            counts.active.append(0)
        return len(self.replicas) - 1

    def fill(self, number: int, rates: Floats, seed: int) -> None:
        """Give a replica what it would hold after a long time of requests for tasks at these
        rates, `[tasks]`."""
        replica, sizes = self.replicas[number], self.sizes
        chance = np.random.default_rng((seed, number))
        latest = recent(rates, chance, max(sizes.memory, sizes.disk)).tolist()
        for task in latest[-sizes.disk :]:
            replica.copies[task] = 1
        replica.memory = OrderedDict.fromkeys(latest[-sizes.memory :])
        replica.device = OrderedDict.fromkeys(latest[-sizes.slots :])

    def at(self, time: float, what: Callable[..., None], *given: object) -> None:
        """Let something happen then."""
        heapq.heappush(self._events, (time, next(self._number), what, given))

    def run(self, requests: Requests) -> Outcomes:
        """Let all requests arrive, and go on until each has an answer or will never have one."""
        self._times = requests.times.tolist()
        self._tasks = requests.tasks.tolist()
        self._tokens = requests.tokens.tolist()
        self._envoys = requests.envoys.tolist()
        size = len(self._times)
        self._latencies = [float("nan")] * size
        self._where = [-1] * size
        self._adapters = [0] * size
        self._flags = bytearray(size)
        self._again: dict[int, list[int]] = {}  # request sent again: who had it before
        events, pop = self._events, heapq.heappop
        for request, time in enumerate(self._times):
            while events and events[0][0] <= time:
                self.now, _, what, given = pop(events)
                what(*given)
            self.now = time
            self._send(request)
        while events:
            self.now, _, what, given = pop(events)
            what(*given)
        return Outcomes(
            requests,
            np.array(self._latencies),
            np.array(self._where),
            np.frombuffer(bytes(self._flags), np.uint8),
        )

    def upload(self, task: int, adapter: int, writer: int) -> None:
        """A new version of a task, which only the replica that wrote it has."""
        self.active[task] = adapter
        replica = self.replicas[writer]
        replica.copies[adapter] = 1
        self._remember(replica, adapter)

    def refuse_connections(self, number: int) -> None:
        """A replica is gone, and its machine says so to whoever asks it: Envoys send its requests
        to others at once."""
        for request in self._end(number):
            self._retry(request)

    def fall_silent(self, number: int, seconds: float, again: bool) -> None:
        """A replica takes requests and answers none. After so many seconds an Envoy sends such a
        request again, or answers it with an error."""
        found = self._end(number)
        self.replicas[number].silent = seconds, again
        for request in found:
            self._wait(request, seconds, again)

    def _end(self, number: int) -> list[int]:
        """A replica works no more; the requests that it has."""
        replica = self.replicas[number]
        replica.alive = False
        return [
            request
            for request in np.flatnonzero(np.array(self._where) == number).tolist()
            if self._latencies[request] != self._latencies[request]
            and not self._flags[request] & (REFUSED | FAILED)
        ]

    def _send(self, request: int) -> None:
        counts = self.counts[self._envoys[request]]
        self._give(request, self.policy.choose(self._tasks[request], counts), counts)

    def _give(self, request: int, number: int, counts: Counts) -> None:
        counts.active[number] += 1
        counts.total += 1
        self._where[request] = number
        replica = self.replicas[number]
        if not replica.alive:
            if replica.silent is None:
                self._retry(request)
            else:
                self._wait(request, *replica.silent)
            return
        adapter = self._adapters[request] = self.active[self._tasks[request]]
        memory = replica.memory
        if adapter in memory:
            memory.move_to_end(adapter)
            self._queue(replica, request)
        elif adapter in replica.loading:
            replica.loading[adapter].append(request)
        else:
            replica.loading[adapter] = [request]
            replica.unread.append(adapter)
            self._read(replica)

    def _wait(self, request: int, seconds: float, again: bool) -> None:
        """For the answer of a silent replica."""
        self.at(self.now + seconds, self._retry if again else self._fail, request)

    def _retry(self, request: int) -> None:
        """Another replica, after the one that has the request did not answer."""
        counts = self._leave(request)
        tried = self._again.get(request)
        if tried is None and counts.retries < MAX_RETRIES:
            counts.retries += 1
            tried = self._again[request] = []
            self._flags[request] |= RETRIED
        if tried is None or len(tried) == RETRIES:
            self._flags[request] |= FAILED
            self._done(request, counts)
            return
        tried.append(self._where[request])
        self._where[request] = -1  # it has none meanwhile
        within = BACK_OFF * 2 ** (len(tried) - 1)
        self.at(self.now + self._chance.uniform(0, within), self._send_again, request)

    def _send_again(self, request: int) -> None:
        counts = self.counts[self._envoys[request]]
        tried = self._again[request]
        for attempt in range(1 + SELECTIONS):
            number = self.policy.choose(self._tasks[request], counts, attempt)
            if number not in tried:
                break
        self._give(request, number, counts)

    def _fail(self, request: int) -> None:
        self._flags[request] |= FAILED
        self._done(request, self._leave(request))

    def _leave(self, request: int) -> Counts:
        counts = self.counts[self._envoys[request]]
        counts.active[self._where[request]] -= 1
        counts.total -= 1
        return counts

    def _done(self, request: int, counts: Counts) -> None:
        if self._again and request in self._again:
            counts.retries -= 1

    def _read(self, replica: Replica) -> None:
        """Begin to read files, as long as there are readers."""
        while replica.readers and replica.unread:
            adapter = replica.unread.popleft()
            replica.readers -= 1
            first = replica.loading[adapter][0]
            if replica.copies[adapter]:
                self._flags[first] |= READ
                seconds = self.costs.disk
            else:
                self._flags[first] |= READ | FETCHED
                seconds = self.costs.bucket + self.bucket_seconds
            self.at(self.now + seconds, self._was_read, replica, adapter)

    def _was_read(self, replica: Replica, adapter: int) -> None:
        if not replica.alive:
            return
        replica.readers += 1
        replica.copies[adapter] = 1
        self._remember(replica, adapter)
        for request in replica.loading.pop(adapter):
            self._queue(replica, request)
        self._read(replica)

    def _remember(self, replica: Replica, adapter: int) -> None:
        memory = replica.memory
        memory[adapter] = None
        if len(memory) > self.sizes.memory:
            memory.popitem(last=False)

    def _queue(self, replica: Replica, request: int) -> None:
        adapter, tokens, queue = self._adapters[request], self._tokens[request], replica.queue
        if not queue.has_room(adapter, tokens):
            self._flags[request] |= REFUSED
            self._done(request, self._leave(request))
            return
        queue.put(request, adapter, tokens)
        if not replica.running:
            self._begin(replica)

    def _begin(self, replica: Replica) -> None:
        """A batch, unless it is put off or there is nothing to run."""
        queue = replica.queue
        if not queue.rows:
            return
        now = self.now
        time = queue.waits_until(now)
        if time > now:
            if not replica.timer:
                replica.timer = True
                self.at(time, self._waited, replica)
            return
        requests, adapters, tokens = queue.form(now)
        device, slots = replica.device, self.sizes.slots
        missing = [adapter for adapter in adapters if adapter not in device]
        if missing:
            loads = set(missing)
            for adapter in adapters:
                if adapter not in loads:
                    device.move_to_end(adapter)
            for adapter in missing:
                if len(device) >= slots:
                    device.popitem(last=False)
                device[adapter] = None
            for request in requests:
                adapter = self._adapters[request]
                if adapter in loads:
                    loads.remove(adapter)
                    self._flags[request] |= LOADED
        else:
            for adapter in adapters:
                device.move_to_end(adapter)
        seconds = self.costs.seconds(tokens, len(requests), len(adapters), len(missing))
        replica.running = True
        self.at(now + seconds, self._ended, replica, requests, tokens, seconds)

    def _waited(self, replica: Replica) -> None:
        replica.timer = False
        if replica.alive and not replica.running:
            self._begin(replica)

    def _ended(self, replica: Replica, requests: list[int], tokens: int, seconds: float) -> None:
        if not replica.alive:
            return
        now = self.now
        times, latencies, where, envoys = self._times, self._latencies, self._where, self._envoys
        for request in requests:
            latencies[request] = now - times[request]
            counts = self.counts[envoys[request]]
            counts.active[where[request]] -= 1
            counts.total -= 1
        if self._again:
            for request in requests:
                self._done(request, self.counts[envoys[request]])
        replica.queue.ended(now, len(requests), tokens, seconds)
        replica.running = False
        self._begin(replica)


def arrivals(
    popularity: Floats,
    tokens: Sequence[int],
    rate: float,
    requests: int,
    envoys: int,
    seed: int,
) -> Requests:
    """Poisson arrivals, each for a task by its popularity, with the tokens of one of the texts, at
    any of the Envoys."""
    chance = np.random.default_rng(seed)
    edges = np.cumsum(popularity)
    return Requests(
        times=np.cumsum(chance.exponential(1 / rate, requests)),
        tasks=np.minimum(
            np.searchsorted(edges, chance.random(requests) * edges[-1], side="right"),
            len(edges) - 1,
        ),
        tokens=chance.choice(np.asarray(tokens), requests),
        envoys=chance.integers(envoys, size=requests),
    )
