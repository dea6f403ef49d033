"""What is asked of the simulation: policies in a steady state, and what happens to a cluster."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.scale.cluster import (
    FAILED,
    FETCHED,
    LOADED,
    READ,
    REFUSED,
    RETRIED,
    Cluster,
    Outcomes,
)
from benchmarks.scale.costs import Costs
from benchmarks.scale.popularity import che
from benchmarks.scale.routing import Maglev
from benchmarks.scale.setup import POLICIES, SHIPPED, Setup

Figures = dict[str, Any]
Mask = NDArray[np.bool_]
COMPARED = ("two choices", SHIPPED)

# Of Envoy's health check in the shipped configuration: two failures in a row, a second apart. A
# connection that is refused fails at once, one that is not answered after two seconds; half a
# second until the first check, on average.
NOTICED_REFUSED = 1.5
NOTICED_SILENT = 5.5
ROUTE_TIMEOUT = 60.0
TRY_TIMEOUT = 10.0  # a per_try_timeout, which the shipped configuration does not have
Gone = Literal["refuse", "silent", "silent, 10 s a try"]


def policies(setup: Setup, exponents: Sequence[float], requests: int) -> list[Figures]:
    """Each policy at each of Zipf's exponents; the first third of the requests warms up."""
    return [
        {"exponent": exponent, **steady(replace(setup, exponent=exponent), name, requests)}
        for exponent in exponents
        for name in POLICIES
    ]


def faster_device(setup: Setup, times: float, requests: int) -> list[Figures]:
    """What if the device ran batches so many times as fast, and loads took what they take? A
    supposition: no such device was measured."""
    costs = setup.costs
    faster = replace(
        costs,
        batch=costs.batch / times,
        token=costs.token / times,
        row=costs.row / times,
        adapter=costs.adapter / times,
    )
    return [
        {"times_as_fast": times, **steady(replace(setup, costs=faster), name, requests)}
        for name in ("two choices", "bounded 1.25", "bounded 1.5", "bounded 2")
    ]


def envoys(setup: Setup, numbers: Sequence[int], requests: int) -> list[Figures]:
    """The shipped policy behind several Envoys, each of which knows its own requests alone."""
    return [
        {"envoys": number, **steady(replace(setup, envoys=number), SHIPPED, requests)}
        for number in numbers
    ]


def steady(setup: Setup, name: str, requests: int) -> Figures:
    """A policy after a long time."""
    cluster = setup.cluster(name)
    outcomes = cluster.run(setup.arrivals(requests))
    late = np.arange(requests) >= requests // 3
    return {
        "policy": name,
        **summary(setup, outcomes, late),
        "che": approximation(setup, cluster, outcomes, late),
    }


def summary(setup: Setup, outcomes: Outcomes, chosen: Mask) -> Figures:
    """Of the chosen requests. Hits are of those that were answered: each of the others found its
    adapter there, or came while another one brought it."""
    flags, latencies = outcomes.flags[chosen], outcomes.latencies[chosen]
    answered = ~np.isnan(latencies)
    number, done = len(flags), max(1, int(answered.sum()))
    times = outcomes.requests.times[chosen]
    seconds = times[-1] - times[0]
    at = np.bincount(outcomes.replicas[chosen], minlength=setup.replicas)
    p50, p99 = np.percentile(1000 * latencies[answered], [50, 99]).round(1).tolist()

    def part(bit: int, of: int) -> float:
        return round(float((flags & bit > 0).sum() / of), 5)

    return {
        "requests": number,
        "device_hit_rate": round(1 - part(LOADED, done), 4),
        "memory_hit_rate": round(1 - part(READ, number), 4),
        "fetched_from_bucket": part(FETCHED, number),
        "p50_ms": p50,
        "p99_ms": p99,
        "refused": part(REFUSED, number),
        "failed": part(FAILED, number),
        "sent_again": part(RETRIED, number),
        "hottest_load": round(float(at.max() / seconds / setup.capacity), 3),
    }


def approximation(
    setup: Setup, cluster: Cluster, outcomes: Outcomes, chosen: Mask
) -> Figures | None:
    """Che's, for the policies whose requests are independent at each replica."""
    policy = cluster.policy
    if isinstance(policy, Maglev) and policy.factor is not None:
        return None
    slots, memory = setup.sizes.slots, setup.sizes.memory
    if not isinstance(policy, Maglev):
        rates = setup.popularity
        return {
            "device_hit_rate": round(che(rates, slots), 4),
            "memory_hit_rate": round(che(rates, memory), 4),
        }
    homes = np.array(policy.homes)
    hits = [
        (che(own, slots), che(own, memory))
        for own in (setup.popularity[homes == host] for host in policy.hosts)
    ]
    # Weighted by what each replica did: those that refuse answer less than they are asked.
    had = outcomes.replicas[chosen]
    weights = np.bincount(had[~np.isnan(outcomes.latencies[chosen])], minlength=setup.replicas)
    device, memory_hits = np.average(np.array(hits), axis=0, weights=weights).round(4).tolist()
    return {"device_hit_rate": device, "memory_hit_rate": memory_hits}


