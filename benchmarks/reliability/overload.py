"""Three times what the service can do: who is refused and how, how long those wait who are not, and
what a flood of one task does to another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.http.server import Server, service
from benchmarks.reliability import adapters
from benchmarks.reliability.adapters import TINY, Task
from benchmarks.reliability.client import Answer, Connection, NoAnswer, request, upload
from benchmarks.reliability.report import Findings

AT_ONCE = 32  # callers of the closed loop that finds the capacity
AGAIN_SECONDS = 0.05  # after which a caller that was refused asks again
LOW, HIGH = 0.8, 3.0  # of the capacity
PARTS = {  # of the seconds of the load of 300 %
    **{"warm-up": 1 / 8, "capacity": 1 / 4, "at 80 %": 1 / 2, "at 300 %": 1.0},
    **{"recovery": 1 / 4, "a flood": 1 / 2},
}
HEALTH_SECONDS = 0.05  # between two requests for /health
LONE_SECONDS = 0.2  # between two requests of the task that is not flooded
MOST_RATIO, MOST_HEALTH_MS = 3.0, 50.0  # the goals


@dataclass
class Phase:
    """What one load was answered with."""

    seconds: float = 0.0
    rate: float = 0.0
    latencies: list[float] = field(default_factory=list)  # of the answers 200, from their time on
    refused: list[float] = field(default_factory=list)  # of 429
    retry_after: Counter[int] = field(default_factory=Counter)
    health: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)  # by how much requests left after their time

    def figures(self) -> dict[str, Any]:
        sent = len(self.latencies) + len(self.refused)
        return {
            "seconds": round(self.seconds, 1),
            "sent_per_second": round(sent / self.seconds, 1),
            "sent": sent,
            "accepted": len(self.latencies),
            "accepted_per_second": round(len(self.latencies) / self.seconds, 1),
            "refused_429": len(self.refused),
            "retry_after_seconds": {str(s): n for s, n in sorted(self.retry_after.items())},
            **_quantiles("accepted", self.latencies),
            **_quantiles("refused", self.refused),
            **_quantiles("health", self.health),
            "late_p99_ms": _ms(self.late, 99),
        }


def overload(backbone: str, seconds: float, findings: Findings, **settings: Any) -> dict[str, Any]:
    """Each phase takes its part of so many seconds. `settings` are the service's; its own defaults
    by default."""
    with adapters.scratch() as folder:
        name, loaded = adapters.backbone_of(backbone, Path(folder))
        tasks = adapters.tasks(loaded, 1)
        given = {"max_wait_seconds": "", **settings}  # its default
        with service(Path(folder) / "store", name, **given) as server:
            uvloop.run(_fill(server, tasks))
            mixed, (flooded, lone) = _Mix(tasks), (tasks[0], tasks[-1])
            for phase in ("warm-up", "capacity"):
                found = _capacity(server, mixed.judged(), PARTS[phase] * seconds, findings)
                capacity = uvloop.run(found)
            phases = {}
            for phase, part in (("at 80 %", LOW), ("at 300 %", HIGH), ("recovery", LOW)):
                duration = PARTS[phase] * seconds
                loader = _Load(server, mixed.judged(), part * capacity, duration, findings)
                phases[phase] = uvloop.run(loader.run())
            fairness = uvloop.run(
                _flood(server, flooded, lone, HIGH * capacity, PARTS["a flood"] * seconds, findings)
            )
            findings.check_log(server)
    figures = {phase: found.figures() for phase, found in phases.items()}
    low, high = (figures[phase]["accepted_p99_ms"] for phase in ("at 80 %", "at 300 %"))
    return {
        "backbone": "two layers of 32" if backbone == TINY else backbone,
        "settings": settings,
        "capacity_per_second": round(capacity, 1),
        "phases": figures,
        "fairness": fairness,
        "p99_ratio": round(high / low, 2),
        "p99_ratio_goal": MOST_RATIO,
        "p99_ratio_met": high / low <= MOST_RATIO,
        "slowest_health_ms": max(figures[phase]["health_max_ms"] for phase in figures),
        "health_goal_ms": MOST_HEALTH_MS,
        "health_met": max(figures[phase]["health_max_ms"] for phase in figures) <= MOST_HEALTH_MS,
    }


async def _fill(server: Server, tasks: list[Task]) -> None:
    async with await Connection.open(server.url) as connection:
        for task in tasks:
            answer = await connection.ask(upload(task.versions[0].data))
            assert answer.status == 201, answer.body


async def _capacity(
    server: Server, asks: Iterator[tuple[bytes, Task, int]], seconds: float, findings: Findings
) -> float:
    """Answers a second to so many callers, each of whom asks again when it has its answer, or
    somewhat later when it was refused."""
    ends, answered = time.monotonic() + seconds, 0

    async def caller() -> None:
        nonlocal answered
        async with await Connection.open(server.url) as connection:
            while time.monotonic() < ends:
                data, task, number = next(asks)
                answer = await connection.ask(data)
                if answer.status == 429:
                    await asyncio.sleep(AGAIN_SECONDS)
                else:
                    answered += judged(answer, task, number, findings)

    began = time.monotonic()
    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return answered / (time.monotonic() - began)


class _Mix:
    """One text or pair a request, of all tasks."""

    def __init__(self, tasks: list[Task]) -> None:
        self._tasks = tasks
        self._chance = random.Random(0)

    def _drawn(self) -> Iterator[tuple[Task, int]]:
        while True:
            task = self._chance.choice(self._tasks)
            yield task, self._chance.randrange(len(task.inputs))

    def judged(self) -> Iterator[tuple[bytes, Task, int]]:
        for task, number in self._drawn():
            yield _request(task, number), task, number


def _request(task: Task, number: int) -> bytes:
    return request("POST", f"/predict?task={task.name}", adapters.body(task.inputs[number]))


class _Load:
    """Poisson arrivals at one rate, whatever is still unanswered, and /health all the while."""

    def __init__(
        self,
        server: Server,
        asks: Iterator[tuple[bytes, Task, int]],
        rate: float,
        seconds: float,
        findings: Findings,
    ) -> None:
        self._server, self._asks, self._findings = server, asks, findings
        self._phase = Phase(seconds, rate)
        self._idle: list[Connection] = []

    async def run(self) -> Phase:
        phase, chance = self._phase, random.Random(1)
        times = sorted(
            chance.uniform(0, phase.seconds)
            for _ in range(max(1, round(phase.seconds * phase.rate)))
        )
        asking = asyncio.create_task(self._health())
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for due in (started + after for after in times):
                if (left := due - time.monotonic()) > 0:
                    await asyncio.sleep(left)
                group.create_task(self._send(due, next(self._asks)))
        phase.seconds = time.monotonic() - started
        await _ended(asking)
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(0)
        return phase

    async def _send(self, due: float, ask: tuple[bytes, Task, int]) -> None:
        data, task, number = ask
        self._phase.late.append(time.monotonic() - due)
        try:
            connection = self._idle.pop() if self._idle else await Connection.open(self._server.url)
            answer = await connection.ask(data)
        except (NoAnswer, OSError) as error:
            self._findings.wrong("no answer", str(error))
            return
        seconds = time.monotonic() - due
        self._idle.append(connection)
        if answer.status == 429:
            self._phase.refused.append(seconds)
            retry_after = answer.header("Retry-After") or ""
            if retry_after.isdigit() and int(retry_after) >= 1:
                self._phase.retry_after[int(retry_after)] += 1
            else:
                self._findings.wrong("a refusal without Retry-After", repr(answer.head))
        elif judged(answer, task, number, self._findings):
            self._phase.latencies.append(seconds)

    async def _health(self) -> None:
        """The kubelet's question, on a connection of its own."""
        async with await Connection.open(self._server.url) as connection:
            while True:
                began = time.monotonic()
                answer = await connection.ask(request("GET", "/health"))
                self._phase.health.append(time.monotonic() - began)
                self._findings.check(answer.status == 200, "/health failed", str(answer.status))
                await asyncio.sleep(HEALTH_SECONDS)


