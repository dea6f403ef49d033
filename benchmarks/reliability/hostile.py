"""Adapter files and requests that are damaged or that lie: none may crash anything, none may wait
for ever, and each gets a sentence."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import uvloop

from adapters.backbone import Backbone
from adapters.errors import InvalidAdapter
from adapters.file import parse
from adapters.spec import LoraSite
from benchmarks.http.server import Server, Start, service, started
from benchmarks.reliability import adapters, requests
from benchmarks.reliability.adapters import TINY, Task
from benchmarks.reliability.client import Connection, NoAnswer, exchange, request, upload
from benchmarks.reliability.files import mutated
from benchmarks.reliability.report import Findings
from tests.service.sockets import Answer, parsed
from tests.tiny import random_adapter

WORKERS = (1, 2)
AT_ONCE = 24  # hostile connections
FILE_SECONDS = 2.0  # of processor time: most are refused within a millisecond
MOST_SENTENCE = 600  # characters that a refusal has
MOST_FILE_BYTES = 64 << 20  # by which the parser's process may grow over all files
MOST_SERVER_BYTES = 128 << 20  # by which the server's processes may grow over all requests
CANARY_SECONDS = 0.25  # between two honest requests
MOST_CANARY_SECONDS = 5.0  # an honest request that takes longer was held up
_LENGTH = re.compile(rb"(?i)(\r\ncontent-length: *)\d+")


def hostile(
    files: int, count: int, findings: Findings, seed: int = 0, start: Start = started
) -> dict[str, Any]:
    """So many files through the parser, then so many requests at a server, half of them with two
    front ends. `start` starts the servers."""
    with adapters.scratch() as folder:
        name, loaded = adapters.backbone_of(TINY, Path(folder))
        tasks = adapters.tasks(loaded, 1)
        valid = valid_files(loaded)
        of_files = parse_all(valid, files, findings, seed)
        parts = []
        for workers in WORKERS:
            store = Path(folder) / f"store-{workers}"
            with service(
                store, name, start, workers=workers, log_level="info", log_format="json"
            ) as server:
                part = Part(workers)
                first = seed + (workers - 1) * (count // 2)
                seeds = range(first, first + count // 2)
                uvloop.run(_Attack(server, tasks, valid, part, findings).run(seeds))
                _check_hidden(server, seeds, findings)
                findings.check_log(server)
            parts.append(part)
    return {
        "backbone": "two layers of 32",
        "seed": seed,
        "files": of_files,
        "requests": sum(part.sent for part in parts),
        "parts": [part.figures() for part in parts],
    }


def valid_files(backbone: Backbone) -> list[bytes]:
    """One file of each kind of adapter, with all tensors that it may have."""
    labels = ["negative", "positive"]
    ranks: dict[LoraSite, int] = {"query": 3, "attention_out": 2, "up": 4, "down": 1}
    forms: list[dict[str, Any]] = [{}, {"ranks": ranks, "first_layer": 1}]
    return [random_adapter(backbone, "sst2", labels, dense=True, **form)[2] for form in forms]


def parse_all(valid: Sequence[bytes], files: int, findings: Findings, seed: int) -> dict[str, Any]:
    """Each file is refused with a sentence, or is a valid adapter: finite, and under its own
    sha256."""
    process = psutil.Process()
    chance = random.Random(seed)
    refused = taken = 0
    slowest, before, started = 0.0, process.memory_info().rss, time.monotonic()
    for number in range(files):
        data = mutated(chance.choice(valid), chance)
        began = time.process_time()
        try:
            adapter = parse(data)
        except InvalidAdapter as error:
            refused += 1
            sentence = str(error)
            plain = 0 < len(sentence) <= MOST_SENTENCE and "\n" not in sentence
            findings.check(plain, "a refusal that is no sentence", f"file {number}: {sentence!r}")
        except Exception as error:  # what the parser must never raise
            findings.wrong("an error of the parser", f"file {number}: {error!r}"[:600])
        else:
            taken += 1
            finite = all(torch.isfinite(tensor).all() for tensor in adapter.tensors.values())
            true = adapter.digest == hashlib.sha256(data).hexdigest()
            findings.check(finite and true, "a file that was taken", f"file {number}")
        seconds = time.process_time() - began
        slowest = max(slowest, seconds)
        findings.check(seconds <= FILE_SECONDS, "a slow file", f"file {number}: {seconds:.1f} s")
    grown = process.memory_info().rss - before
    findings.check(
        grown <= MOST_FILE_BYTES, "memory that grows", f"{grown / 2**20:.0f} MiB over all files"
    )
    return {
        "files": files,
        "refused": refused,
        "valid_all_the_same": taken,
        "seconds": round(time.monotonic() - started, 1),
        "slowest_ms": round(1000 * slowest, 1),
        "memory_growth_mib": round(grown / 2**20, 1),
    }


@dataclass
class Part:
    """One server's share."""

    workers: int
    sent: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    full: int = 0  # 503 with Retry-After
    silent: int = 0  # closed without an answer
    reset: int = 0
    canaries: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        slowest = max(self.canaries)
        return {
            "workers": self.workers,
            "requests": self.sent,
            "seconds": round(self.seconds, 1),
            "kinds": dict(self.kinds),
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "answered_503_with_retry_after": self.full,
            "closed_without_an_answer": self.silent,
            "reset": self.reset,
            "honest_requests_between": len(self.canaries),
            "slowest_honest_ms": round(1000 * slowest, 1),
            "memory_mib": [
                round(bytes_ / 2**20, 1) for bytes_ in (self.memory[0], max(self.memory))
            ],
            "memory_growth_mib": round((max(self.memory) - self.memory[0]) / 2**20, 1),
        }


