"""Three replicas on one bucket behind Envoy, of which one after the other is killed while versions
are swapped: is each answer there, and the right version's? Envoy has the configuration that is
shipped, the bucket is SeaweedFS."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.http.server import ROOT, START_SECONDS, surroundings
from benchmarks.reliability import adapters
from benchmarks.reliability.adapters import TINY
from benchmarks.reliability.client import Connection
from benchmarks.reliability.report import Findings
from benchmarks.reliability.soak import Part, Run
from tests.buckets import S3, free_ports, seaweedfs
from tests.envoy import envoy

REPLICAS = 3
VERSIONS = 4  # of each task
CONNECTIONS = 8
REPEAT_SECONDS = 0.1  # until a write is sent again that got 503
# What a write may be answered when it was done already, by one whose answer was lost.
DONE_BEFORE = {201: 200, 204: 404}


def replicas(
    backbone: str, seconds: float, swaps: int, kills: int, findings: Findings, seed: int
) -> dict[str, Any]:
    """So many swaps and kills, both evenly over the time."""
    with adapters.scratch() as name:
        folder = Path(name)
        place, loaded = adapters.backbone_of(backbone, folder)
        tasks = adapters.tasks(loaded, VERSIONS)
        (folder / "bucket").mkdir()
        with seaweedfs(folder / "bucket") as bucket, contextlib.ExitStack() as stack:
            several = [Replica(bucket, place, folder, port) for port in free_ports(REPLICAS)]
            for each in several:
                stack.callback(each.end)
                each.start()
                each.wait()
            with envoy([each.url for each in several], folder) as url:
                part, chance = Part(1), random.Random(seed)
                run = _Through(Balanced(url, several), tasks, part, findings, chance, CONNECTIONS)
                uvloop.run(_killed(run, several, seconds, swaps, kills, chance))
            answered = [each.answered() for each in several]
            for each in several:
                findings.check_log(each)
    return {
        "backbone": "two layers of 32" if backbone == TINY else backbone,
        "replicas": REPLICAS,
        "connections": CONNECTIONS,
        "seconds": round(part.seconds, 1),
        "requests": part.asked,
        "swaps": dict(part.swaps),
        "writes": run.writes,
        "writes_repeated_after_503": run.repeated,
        "kills": sum(each.kills for each in several),
        "seconds_until_ready_again": [
            round(found, 1) for each in several for found in each.ready_again
        ],
        "answered_since_the_last_start": answered,
        "versions_that_answered": len(part.seen),
        "requests_for_a_task_just_deleted": part.absent,
    }


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """For the table."""
    again = figures["seconds_until_ready_again"]
    return [
        ("backbone", figures["backbone"]),
        ("requests", f"{figures['requests']:,} in {figures['seconds']:,} s"),
        ("swaps of an active version", f"{sum(figures['swaps'].values()):,}"),
        (
            "writes",
            f"{figures['writes']:,}; sent again because a kill made it a 503:"
            f" {figures['writes_repeated_after_503']:,}",
        ),
        (
            "`kill -9` of a replica",
            f"{figures['kills']:,}; ready again after {min(again)} – {max(again)} s"
            if again
            else "0",
        ),
        (
            "requests for a task while it was deleted",
            f"{figures['requests_for_a_task_just_deleted']:,} got 404",
        ),
    ]


@dataclass(eq=False)
class Replica:
    """A service on a port of its own, which can be killed and started again there."""

    bucket: S3
    backbone: str
    folder: Path
    port: int
    kills: int = 0
    ready_again: list[float] = field(default_factory=list)
    process: psutil.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        settings = {
            "STORE": self.bucket.url("replicas"),
            "SEED": "none",
            "BACKBONE": self.backbone,
            "CACHE": str(self.folder / f"cache-{self.port}"),
            "LOG_LEVEL": "warning",
            "MAX_WAIT_SECONDS": "100",
            "TRUSTED_PROXIES": "*",
        }
        given = {f"ADAMIX_{name}": value for name, value in settings.items()}
        with self._log.open("a") as log:
            self.process = psutil.Popen(
                [sys.executable, "-m", "service", "--port", str(self.port)],
                env=surroundings(given | self.bucket.environment),
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )

    def wait(self) -> None:
        """Until it is ready. Raises RuntimeError."""
        deadline = time.monotonic() + START_SECONDS
        while not _read(f"{self.url}/ready"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"a replica is not ready; the end of its log: {self.said()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def again(self) -> None:
        """Kill it, start it where it was, wait until it is ready."""
        self.kill()
        self.kills += 1
        began = time.monotonic()
        self.start()
        self.wait()
        self.ready_again.append(time.monotonic() - began)

    def end(self) -> None:
        if self.process is not None and self.process.is_running():
            self.kill()

    def said(self) -> str:
        """Its log so far."""
        return self._log.read_text(errors="replace")

    def answered(self) -> int:
        """Predictions since its last start."""
        lines = _read(f"{self.url}/metrics").decode().splitlines()
        mine = [line for line in lines if line.startswith("adamix_requests_total{")]
        return round(sum(float(line.rpartition(" ")[2]) for line in mine if '"ok"' in line))

    @property
    def _log(self) -> Path:
        return self.folder / f"log-{self.port}"


@dataclass(frozen=True)
class Balanced:
    """What `Run` needs of a server, of all replicas together."""

    url: str
    replicas: list[Replica]

    def processes(self) -> list[psutil.Process]:
        return [each.process for each in self.replicas if each.process is not None]


class _Through(Run):
    """A run through Envoy: a write that a killed replica did not answer gets 503, and its outcome
    is not known. So it is sent again until it is answered."""

    writes = repeated = 0

    async def _write(self, writer: Connection, data: bytes, expected: set[int]) -> None:
        self.writes += 1
        answer = await writer.ask(data)
        while answer.status == 503:
            self.repeated += 1
            expected = expected | {DONE_BEFORE.get(status, status) for status in expected}
            await asyncio.sleep(REPEAT_SECONDS)
            answer = await writer.ask(data)
        self._findings.check(
            answer.status in expected,
            "a write that failed",
            f"{data[:60]!r} was answered {answer.status} {answer.body[:300]!r}",
        )


async def _killed(
    run: Run,
    several: list[Replica],
    seconds: float,
    swaps: int,
    kills: int,
    chance: random.Random,
) -> None:
    """The run, while one replica after the other is killed and started again."""
    running = asyncio.create_task(run.run(seconds, sys.maxsize, swaps))
    began = time.monotonic()
    for number in range(kills):
        due = began + seconds * (number + chance.uniform(0.2, 0.6)) / kills
        await asyncio.wait([running], timeout=max(0.0, due - time.monotonic()))
        if running.done():
            break
        await asyncio.to_thread(chance.choice(several).again)
    await running


def _read(url: str) -> bytes:
    """A GET's answer; nothing where there is none."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        found: bytes = response.read()
        return found
    return b""
