"""What is simulated: so many tasks and replicas at a load, the policies, and their caches after a
long time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from benchmarks.scale.batches import MAX_TOKENS, MAX_WAIT
from benchmarks.scale.cluster import Cluster, Requests, Sizes, arrivals
from benchmarks.scale.costs import Costs
from benchmarks.scale.popularity import Floats, zipf
from benchmarks.scale.routing import Maglev, Policy, Random, TwoChoices, hashed, order

FACTORS = {f"bounded {factor / 100:g}": factor for factor in (125, 150, 200, 300)}
POLICIES = ("random", "two choices", "hash", *FACTORS)
SHIPPED = "bounded 1.25"  # the configuration in deploy/kubernetes-many
# Of a task's requests at its first, second … further replica, by which caches are filled. Where
# memory has room for all of them, as here, the figure hardly matters.
PASSED_ON = 0.2
FURTHER = 8


@dataclass(frozen=True)
class Setup:
    """`load` is the rate of arrivals over what all replicas can do with full batches whose adapters
    all have slots; `tokens` are those of the texts; `bucket_seconds` come to each fetch."""

    costs: Costs
    tokens: list[int] = field(repr=False)
    tasks: int = 100_000
    replicas: int = 100
    envoys: int = 2
    load: float = 0.7
    exponent: float = 1.0
    sizes: Sizes = field(default_factory=Sizes)
    bucket_seconds: float = 0.03
    seed: int = 0

    @cached_property
    def capacity(self) -> float:
        """Texts a second that one replica can do: in batches that are as long as the longest wait
        lets them be, each text of another task."""
        mean = float(np.mean(self.tokens))
        rows = MAX_TOKENS / mean
        while self.costs.seconds(rows * mean, rows, rows, 0) > MAX_WAIT and rows > 1:
            rows -= 0.1
        return rows / self.costs.seconds(rows * mean, rows, rows, 0)

    @property
    def rate(self) -> float:
        """Arrivals a second."""
        return self.load * self.capacity * self.replicas

    @cached_property
    def popularity(self) -> Floats:
        return zipf(self.tasks, self.exponent)

    @cached_property
    def hashes(self) -> list[int]:
        return [hashed(f"task-{number:06d}") for number in range(self.tasks)]

    def policy(self, name: str, hosts: list[int] | None = None) -> Policy:
        """One of POLICIES, over all replicas or the hosts with these numbers."""
        hosts = list(range(self.replicas)) if hosts is None else hosts
        if name == "random":
            return Random(hosts, self.seed)
        if name == "two choices":
            return TwoChoices(hosts, self.seed)
        addresses = [address(host) for host in hosts]
        return Maglev(hosts, addresses, self.hashes, FACTORS.get(name))

    def cluster(self, name: str, further: int = 0) -> Cluster:
        """Replicas behind a policy, with what they would hold after a long time."""
        policy = self.policy(name)
        cluster = Cluster(
            self.tasks,
            self.costs,
            policy,
            envoys=self.envoys,
            sizes=self.sizes,
            further=further,
            bucket_seconds=self.bucket_seconds,
        )
        for number, rates in enumerate(self.rates(policy)):
            cluster.fill(number, rates, self.seed)
        return cluster

    def rates(self, policy: Policy) -> Floats:
        """About how often each replica is asked for each task, `[replicas, tasks]`."""
        if not isinstance(policy, Maglev):
            return np.broadcast_to(self.popularity / self.replicas, (self.replicas, self.tasks))
        found = np.zeros((self.replicas, self.tasks), np.float32)
        found[policy.homes, np.arange(self.tasks)] = self.popularity
        if policy.factor is not None:
            for task, key in enumerate(self.hashes):
                rate = self.popularity[task]
                for place in order(key, self.replicas, FURTHER):
                    rate *= PASSED_ON
                    if not found[place, task]:
                        found[place, task] = rate
        return found

    def arrivals(self, requests: int, lifetime: float | None = None) -> Requests:
        """So many. With a lifetime, tasks change places in popularity: each keeps its own for so
        many seconds on average."""
        found = arrivals(
            self.popularity, self.tokens, self.rate, requests, self.envoys, self.seed + 1
        )
        if lifetime is not None:
            drift(found, self.tasks, lifetime, self.seed + 2)
        return found


def drift(requests: Requests, tasks: int, lifetime: float, seed: int) -> None:
    """Let tasks change places, in place: each second some of them, at random, among each other."""
    chance = np.random.default_rng(seed)
    place = np.arange(tasks)
    seconds = requests.times.astype(int)
    edges = np.searchsorted(seconds, np.arange(seconds[-1] + 2))
    for first, end in itertools.pairwise(edges):
        requests.tasks[first:end] = place[requests.tasks[first:end]]
        moving = np.flatnonzero(chance.random(tasks) < 1 / lifetime)
        place[moving] = place[chance.permutation(moving)]


def address(number: int) -> str:
    """Of a replica, as Envoy hashes it."""
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:8000"
