"""`kill -9` at random moments of writes: is all there that was acknowledged, to the bit? Is nothing
half-written?"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import uvloop

from adapters.disk import LEFTOVER
from adapters.entry import DELETED, SUFFIX
from adapters.store import Store
from benchmarks.http.server import Server
from benchmarks.reliability import adapters
from benchmarks.reliability.adapters import TINY, Task
from benchmarks.reliability.client import Answer, Connection, NoAnswer, request, upload
from benchmarks.reliability.forks import forks
from benchmarks.reliability.report import Findings

VERSIONS = 5
TASKS = ("sst2-1", "mrpc-2", "topics-3", "stsb-4")  # each has one writer
MOST_WRITES, MOST_SECONDS = 24, 10.0  # before the kill, whichever comes first
MOST_DELAY = 0.03  # seconds from then on, which a write takes
WITH_FRONT_ENDS = 4  # each fourth service has two
GONE_SECONDS = 60  # within which front ends end whose engine process was killed


@dataclass(frozen=True)
class State:
    """What a task is: the digests of its versions, and the active one."""

    versions: frozenset[str] = frozenset()
    active: str | None = None


@dataclass(frozen=True)
class Write:
    """One write: its kind, its bytes on the wire, and what the task is after it. `between` is what
    it may be if the write is interrupted: an upload is stored first and active then."""

    kind: str
    data: bytes
    after: State
    between: State | None = None


@dataclass(eq=False)
class Writer:
    """The writes to one task. `state` is what was acknowledged; `pending` the write that was under
    way when the process was killed."""

    task: Task
    state: State = State()
    pending: Write | None = None

    def allowed(self) -> set[State]:
        if self.pending is None:
            return {self.state}
        return {self.state, self.pending.after, self.pending.between or self.state}

    def next(self, chance: random.Random) -> Write:
        """A write that the task allows now, drawn by chance."""
        state, name = self.state, self.task.name
        by_digest = {version.digest: version for version in self.task.versions}
        idle = sorted(state.versions - {state.active})
        possible: list[Callable[[], Write]] = [lambda: self._upload(chance)] * 3
        if idle:
            version = by_digest[chance.choice(idle)]
            rest = state.versions - {version.digest}
            body = json.dumps({"version": version.digest}).encode()
            activation = request("POST", f"/adapters/{name}/activate", body)
            possible += [
                lambda: Write("activation", activation, State(state.versions, version.digest))
            ] * 3
            deletion = request("DELETE", f"/adapters/{name}/versions/{version.digest}")
            after = State(rest, state.active if rest else None)
            possible += [lambda: Write("deletion of a version", deletion, after)] * 2
        if state.versions:
            gone = request("DELETE", f"/adapters/{name}")
            possible.append(lambda: Write("deletion of a task", gone, State()))
        return chance.choice(possible)()

    def _upload(self, chance: random.Random) -> Write:
        version = chance.choice(self.task.versions)
        activate = chance.random() < 0.7
        active = version.digest if activate else self.state.active
        stored = self.state.versions | {version.digest}
        data = upload(version.data, activate=activate)
        return Write("upload", data, State(stored, active), State(stored, self.state.active))


@dataclass
class Counts:
    acknowledged: Counter[str] = field(default_factory=Counter)
    interrupted: Counter[str] = field(default_factory=Counter)
    done: int = 0  # of the interrupted ones: found done
    between: int = 0  # stored, and not yet active
    files: int = 0  # compared to the bit, on disk and as downloads
    predictions: int = 0


def crash(kills: int, findings: Findings, seed: int = 0) -> dict[str, Any]:
    """Kill the service so often, at times with two front ends; after each kill look at the disk,
    and at what the next service answers."""
    chance, counts = random.Random(seed), Counts()
    with adapters.scratch() as folder:
        name, loaded = adapters.backbone_of(TINY, Path(folder))
        writers = [Writer(task) for task in adapters.tasks(loaded, VERSIONS, TASKS)]
        store = Path(folder) / "store"
        for kill in range(kills + 1):
            workers = 2 if kill % WITH_FRONT_ENDS == 1 else 1
            with forks().service(store, name, workers=workers) as server:
                uvloop.run(_look(server, store, writers, counts, findings))
                if kill < kills:
                    uvloop.run(_write(server, writers, chance, counts, findings))
                findings.check_log(server)
            look_at_disk(store, writers, counts, findings)
    return {
        "backbone": "two layers of 32",
        "kills": kills,
        "acknowledged": dict(counts.acknowledged),
        "acknowledged_in_all": counts.acknowledged.total(),
        "interrupted": dict(counts.interrupted),
        "interrupted_in_all": counts.interrupted.total(),
        "interrupted_and_done": counts.done,
        "interrupted_and_stored_but_not_active": counts.between,
        "files_compared": counts.files,
        "predictions_compared": counts.predictions,
    }


async def _write(
    server: Server,
    writers: list[Writer],
    chance: random.Random,
    counts: Counts,
    findings: Findings,
) -> None:
    """All write without a pause until the process is killed, at a moment drawn by chance."""
    processes = server.processes()
    writing = [
        asyncio.create_task(_write_on(server.url, writer, chance, counts, findings))
        for writer in writers
    ]
    enough = counts.acknowledged.total() + chance.randrange(MOST_WRITES)
    latest = time.monotonic() + MOST_SECONDS
    while counts.acknowledged.total() < enough and time.monotonic() < latest:
        await asyncio.sleep(0.001)
    await asyncio.sleep(chance.uniform(0, MOST_DELAY))
    server.process.kill()
    await asyncio.gather(*writing)
    # front ends end by themselves: else they would hold the port, and answer for a dead engine
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes[1:], GONE_SECONDS)
    findings.check(not alive, "a front end that stays", f"{len(alive)} of them run on")
    for process in alive:
        process.kill()


async def _write_on(
    url: str, writer: Writer, chance: random.Random, counts: Counts, findings: Findings
) -> None:
    try:
        connection = await Connection.open(url)
    except OSError:  # it was killed already
        return
    while True:
        write = writer.next(chance)
        writer.pending = write
        try:
            answer = await connection.ask(write.data)
        except NoAnswer:
            break
        if answer.status == 503 and _outcome_unknown(answer):
            break
        if answer.status not in (200, 201, 204):
            sentence = f"{write.kind} was answered {answer.status} {answer.body[:300]!r}"
            findings.wrong("a write that failed", sentence)
            break
        writer.state, writer.pending = write.after, None
        counts.acknowledged[write.kind] += 1
    connection.close()
    if writer.pending is not None:
        counts.interrupted[writer.pending.kind] += 1


def _outcome_unknown(answer: Answer) -> bool:
    """What a front end says whose engine process was killed."""
    return json.loads(answer.body)["error_type"] in ("OutcomeUnknown", "Stopping")


def look_at_disk(store: Path, writers: list[Writer], counts: Counts, findings: Findings) -> None:
    """What lies there before another process mends anything: each file whole, each task as it was
    before the write that was interrupted or after it."""
    files = {version.digest: version.data for w in writers for version in w.task.versions}
    for path in sorted(store.glob(f"*/*{SUFFIX}")):
        if path.name.startswith(LEFTOVER):
            continue
        data, digest = path.read_bytes(), path.name.removesuffix(SUFFIX)
        counts.files += 1
        whole = data == files.get(digest) and sha256(data).hexdigest() == digest
        findings.check(whole, "a file that is not whole", f"{path.name} has {len(data)} bytes")
    opened = Store(store, read_only=True)
    findings.check(not opened.problems, "a fault of the store", " ".join(opened.problems))
    found = {
        entry.task: State(frozenset(v.digest for v in entry.versions), entry.active)
        for entry in opened.entries()
    }
    for writer in writers:
        state = found.get(writer.task.name, State())
        _check_state(writer, state, "on disk", findings)


async def _look(
    server: Server, store: Path, writers: list[Writer], counts: Counts, findings: Findings
) -> None:
    """What the next service answers: the same tasks and versions, each file to the bit, the active
    version's predictions; and nothing that the last one left over lies in the store."""
    left = [*store.glob(f"*/{LEFTOVER}*"), *store.glob(f"*/{DELETED}")]
    findings.check(not left, "a leftover", f"{[path.name for path in left]}")
    connection = await Connection.open(server.url)
    for writer in writers:
        name = writer.task.name
        answer = await connection.ask(request("GET", f"/adapters/{name}"))
        listed = json.loads(answer.body)["versions"] if answer.status == 200 else []
        digests = {version.short: version.digest for version in writer.task.versions}
        state = State(
            frozenset(digests.get(v["version"], v["version"]) for v in listed),
            next((digests.get(v["version"]) for v in listed if v["active"]), None),
        )
        _check_state(writer, state, "as it is answered", findings)
        if writer.pending is not None:
            counts.done += state == writer.pending.after
            counts.between += state not in (writer.state, writer.pending.after)
        writer.state, writer.pending = state, None
        for digest in state.versions:
            path = f"/adapters/{name}/versions/{digest}/file"
            file = await connection.ask(request("GET", path))
            (version,) = (v for v in writer.task.versions if v.digest == digest)
            counts.files += 1
            whole = file.status == 200 and file.body == version.data
            findings.check(whole, "a file that is not whole", f"{path} answered {file.status}")
        if state.active is not None:
            await _predict(connection, writer, state.active, findings)
            counts.predictions += 1
    connection.close()