def scale_out(setup: Setup, name: str, before: float, after: float) -> Figures:
    """One more replica, which has nothing yet."""
    cluster = setup.cluster(name)
    old = cluster.policy

    def join() -> None:
        number = cluster.add()
        cluster.policy = setup.policy(name, [*range(setup.replicas), number])

    cluster.at(before, join)
    outcomes = cluster.run(setup.arrivals(int(setup.rate * (before + after))))
    times = outcomes.requests.times
    figures = {
        "policy": name,
        "before": summary(setup, outcomes, _between(times, before / 2, before)),
        "ten_seconds_after": summary(setup, outcomes, _between(times, before, before + 10)),
        "at_the_new_one": at_replica(outcomes, setup.replicas, before, before + 10),
        "seconds": timeline(outcomes),
    }
    if isinstance(old, Maglev) and isinstance(cluster.policy, Maglev):
        figures |= moved(setup, old, cluster.policy)
    return figures


def moved(setup: Setup, old: Maglev, new: Maglev) -> Figures:
    """The share of tasks, and of requests, with another home; and the least that a further replica
    must take for all to have the same."""
    other = np.array(old.homes) != np.array(new.homes)
    return {
        "tasks_moved": round(float(other.mean()), 5),
        "requests_moved": round(float(setup.popularity[other].sum()), 5),
        "least": round(abs(1 - len(old.hosts) / len(new.hosts)), 5),
    }


def at_replica(outcomes: Outcomes, number: int, start: float, end: float) -> Figures:
    """What one replica's requests met."""
    chosen = (outcomes.replicas == number) & _between(outcomes.requests.times, start, end)
    flags, latencies = outcomes.flags[chosen], outcomes.latencies[chosen]
    known = latencies[~np.isnan(latencies)]
    return {
        "requests": int(chosen.sum()),
        "fetched_from_bucket": int((flags & FETCHED > 0).sum()),
        "p99_ms": round(1000 * float(np.percentile(known, 99)), 1) if len(known) else None,
    }


def rolling(setup: Setup, name: str, at_once: int, every: float, before: float) -> Figures:
    """All replicas are replaced, some at once: new ones join with nothing, then old ones leave."""
    cluster = setup.cluster(name)
    hosts = list(range(setup.replicas))
    steps = setup.replicas // at_once

    def join() -> None:
        hosts.extend(cluster.add() for _ in range(at_once))
        cluster.policy = setup.policy(name, list(hosts))

    def leave() -> None:
        del hosts[:at_once]
        cluster.policy = setup.policy(name, list(hosts))

    for step in range(steps):
        cluster.at(before + step * every, join)
        cluster.at(before + (step + 0.2) * every, leave)
    end = before + steps * every + before
    outcomes = cluster.run(setup.arrivals(int(setup.rate * end)))
    times = outcomes.requests.times
    return {
        "policy": name,
        "at_once": at_once,
        "every_seconds": every,
        "before": summary(setup, outcomes, _between(times, before / 2, before)),
        "during": summary(setup, outcomes, _between(times, before, end - before)),
        "after": summary(setup, outcomes, _between(times, end - before, end)),
        "seconds": timeline(outcomes),
    }


def zone(setup: Setup, how: Gone, before: float, after: float) -> Figures:
    """A third of the replicas is gone at once: they refuse connections; or they take requests and
    answer none, which Envoys bear for the route's time, as shipped, or for that of a try."""
    cluster = setup.cluster(SHIPPED)
    gone = range(0, setup.replicas, 3)
    left = [host for host in range(setup.replicas) if host not in gone]
    noticed = NOTICED_REFUSED if how == "refuse" else NOTICED_SILENT

    def notice() -> None:
        cluster.policy = setup.policy(SHIPPED, left)

    for number in gone:
        if how == "refuse":
            cluster.at(before, cluster.refuse_connections, number)
        elif how == "silent":
            cluster.at(before, cluster.fall_silent, number, ROUTE_TIMEOUT, False)
        else:
            cluster.at(before, cluster.fall_silent, number, TRY_TIMEOUT, True)
    cluster.at(before + noticed, notice)
    outcomes = cluster.run(setup.arrivals(int(setup.rate * (before + after))))
    times = outcomes.requests.times
    return {
        "how": how,
        "load": setup.load,
        "gone": len(gone),
        "load_of_those_left": round(setup.load * setup.replicas / len(left), 3),
        "noticed_after_seconds": noticed,
        "before": summary(setup, outcomes, _between(times, before / 2, before)),
        "until_noticed": summary(setup, outcomes, _between(times, before, before + noticed)),
        "after": summary(setup, outcomes, _between(times, before + noticed + 5, before + after)),
        "seconds": timeline(outcomes),
    }


