"""Requests at a server: in a closed loop to find what it can do, in an open one to see how long its
answers take then.

Whether the sender itself was the limit is seen from each phase: `client_cores` is its own use of
the processor, `late_p99_ms` by how much an open loop's requests left after their time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
import uvloop

TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclass(frozen=True)
class Call:
    """One request: its path with the query, and its JSON body."""

    path: str
    body: bytes = b""
    method: str = "POST"


@dataclass
class Phase:
    """What was measured, in seconds; `late` only of an open loop."""

    duration: float = 0.0
    client_cpu: float = 0.0
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return len(self.latencies)

    @property
    def rate(self) -> float:
        return self.requests / self.duration

    def add(self, other: Phase) -> None:
        """What was measured in another one of the same kind, too."""
        self.duration += other.duration
        self.client_cpu += other.client_cpu
        self.latencies += other.latencies
        self.late += other.late

    def figures(self) -> dict[str, float]:
        """For the JSON of results."""
        p50, p99 = (1000 * np.percentile(self.latencies, [50, 99])).round(2).tolist()
        late = (
            {"late_p99_ms": round(1000 * float(np.percentile(self.late, 99)), 2)}
            if self.late
            else {}
        )
        return {
            "requests": self.requests,
            "per_second": round(self.rate, 1),
            "p50_ms": p50,
            "p99_ms": p99,
            "client_cores": round(self.client_cpu / self.duration, 2),
            **late,
        }


def closed_loop(url: str, calls: Iterator[Call], seconds: float, concurrency: int) -> Phase:
    """So many callers, each sending its next request when it has its answer. Raises RuntimeError on
    any answer but 200."""
    return _run(_closed_loop(url, calls, seconds, concurrency))


def open_loop(url: str, calls: Iterator[Call], seconds: float, rate: float, seed: int) -> Phase:
    """Poisson arrivals, whatever is still unanswered; exactly `seconds * rate` of them, for in a
    few seconds chance would make a tenth more or less. Latency counts from when a request was to be
    sent, so that a server that stalls is charged for all who would have come meanwhile."""
    return _run(_open_loop(url, calls, seconds, rate, random.Random(seed)))


def answers(url: str, calls: list[Call]) -> list[Any]:
    """The answers to a few calls, one after the other."""

    async def ask() -> list[Any]:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            return [await _ask(session, url, call) for call in calls]

    return uvloop.run(ask())


def _run(phase: Coroutine[Any, Any, Phase]) -> Phase:
    started = time.process_time()
    measured = uvloop.run(phase)
    measured.client_cpu = time.process_time() - started
    return measured


async def _closed_loop(url: str, calls: Iterator[Call], seconds: float, concurrency: int) -> Phase:
    phase = Phase()
    async with aiohttp.ClientSession(
        timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        started = time.perf_counter()

        async def caller() -> None:
            while (sent := time.perf_counter()) < started + seconds:
                await _ask(session, url, next(calls))
                phase.latencies.append(time.perf_counter() - sent)

        await asyncio.gather(*(caller() for _ in range(concurrency)))
        phase.duration = time.perf_counter() - started
    return phase


async def _open_loop(
    url: str, calls: Iterator[Call], seconds: float, rate: float, rng: random.Random
) -> Phase:
    phase = Phase()
    async with aiohttp.ClientSession(
        timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0)
    ) as session:

        async def send(due: float, call: Call) -> None:
            phase.late.append(time.perf_counter() - due)
            await _ask(session, url, call)
            phase.latencies.append(time.perf_counter() - due)

        times = sorted(rng.uniform(0, seconds) for _ in range(max(1, round(seconds * rate))))
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for due in (started + after for after in times):
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(send(due, next(calls)))
        phase.duration = time.perf_counter() - started
    return phase


async def _ask(session: aiohttp.ClientSession, url: str, call: Call) -> Any:
    """The answer: what JSON says, or a text."""
    headers = {"Content-Type": "application/json"}
    async with session.request(
        call.method, url + call.path, data=call.body, headers=headers
    ) as response:
        if response.status != 200:
            raise RuntimeError(
                f"{url}{call.path} answered {response.status} {await response.text()}; expected 200"
            )
        return await (
            response.json() if response.content_type == "application/json" else response.text()
        )