async def _flood(
    server: Server, flooded: Task, lone: Task, rate: float, seconds: float, findings: Findings
) -> dict[str, Any]:
    """One task is asked three times as much as the service can do; another one's requests come one
    by one, and none of them may be refused."""
    rng = random.Random(2)

    def asks() -> Iterator[tuple[bytes, Task, int]]:
        while True:
            number = rng.randrange(len(flooded.inputs))
            yield _request(flooded, number), flooded, number

    latencies: list[float] = []
    queued: list[float] = []

    async def alone() -> None:
        async with await Connection.open(server.url) as connection:
            while True:
                await asyncio.sleep(LONE_SECONDS)
                number = rng.randrange(len(lone.inputs))
                began = time.monotonic()
                answer = await connection.ask(_request(lone, number))
                if judged(answer, lone, number, findings):
                    latencies.append(time.monotonic() - began)
                    queued.append(_timing(answer, "queue"))

    before = await _batches(server)
    asking = asyncio.create_task(alone())
    flood = await _Load(server, asks(), rate, seconds, findings).run()
    await _ended(asking)
    after = await _batches(server)
    batch = (after[0] - before[0]) / max(1.0, after[1] - before[1])
    return {
        "flood": flood.figures(),
        "lone_requests": len(latencies),
        **_quantiles("lone", latencies),
        **_quantiles("lone_queued", queued),
        "mean_batch_ms": round(1000 * batch, 2),
        "lone_queued_p50_in_batches": round(float(np.median(queued)) / batch, 2),
        "lone_queued_max_in_batches": round(max(queued) / batch, 2),
    }


