"""Mixed tasks for a long time while versions are swapped: is each answer the right version's?
Do memory, descriptors and threads stay as they are?"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import psutil
import uvloop

from benchmarks.http.server import Start, service, started
from benchmarks.reliability import adapters
from benchmarks.reliability.adapters import TINY, Task, Version
from benchmarks.reliability.client import Answer, Connection, NoAnswer, request, upload
from benchmarks.reliability.report import Findings

WORKERS = (1, 2)
VERSIONS = 4  # of each task
CONNECTIONS = 48
SAMPLES = 120  # of memory, in each part
WARM_UP = 1 / 3  # of each part's samples: caches, pools and heaps grow to their size
JUDGED_SECONDS = 60  # a shorter part says nothing of its memory
MOST_GROWTH_BYTES = 16 << 20  # after the warm-up, by the fitted line
MOST_FURTHER = 3  # descriptors, threads


@dataclass(eq=False)
class Served:
    """A task as the service should have it. `history` are its active versions, None while it is
    deleted; those from `settled` on may answer: the one that was acknowledged last, and what was
    asked for since."""

    task: Task
    history: list[Version | None]
    stored: set[str]
    settled: int = 0

    def begin(self, version: Version | None) -> None:
        self.history.append(version)

    def settle(self) -> None:
        self.settled = len(self.history) - 1


@dataclass(frozen=True)
class Ask:
    """A request, and the tasks that it asks, each with the numbers of its inputs; `several`: the
    inputs are a list."""

    data: bytes
    wanted: tuple[tuple[Served, tuple[int, ...]], ...]
    several: bool = False


@dataclass
class Sample:
    """Of all the server's processes."""

    seconds: float
    requests: int
    rss: int
    pss: int
    descriptors: int
    threads: int


@dataclass
class Part:
    """One server's run."""

    workers: int
    asked: int = 0
    swaps: Counter[str] = field(default_factory=Counter)
    absent: int = 0  # requests for a task that was deleted just then
    seen: set[str] = field(default_factory=set)
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0


