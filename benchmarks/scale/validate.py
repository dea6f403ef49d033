"""A small point of the simulation beside the real thing: three replicas on one bucket behind Envoy
with the configuration that is shipped, and the same requests simulated."""

from __future__ import annotations

import contextlib
import re
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import numpy as np
import torch

from adapters.bucket.objects import connect
from benchmarks.http import load
from benchmarks.http.load import Call
from benchmarks.http.server import ROOT, Server, service
from benchmarks.reliability.adapters import backbone_of
from benchmarks.scale.cluster import FETCHED, LOADED, Cluster, Outcomes, Requests, Sizes
from benchmarks.scale.costs import Costs
from benchmarks.scale.measure import TIMEOUT, fill
from benchmarks.scale.popularity import zipf
from benchmarks.scale.routing import Maglev, hashed
from benchmarks.scale.setup import FACTORS, SHIPPED
from tests.buckets import seaweedfs
from tests.envoy import envoy
from training.hardware import hardware

REPLICAS = 3
LONE = 50  # requests one after the other, of which the median is what a request takes
BODY = b'{"inputs": "a good film"}'


def validated(
    backbone: str, tasks: int, slots: int, requests: int, rates: Sequence[float]
) -> dict[str, Any]:
    """So many requests at each rate, one rate after the other, on replicas that begin with nothing;
    tasks by Zipf's law with exponent 1."""
    chance = np.random.default_rng(0)
    names = [f"task-{number:05d}" for number in range(tasks)]
    drawn = chance.choice(tasks, (len(rates), requests), p=zipf(tasks, 1.0))
    (ROOT / "var").mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(dir=ROOT / "var"))
        folder = Path(name)
        place, loaded = backbone_of(backbone, folder)
        (folder / "bucket").mkdir()
        bucket = stack.enter_context(seaweedfs(folder / "bucket"))
        stack.enter_context(mock.patch.dict("os.environ", bucket.environment))
        fill(connect(bucket.url("validate"), TIMEOUT), loaded, [*names, "lone"])
        servers = [
            stack.enter_context(
                service(
                    bucket.url("validate"),
                    place,
                    cache=folder / f"cache-{number}",
                    slots=slots,
                    trusted_proxies="*",
                )
            )
            for number in range(REPLICAS)
        ]
        url = stack.enter_context(envoy([server.url for server in servers], folder))
        alone = load.closed_loop(url, iter([call("lone")] * 10_000), LONE / 20, 1)
        lone = float(np.median(alone.latencies))
        real = []
        before = [state(server) for server in servers]
        for number, rate in enumerate(rates):
            calls = iter([call(names[task]) for task in drawn[number]])
            phase = load.open_loop(url, calls, requests / rate, rate, seed=number)
            after = [state(server) for server in servers]
            real.append((phase, [one - other for one, other in zip(after, before, strict=True)]))
            before = after
    addresses = [urlsplit(server.url).netloc for server in servers]
    policy = Maglev(range(REPLICAS), addresses, [hashed(task) for task in names], FACTORS[SHIPPED])
    outcomes = simulated(policy, drawn, rates, lone, Sizes(slots, tasks, tasks))
    return {
        "backbone": backbone,
        "tasks": tasks,
        "slots": slots,
        "exponent": 1.0,
        "lone_request_ms": round(1000 * lone, 2),
        "rates": [
            {
                "requests_per_second": rate,
                "requests": requests,
                "p50_ms": phase.figures()["p50_ms"],
                "late_p99_ms": phase.figures()["late_p99_ms"],
                "tasks_mostly_at_home": mostly_at_home(policy, names, found),
                "measured": of_real(policy, names, found),
                "simulated": of_simulation(policy, outcomes, number * requests, requests),
            }
            for number, (rate, (phase, found)) in enumerate(zip(rates, real, strict=True))
        ],
        "hardware": hardware(torch.device("cpu")),
    }


def simulated(
    policy: Maglev, drawn: np.ndarray, rates: Sequence[float], lone: float, sizes: Sizes
) -> Outcomes:
    """The same tasks at the same rates; a batch takes as long as a request alone took."""
    chance = np.random.default_rng(1)
    seconds = [drawn.shape[1] / rate for rate in rates]
    begins = np.cumsum([0.0, *seconds[:-1]])
    times = np.concatenate(
        [
            begin + np.sort(chance.uniform(0, length, drawn.shape[1]))
            for begin, length in zip(begins, seconds, strict=True)
        ]
    )
    costs = Costs(
        batch=lone, token=0, row=0, adapter=0, load=2e-4, disk=5e-4, bucket=5e-3, poll=0, commit=0
    )
    cluster = Cluster(len(policy.homes), costs, policy, sizes=sizes)
    few = np.ones(drawn.size, int)
    return cluster.run(Requests(times, drawn.ravel(), few, np.zeros(drawn.size, int)))


def of_real(policy: Maglev, names: list[str], found: list[Counter[str]]) -> dict[str, float]:
    """What the replicas' own metrics say."""
    done = sum(each[task] for each in found for task in names)
    home = sum(found[policy.homes[number]][task] for number, task in enumerate(names))
    return {
        "device_hit_rate": round(1 - sum(each["loads"] for each in found) / done, 4),
        "fetched_from_bucket": round(sum(each["fetches"] for each in found) / done, 4),
        "at_home": round(home / done, 4),
    }


def of_simulation(policy: Maglev, outcomes: Outcomes, first: int, size: int) -> dict[str, float]:
    chosen = slice(first, first + size)
    flags = outcomes.flags[chosen]
    homes = np.array(policy.homes)[outcomes.requests.tasks[chosen]]
    return {
        "device_hit_rate": round(1 - float((flags & LOADED > 0).mean()), 4),
        "fetched_from_bucket": round(float((flags & FETCHED > 0).mean()), 4),
        "at_home": round(float((homes == outcomes.replicas[chosen]).mean()), 4),
    }


def mostly_at_home(policy: Maglev, names: list[str], found: list[Counter[str]]) -> str:
    """How many tasks, of those asked for three times or more, were answered most often by the home
    that our table gives them."""
    often = right = 0
    for number, task in enumerate(names):
        counts = [each[task] for each in found]
        if sum(counts) >= 3:
            often += 1
            right += max(range(len(found)), key=counts.__getitem__) == policy.homes[number]
    return f"{right} of {often}"


def call(task: str) -> Call:
    return Call(f"/predict?task={task}", BODY)


def state(server: Server) -> Counter[str]:
    """A replica's counters: answers by task, `loads` into slots, `fetches` from the bucket."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
        text = response.read().decode()
    found = Counter(
        {
            task: round(float(value))
            for task, value in re.findall(
                r'^adamix_requests_total\{outcome="ok",task="(.*?)"\} (.*)$', text, re.MULTILINE
            )
        }
    )
    for name, metric in (
        ("loads", "adamix_adapter_loads_total"),
        ("fetches", "adamix_adapter_fetch_duration_seconds_count"),
    ):
        (value,) = re.findall(rf"^{metric} (.*)$", text, re.MULTILINE)
        found[name] = round(float(value))
    return found