class _Attack:
    """Hostile connections side by side, and an honest client between them."""

    def __init__(
        self,
        server: Server,
        tasks: list[Task],
        valid: Sequence[bytes],
        part: Part,
        findings: Findings,
    ) -> None:
        self._server, self._tasks, self._part, self._findings = server, tasks, part, findings
        self._kinds = requests.kinds(valid)
        self._over = False

    async def run(self, seeds: range) -> None:
        connection = await Connection.open(self._server.url)
        for task in self._tasks:
            answer = await connection.ask(upload(task.versions[0].data))
            assert answer.status == 201, answer.body
        await self._honest(connection)
        self._measure()
        started = time.monotonic()
        numbers = iter(seeds)
        canary = asyncio.create_task(self._canary(connection))
        await asyncio.gather(*(self._send(numbers) for _ in range(AT_ONCE)))
        self._over = True
        await canary
        self._part.seconds = time.monotonic() - started
        self._measure()
        connection.close()

    async def _send(self, numbers: Any) -> None:
        """One hostile stream after the other, each on a connection of its own."""
        for seed in numbers:
            kind = _kind(seed)
            data = self._kinds[kind](seed)
            self._part.sent += 1
            self._part.kinds[kind] += 1
            where = f"{kind} {seed}"
            try:
                answered = await exchange(self._server.url, data)
                head = data.startswith(b"HEAD ")
                judge(where, answered, self._part, self._findings, head=head)
            except NoAnswer as error:
                self._findings.wrong("a hang", f"{where}: {error}")
            except ConnectionResetError:
                self._part.reset += 1
            except OSError as error:
                self._findings.wrong("a server that is gone", f"{where}: {error}")
                return

    async def _canary(self, connection: Connection) -> None:
        """Honest requests all the while, and the server's memory."""
        while not self._over:
            await self._honest(connection)
            self._measure()
            await asyncio.sleep(CANARY_SECONDS)

    async def _honest(self, connection: Connection) -> None:
        """A task's first version, pinned, is asked and answers what it must."""
        task = self._tasks[len(self._part.canaries) % len(self._tasks)]
        version = task.versions[0]
        path = f"/predict?task={task.name}&version={version.short}"
        began = time.monotonic()
        answer = await connection.ask(request("POST", path, adapters.body(task.inputs[0])))
        seconds = time.monotonic() - began
        self._part.canaries.append(seconds)
        right = answer.status == 200 and adapters.agree(
            version.expected[0], adapters.answered(json.loads(answer.body))
        )
        self._findings.check(right, "a wrong answer", f"{answer.status} {answer.body[:300]!r}")
        held = f"{seconds:.1f} s for an honest request"
        self._findings.check(seconds <= MOST_CANARY_SECONDS, "an honest client held up", held)

    def _measure(self) -> None:
        held = sum(process.memory_info().rss for process in self._server.processes())
        self._part.memory.append(held)
        grown = held - self._part.memory[0]
        if grown > MOST_SERVER_BYTES:
            self._findings.wrong("memory that grows", f"{grown / 2**20:.0f} MiB over the requests")


def judge(where: str, data: bytes, part: Part, findings: Findings, *, head: bool = False) -> None:
    """Whole answers, none a 5xx but a full server's, errors in our form; `head`: the request is a
    HEAD, whose answers announce a body and have none, unless they refuse it as no HTTP."""
    headless = head and data.endswith(b"\r\n\r\n")
    try:
        answers = parsed(_LENGTH.sub(rb"\g<1>0", data) if headless else data)
    except (AssertionError, ValueError) as error:
        findings.wrong("an answer that is none", f"{where}: {str(error)[:300]}")
        return
    if not answers:
        part.silent += 1
    for answer in answers:
        part.statuses[answer.status] += 1
        told = f"{where}: {answer.status} {answer.body[:300]!r}"
        if answer.status == 503 and "retry-after" in answer.headers:
            part.full += 1
        elif answer.status >= 500:
            findings.wrong("a 5xx", told)
        elif answer.status >= 400 and not headless and not _sentence(answer):
            findings.wrong("an error that is no sentence", told)


def _kind(seed: int) -> str:
    """Kinds take turns."""
    return requests.KINDS[seed % len(requests.KINDS)]


def _sentence(answer: Answer) -> bool:
    try:
        error = json.loads(answer.body)
    except ValueError:
        return False
    return set(error) == {"error", "error_type"} and 0 < len(error["error"]) <= MOST_SENTENCE


def _check_hidden(server: Server, seeds: range, findings: Findings) -> None:
    """No request that was hidden in another one's body was run, unless another parser finds it
    there too."""
    framings = (requests.framing(seed) for seed in seeds if _kind(seed) == "framing")
    there = {path for data in framings for path in requests.by_h11(data)}
    lines = (json.loads(line) for line in server.said().splitlines() if line.startswith("{"))
    run = {line.get("path", "") for line in lines}
    for path in sorted(path for path in run - there if path.startswith("/hidden")):
        findings.wrong("a smuggled request", f"{path} was run")


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What the table shows."""
    files = figures["files"]
    found = [
        (
            "files",
            f"{files['files']:,}: {files['refused']:,} refused, {files['valid_all_the_same']:,}"
            f" valid all the same, slowest {files['slowest_ms']} ms,"
            f" {files['memory_growth_mib']:+} MiB",
        )
    ]
    for part in figures["parts"]:
        found.append(
            (
                f"requests with {part['workers']} workers",
                f"{part['requests']:,}: {part['statuses']}, 503 of a full server"
                f" {part['answered_503_with_retry_after']}, slowest honest request"
                f" {part['slowest_honest_ms']} ms, {part['memory_growth_mib']:+} MiB",
            )
        )
    return found