def soak(
    backbone: str,
    minutes: float,
    requests: int,
    swaps: int,
    findings: Findings,
    start: Start = started,
) -> dict[str, Any]:
    """As many minutes, or as many requests if they are done sooner; half of both with each number
    of workers. So many swaps, evenly over the requests. `start` starts the servers."""
    with adapters.scratch() as folder:
        name, loaded = adapters.backbone_of(backbone, Path(folder))
        tasks = adapters.tasks(loaded, VERSIONS)
        parts = []
        for workers in WORKERS:
            store = Path(folder) / f"store-{workers}"
            with service(store, name, start, workers=workers) as server:
                part = Part(workers)
                run = Run(server, tasks, part, findings, random.Random(workers))
                uvloop.run(run.run(60 * minutes / 2, requests // 2, swaps // 2))
                findings.check_log(server)
            parts.append(part)
    return {
        "backbone": "two layers of 32" if backbone == TINY else backbone,
        "connections": CONNECTIONS,
        "requests": sum(part.asked for part in parts),
        "swaps": sum(part.swaps.total() for part in parts),
        "parts": [_figures(part, findings) for part in parts],
    }


class Asked(Protocol):
    """What is asked: one server, or several behind one address."""

    @property
    def url(self) -> str: ...

    def processes(self) -> list[psutil.Process]: ...


class Run:
    """Callers and a swapper at one server."""

    def __init__(
        self,
        server: Asked,
        tasks: list[Task],
        part: Part,
        findings: Findings,
        chance: random.Random,
        connections: int = CONNECTIONS,
    ) -> None:
        self._connections = connections
        self._server, self._part, self._findings, self._chance = server, part, findings, chance
        self._served = [Served(task, [task.versions[0]], set()) for task in tasks]
        self._over = False

    async def run(self, seconds: float, requests: int, swaps: int) -> None:
        writer = await Connection.open(self._server.url)
        for served in self._served:
            for version in reversed(served.task.versions[:2]):
                await self._write(writer, upload(version.data), {201})
                served.stored.add(version.digest)
        asks = [self._ask() for _ in range(2000)]
        started = time.monotonic()
        callers = [
            asyncio.create_task(self._call(itertools.cycle(asks[i :: self._connections]), requests))
            for i in range(self._connections)
        ]
        swapping = asyncio.create_task(self._swap(writer, started, seconds, requests, swaps))
        sampling = asyncio.create_task(self._sample(started, seconds, requests))
        await asyncio.wait(
            [*callers, swapping], timeout=seconds, return_when=asyncio.FIRST_EXCEPTION
        )
        self._over = True
        await asyncio.gather(*callers, swapping)
        self._part.seconds = time.monotonic() - started
        sampling.cancel()
        writer.close()

    def _ask(self) -> Ask:
        """One text; or four in a list; or one for two tasks that both know it."""
        kind, served = self._chance.random(), self._chance.choice(self._served)
        inputs = served.task.inputs
        if kind < 0.1:
            four = tuple(self._chance.randrange(len(inputs)) for _ in range(4))
            return _asked(((served, four),), [inputs[i] for i in four], several=True)
        number = self._chance.randrange(len(inputs))
        wanted = [(served, (number,))]
        if kind < 0.2:
            wanted += [
                (other, (other.task.inputs.index(inputs[number]),))
                for other in self._chance.sample(self._served, len(self._served))
                if other is not served and inputs[number] in other.task.inputs
            ][:1]
        return _asked(tuple(wanted), inputs[number])

    async def _call(self, asks: itertools.cycle[Ask], requests: int) -> None:
        """One request after the other, each answer judged."""
        connection = await Connection.open(self._server.url)
        for ask in asks:
            if self._over or self._part.asked >= requests:
                break
            self._part.asked += 1
            since = [served.settled for served, _ in ask.wanted]
            try:
                answer = await connection.ask(ask.data)
                judge(ask, since, answer, self._part, self._findings)
            except NoAnswer as error:
                self._findings.wrong("no answer", str(error))
                connection = await Connection.open(self._server.url)
        connection.close()

    async def _swap(
        self, writer: Connection, started: float, seconds: float, requests: int, swaps: int
    ) -> None:
        """Change the active version of one task after the other, in each of three ways in turn."""
        ways = itertools.cycle((self._activate, self._replace, self._renew))
        for number in range(swaps):
            while not self._over:
                done = max(self._part.asked / requests, (time.monotonic() - started) / seconds)
                if done >= number / swaps:
                    break
                await asyncio.sleep(0.002)
            if self._over:
                return
            way = next(ways)
            await way(writer, self._chance.choice(self._served))
            self._part.swaps[way.__name__.strip("_")] += 1

    async def _activate(self, writer: Connection, served: Served) -> None:
        """Another version that is stored becomes the active one."""
        version = self._other(served, stored=True)
        served.begin(version)
        body = json.dumps({"version": version.short}).encode()
        path = f"/adapters/{served.task.name}/activate"
        await self._write(writer, request("POST", path, body), {200})
        served.settle()

    async def _replace(self, writer: Connection, served: Served) -> None:
        """A version that is not stored is uploaded, then an older one is deleted."""
        before = served.history[-1]
        version = self._other(served, stored=False)
        served.begin(version)
        await self._write(writer, upload(version.data), {201})
        served.settle()
        served.stored.add(version.digest)
        if before is not None:
            path = f"/adapters/{served.task.name}/versions/{before.digest}"
            await self._write(writer, request("DELETE", path), {204})
            served.stored.remove(before.digest)

    async def _renew(self, writer: Connection, served: Served) -> None:
        """The task is deleted, and uploaded again with two versions."""
        served.begin(None)
        await self._write(writer, request("DELETE", f"/adapters/{served.task.name}"), {204})
        served.settle()
        served.stored.clear()
        for version in self._chance.sample(served.task.versions, 2):
            served.begin(version)
            await self._write(writer, upload(version.data), {201})
            served.settle()
            served.stored.add(version.digest)

    def _other(self, served: Served, *, stored: bool) -> Version:
        active = served.history[-1]
        return self._chance.choice(
            [
                version
                for version in served.task.versions
                if version is not active and (version.digest in served.stored) == stored
            ]
        )

    async def _write(self, writer: Connection, data: bytes, expected: set[int]) -> None:
        answer = await writer.ask(data)
        self._findings.check(
            answer.status in expected,
            "a write that failed",
            f"{data[:60]!r} was answered {answer.status} {answer.body[:300]!r}",
        )

    async def _sample(self, started: float, seconds: float, requests: int) -> None:
        """Look at the server at even steps of the requests or of the time."""
        taken = 0
        while True:
            elapsed = time.monotonic() - started
            if max(elapsed / seconds, self._part.asked / requests) * SAMPLES >= taken:
                self._part.samples.append(measured(self._server, elapsed, self._part.asked))
                taken += 1
            await asyncio.sleep(0.05)


def judge(ask: Ask, since: list[int], answer: Answer, part: Part, findings: Findings) -> None:
    """Is it what the version in the header answers, and may that version answer now?"""
    allowed = [of.history[start:] for (of, _), start in zip(ask.wanted, since, strict=True)]
    if answer.status == 404 and any(None in states for states in allowed):
        part.absent += 1
        return
    if answer.status != 200:
        kind = "a 5xx" if answer.status >= 500 else "a refusal"
        findings.wrong(kind, f"{answer.status} {answer.body[:300]!r}")
        return
    names = (answer.header("X-Adapter-Version") or "").split(", ")
    if len(names) != len(ask.wanted):
        findings.wrong("a wrong header", f"X-Adapter-Version is {names!r}")
        return
    content = orjson.loads(answer.body)
    for (of, inputs), states, name in zip(ask.wanted, allowed, names, strict=True):
        fitting = [v for v in states if v is not None and name == f"{of.task.name}@{v.short}"]
        if not fitting:
            findings.wrong("a stale version", f"{name} answered for {of.task.name}")
            continue
        part.seen.add(fitting[0].digest)
        mine = content[of.task.name] if len(ask.wanted) > 1 else content
        found = mine if ask.several else [mine]
        expected = [fitting[0].expected[i] for i in inputs]
        if len(found) != len(expected) or not all(
            adapters.agree(want, adapters.answered(got))
            for want, got in zip(expected, found, strict=True)
        ):
            findings.wrong("a wrong answer", f"{name} answered {found!r}; expected {expected!r}")


def _asked(
    wanted: tuple[tuple[Served, tuple[int, ...]], ...], inputs: Any, *, several: bool = False
) -> Ask:
    query = "&".join(f"task={served.task.name}" for served, _ in wanted)
    return Ask(request("POST", f"/predict?{query}", adapters.body(inputs)), wanted, several)


def measured(server: Asked, seconds: float, requests: int) -> Sample:
    """What the server's processes hold."""
    sample = Sample(seconds, requests, 0, 0, 0, 0)
    for process in server.processes():
        try:
            info = process.memory_full_info()
            sample.rss += info.rss
            sample.pss += info.pss
            sample.descriptors += process.num_fds()
            sample.threads += process.num_threads()
        except psutil.NoSuchProcess:
            continue
    return sample


def _figures(part: Part, findings: Findings) -> dict[str, Any]:
    """With the growth after the warm-up judged, if the part was long enough."""
    kept = part.samples[round(WARM_UP * len(part.samples)) :]
    growth = {}
    for name in ("rss", "pss"):
        values = [getattr(sample, name) for sample in kept]
        slope = np.polyfit([sample.requests for sample in kept], values, 1)[0]
        growth[name] = float(slope) * (kept[-1].requests - kept[0].requests)
    judged = part.seconds >= JUDGED_SECONDS
    if judged:
        findings.check(
            growth["rss"] <= MOST_GROWTH_BYTES,  # PSS also moves with what other processes share
            "memory that grows",
            f"{growth['rss'] / 2**20:.1f} MiB after the warm-up, with {part.workers} workers",
        )
        for name in ("descriptors", "threads"):
            values = [getattr(sample, name) for sample in kept]
            half = len(values) // 2
            findings.check(
                max(values[half:]) <= max(values[:half]) + MOST_FURTHER,
                f"{name} that grow",
                f"{max(values[half:])} of them at the end, after {max(values[:half])}",
            )
    asked = kept[-1].requests - kept[0].requests
    return {
        "workers": part.workers,
        "requests": part.asked,
        "seconds": round(part.seconds, 1),
        "per_second": round(part.asked / part.seconds, 1),
        "swaps": dict(part.swaps),
        "versions_that_answered": len(part.seen),
        "requests_for_a_task_just_deleted": part.absent,
        "growth_judged": judged,
        "after_warm_up": {
            "requests": asked,
            "seconds": round(kept[-1].seconds - kept[0].seconds, 1),
            **{f"{name}_growth_mib": round(bytes_ / 2**20, 2) for name, bytes_ in growth.items()},
            "rss_mib_per_million_requests": round(growth["rss"] / 2**20 / asked * 1e6, 2),
            **{
                f"{name}_mib": _range([getattr(sample, name) / 2**20 for sample in kept])
                for name in ("rss", "pss")
            },
            **{
                name: _range([getattr(sample, name) for sample in kept])
                for name in ("descriptors", "threads")
            },
        },
        "samples": [
            {
                "seconds": round(sample.seconds, 1),
                "requests": sample.requests,
                "rss_mib": round(sample.rss / 2**20, 1),
                "pss_mib": round(sample.pss / 2**20, 1),
                "descriptors": sample.descriptors,
                "threads": sample.threads,
            }
            for sample in part.samples[:: max(1, len(part.samples) // 40)]
        ],
    }


def _range(values: list[float]) -> list[float]:
    return [round(min(values), 1), round(max(values), 1)]


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What the table shows."""
    found = [("requests", f"{figures['requests']:,}"), ("swaps", f"{figures['swaps']:,}")]
    for part in figures["parts"]:
        after = part["after_warm_up"]
        found.append(
            (
                f"with {part['workers']} workers",
                f"{part['requests']:,} requests at {part['per_second']:,}/s; after the warm-up"
                f" RSS {after['rss_growth_mib']:+.1f} MiB, descriptors {after['descriptors']},"
                f" threads {after['threads']}",
            )
        )
    return found