async def _ended(asking: asyncio.Task[None]) -> None:
    """End what asks for ever. Raises what it raised, as NoAnswer."""
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking


def judged(answer: Answer, task: Task, number: int, findings: Findings) -> bool:
    """Whether it is the right answer; else it is a finding."""
    if answer.status != 200:
        kind = "a 5xx" if answer.status >= 500 else "a refusal"
        findings.wrong(kind, f"{task.name}: {answer.status} {answer.body[:300]!r}")
        return False
    found = adapters.answered(json.loads(answer.body))
    right = adapters.agree(task.versions[0].expected[number], found)
    findings.check(right, "a wrong answer", f"{task.name}: {found}")
    return right


def _timing(answer: Answer, name: str) -> float:
    """A stage's seconds, by Server-Timing."""
    stages = dict(
        stage.split(";dur=") for stage in (answer.header("Server-Timing") or "").split(", ")
    )
    return float(stages[name]) / 1000


async def _batches(server: Server) -> tuple[float, float]:
    """Seconds of all batches so far, and how many they were."""
    async with await Connection.open(server.url) as connection:
        answer = await connection.ask(request("GET", "/metrics"))
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }
    name = "adamix_inference_duration_seconds"
    return found[f"{name}_sum"], found[f"{name}_count"]


def _quantiles(name: str, seconds: list[float]) -> dict[str, Any]:
    return {
        f"{name}_p50_ms": _ms(seconds, 50),
        f"{name}_p99_ms": _ms(seconds, 99),
        f"{name}_max_ms": _ms(seconds, 100),
    }


def _ms(seconds: list[float], quantile: float) -> float | None:
    return round(1000 * float(np.percentile(seconds, quantile)), 1) if seconds else None


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What the table shows."""
    found = [("capacity", f"{figures['capacity_per_second']} requests/s")]
    for name, phase in figures["phases"].items():
        found.append(
            (
                name,
                f"{phase['sent']} sent, {phase['accepted']} accepted"
                f" ({phase['accepted_per_second']}/s), {phase['refused_429']} refused;"
                f" p50 {phase['accepted_p50_ms']}, p99 {phase['accepted_p99_ms']} ms; /health p99"
                f" {phase['health_p99_ms']}, at most {phase['health_max_ms']} ms",
            )
        )
    fair = figures["fairness"]
    found.append(
        (
            "a lone task in a flood",
            f"{fair['lone_requests']} requests, p50 {fair['lone_p50_ms']}, p99"
            f" {fair['lone_p99_ms']} ms; waited {fair['lone_queued_p50_in_batches']} batches (p50),"
            f" at most {fair['lone_queued_max_in_batches']}; a batch {fair['mean_batch_ms']} ms",
        )
    )
    found.append(("p99 at 300 % / at 80 %", f"{figures['p99_ratio']} (goal: {MOST_RATIO})"))
    return found
