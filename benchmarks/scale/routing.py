"""Which replica a balancer sends a request to: the policies of Envoy, as its code has them.

Checked against envoyproxy/envoy, in `source/extensions/load_balancing_policies/`:
`maglev/maglev_lb.cc` (the table), `common/thread_aware_lb_impl.cc` (bounded load),
`least_request/least_request_lb.cc` (two choices) and `random/random_lb.cc`. All replicas have the
same weight.

Maglev: Eisenbud et al. (2016), "Maglev: A fast and reliable software network load balancer",
section 3.4. Bounded load: Mirrokni, Thorup and Zadimoghaddam (2018), "Consistent hashing with
bounded loads", arXiv:1608.01350; with random jumps in place of the next one on the ring: Chen,
Coleman and Shrivastava (2021), "Revisiting consistent hashing with bounded loads",
arXiv:1908.08762.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol

import numpy as np
import xxhash

TABLE_SIZE = 65_537  # Envoy's default, a prime
SELECTIONS = 5  # further ones of a retry: host_selection_retry_max_attempts of the configuration
ALL_ONES = (1 << 64) - 1
TWISTER = np.random.MT19937(0)  # seeded anew for each use


@dataclass(slots=True)
class Counts:
    """The requests under way that one Envoy knows of: its own, by replica, and all of them."""

    active: list[int]
    total: int = 0
    retries: int = 0


def hashed(text: str, seed: int = 0) -> int:
    """Envoy's hash of a name or an address."""
    return xxhash.xxh64_intdigest(text.encode(), seed)


class Policy(Protocol):
    """`hosts`: the numbers of the replicas that are healthy, in Envoy's order."""

    hosts: Sequence[int]

    def choose(self, task: int, counts: Counts, attempt: int = 0, /) -> int:
        """The replica for a task's request; for further selections of a retry `attempt` grows."""


class Random:
    """Any replica."""

    def __init__(self, hosts: Sequence[int], seed: int) -> None:
        self.hosts, self._random = hosts, random.Random(seed).random

    def choose(self, _task: int, _counts: Counts, _attempt: int = 0, /) -> int:
        return self.hosts[int(self._random() * len(self.hosts))]


class TwoChoices:
    """Of two random ones, which may be the same, the one with fewer requests under way; of equals
    the first. Mitzenmacher (2001), "The power of two choices in randomized load balancing"."""

    def __init__(self, hosts: Sequence[int], seed: int) -> None:
        self.hosts, self._random = hosts, random.Random(seed).random

    def choose(self, _task: int, counts: Counts, _attempt: int = 0, /) -> int:
        hosts, chance = self.hosts, self._random
        first, second = (hosts[int(chance() * len(hosts))] for _ in range(2))
        return second if counts.active[second] < counts.active[first] else first


class Maglev:
    """A task's home; with `factor`, another one while the home has more than its share.

    `factor` is Envoy's hash_balance_factor: percent of the mean number of requests under way.
    """

    def __init__(
        self,
        hosts: Sequence[int],
        addresses: Sequence[str],
        hashes: Sequence[int],
        factor: int | None = None,
    ) -> None:
        """`addresses` are the hosts', as "IP:port", in their order; `hashes` the tasks'."""
        self.hosts, self.factor, self._hashes = hosts, factor, hashes
        self._table = [hosts[place] for place in table(tuple(addresses))]
        self.homes = [self._table[key % TABLE_SIZE] for key in hashes]
        self._weight = 1 / len(hosts)

    def choose(self, task: int, counts: Counts, attempt: int = 0, /) -> int:
        key = self._hashes[task]
        host = self.homes[task] if attempt == 0 else self._table[mutated(key, attempt) % TABLE_SIZE]
        if self.factor is None:
            return host
        slots = share(counts.total, self.factor, self._weight)
        active = counts.active
        if active[host] <= slots:
            return host
        least = host
        for place in order(key, len(self.hosts)):
            other = self.hosts[place]
            if other == host:
                continue
            if active[other] <= slots:
                return other
            if active[other] < active[least]:
                least = other
        return least


def mutated(key: int, attempt: int) -> int:
    """The hash for another selection: `hash ^= ~0ULL - attempt + 1`."""
    return key ^ ((ALL_ONES - attempt + 1) & ALL_ONES)


def share(total: int, factor: int, weight: float) -> int:
    """How many requests under way a replica may have to be given one more, of `total` in all."""
    return max(1, math.ceil(((total + 1) * factor + 99) // 100 * weight))


@lru_cache(maxsize=64)
def table(addresses: tuple[str, ...]) -> list[int]:
    """Maglev's table: the place of a host in `addresses` for each hash modulo TABLE_SIZE."""
    hosts = sorted(range(len(addresses)), key=lambda place: addresses[place])
    offsets = [hashed(addresses[host]) % TABLE_SIZE for host in hosts]
    skips = [hashed(addresses[host], 1) % (TABLE_SIZE - 1) + 1 for host in hosts]
    found = [-1] * TABLE_SIZE
    left = TABLE_SIZE
    while left:
        for turn, host in enumerate(hosts):
            place, skip = offsets[turn], skips[turn]
            while found[place] >= 0:
                place = (place + skip) % TABLE_SIZE
            found[place] = host
            offsets[turn] = (place + skip) % TABLE_SIZE
            left -= 1
            if not left:
                break
    return found


@cache
def order(key: int, hosts: int, first: int | None = None) -> list[int]:
    """In which order a hash asks the hosts once its home has too much: a Fisher-Yates shuffle with
    std::mt19937. Its `first` places, by default all."""
    TWISTER._legacy_seeding(key & 0xFFFFFFFF)  # as std::mt19937 is seeded
    first = hosts if first is None else min(first, hosts)
    drawn = iter(TWISTER.random_raw(2 * first + 16).tolist())
    places = list(range(hosts))
    for i in range(first):
        left = hosts - i
        j = left
        while j >= left:
            j = next(drawn) // ((1 << 32) // left)
        places[i], places[i + j] = places[i + j], places[i]
    return places[:first]