async def _predict(connection: Connection, writer: Writer, digest: str, findings: Findings) -> None:
    (version,) = (v for v in writer.task.versions if v.digest == digest)
    task = writer.task
    answer = await connection.ask(
        request("POST", f"/predict?task={task.name}", adapters.body(task.inputs[0]))
    )
    right = (
        answer.status == 200
        and answer.header("X-Adapter-Version") == f"{task.name}@{version.short}"
        and adapters.agree(version.expected[0], adapters.answered(json.loads(answer.body)))
    )
    findings.check(right, "a wrong answer", f"{answer.status} {answer.body[:300]!r}")


def _check_state(writer: Writer, state: State, where: str, findings: Findings) -> None:
    if state in writer.allowed():
        return
    lost = state.versions < writer.state.versions or state == State()
    kind = "an acknowledged write that is lost" if lost else "a state that nobody asked for"
    write = writer.pending.kind if writer.pending else "no write"
    expected = " or ".join(map(_shown, writer.allowed()))
    findings.wrong(
        kind,
        f"{writer.task.name} {where} after {write}: {_shown(state)}; expected {expected}",
    )


def _shown(state: State) -> str:
    active = state.active[:6] if state.active else None
    return f"{sorted(digest[:6] for digest in state.versions)}, active {active}"


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What the table shows."""
    return [
        ("kill -9", f"{figures['kills']}"),
        ("writes acknowledged", f"{figures['acknowledged_in_all']:,} {figures['acknowledged']}"),
        ("writes interrupted", f"{figures['interrupted_in_all']:,} {figures['interrupted']}"),
        ("of them done", f"{figures['interrupted_and_done']:,}"),
        ("of them stored only", f"{figures['interrupted_and_stored_but_not_active']:,}"),
        ("files compared to the bit", f"{figures['files_compared']:,}"),
        ("predictions compared", f"{figures['predictions_compared']:,}"),
    ]