def drifting(setup: Setup, lifetimes: Sequence[float | None], requests: int) -> list[Figures]:
    """Tasks change places in popularity."""
    late = np.arange(requests) >= requests // 2
    return [
        {
            "policy": name,
            "lifetime_seconds": lifetime,
            **summary(setup, setup.cluster(name).run(setup.arrivals(requests, lifetime)), late),
        }
        for lifetime in lifetimes
        for name in COMPARED
    ]


def burst(
    setup: Setup, uploads: int, seconds: float, popular: bool, before: float, after: float
) -> Figures:
    """New versions of tasks, which are taken by popularity or evenly, within some seconds."""
    cluster = setup.cluster(SHIPPED, further=uploads)
    chance = np.random.default_rng(setup.seed + 3)
    weights = setup.popularity if popular else None
    tasks = chance.choice(setup.tasks, uploads, replace=False, p=weights).tolist()
    writers = chance.integers(setup.replicas, size=uploads).tolist()
    for number, (task, writer) in enumerate(zip(tasks, writers, strict=True)):
        time = before + seconds * number / uploads
        cluster.at(time, cluster.upload, task, setup.tasks + number, writer)
    outcomes = cluster.run(setup.arrivals(int(setup.rate * (before + seconds + after))))
    times = outcomes.requests.times
    return {
        "uploads": uploads,
        "within_seconds": seconds,
        "tasks": "by popularity" if popular else "evenly",
        "requests_for_them": round(float(setup.popularity[tasks].sum()), 4),
        "before": summary(setup, outcomes, _between(times, before / 2, before)),
        "during": summary(setup, outcomes, _between(times, before, before + seconds)),
        "after": summary(setup, outcomes, _between(times, before + seconds, times[-1])),
        "seconds": timeline(outcomes),
    }


def polling(
    costs: Costs, more: float, replicas: Sequence[int], poll: float, lease: float
) -> Figures:
    """What following the log costs, by the code of `adapters.bucket`: a look every `poll` seconds,
    one more for each change; a write reads the next change, writes the file, writes the change, and
    looks whether the file is there. `more` seconds come to each access."""
    look, write = costs.poll + more, costs.commit + more
    highest = 1 / (look + write)  # the log's changes come one after the other
    period = poll + look
    # A poll is complete when it found no further change: it also reads those that came meanwhile.
    busiest = period / (1 - highest * look)
    return {
        "poll_seconds": poll,
        "lease_seconds": lease,
        "access_seconds": round(look, 4),
        "reads_per_second": {str(n): round(n / period, 1) for n in replicas},
        "reads_per_day": {str(n): round(86_400 * n / period) for n in replicas},
        "reads_per_change": {str(n): n for n in replicas},
        "accesses_per_upload": {"read": 1, "write": 2, "head": 1},
        "most_changes_per_second": round(highest, 1),
        "seconds_between_complete_polls_then": round(busiest, 3),
        "within_lease": bool(busiest + look <= lease),
    }


def timeline(outcomes: Outcomes) -> dict[str, list[float | None]]:
    """By the second of arrival: the shares of device misses, memory misses, fetches, refused and
    failed requests, and the p99 of the answers in ms."""
    seconds = outcomes.requests.times.astype(int)
    edges = np.searchsorted(seconds, np.arange(seconds[-1] + 1)).tolist()
    found: dict[str, list[float | None]] = {
        name: [] for name in ("loaded", "read", "fetched", "refused", "failed", "p99_ms")
    }
    bits = {"loaded": LOADED, "read": READ, "fetched": FETCHED, "refused": REFUSED}
    for first, end in itertools.pairwise(edges):
        flags, latencies = outcomes.flags[first:end], outcomes.latencies[first:end]
        for name, bit in {**bits, "failed": FAILED}.items():
            found[name].append(round(float((flags & bit > 0).mean()), 4))
        known = latencies[~np.isnan(latencies)]
        p99 = round(1000 * float(np.percentile(known, 99)), 1) if len(known) else None
        found["p99_ms"].append(p99)
    return found


def _between(times: NDArray[np.float64], start: float, end: float) -> Mask:
    return (times >= start) & (times < end)
