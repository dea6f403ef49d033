"""A disk that is full, read-only, gone, or returns wrong bytes: reads go on where they can, writes
are refused, no answer is wrong, and nothing that was acknowledged is lost."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import httpx2

from adapters.entry import ACTIVE
from adapters.store import Store
from benchmarks.http.server import ROOT, Server, surroundings
from benchmarks.reliability import adapters
from benchmarks.reliability.adapters import TINY, Task, Version
from benchmarks.reliability.forks import Forks, forks
from benchmarks.reliability.report import Findings

DISK_BYTES = 512 << 10
TASKS = ("sst2", "mrpc", "topics")
VERSIONS = 3
START_SECONDS = 60
# What a broken disk may be answered with: 503 alone, and by which errors.
UNAVAILABLE = ("StoreError", "DamagedAdapter")


class Scenario(Enum):
    """What is wrong with the disk."""

    FULL = "full"
    READ_ONLY = "read-only"
    LYING = "lying"
    REMOVED = "removed"
    SHARED = "shared"


@dataclass
class Place:
    """What each scenario has: a folder for its store, what starts servers, the backbone, tasks, and
    where faults go."""

    folder: Path
    forks: Forks
    backbone: str
    tasks: list[Task]
    findings: Findings
    files: int
    chance: random.Random

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def fill(self, versions: int = 1) -> None:
        """Make the store, with so many versions of each task; the first one is active."""
        with Store(self.store) as store:
            for task in self.tasks:
                for version in reversed(task.versions[:versions]):
                    store.put(version.adapter)


class Client:
    """Asks a server, counts its answers, and judges each."""

    def __init__(self, server: Server, place: Place) -> None:
        self._http = httpx2.Client(base_url=server.url, timeout=60)
        self._findings = place.findings
        self.answers: Counter[str] = Counter()

    def predict(self, task: Task, *, broken: bool = False) -> int:
        """The version in the header answers right; 503 is an answer where the disk is `broken`."""
        answer = self._http.post(f"/predict?task={task.name}", json={"inputs": task.inputs[0]})
        self._judge(answer, "a prediction", (200,), broken)
        if answer.status_code == 200:
            named = answer.headers["X-Adapter-Version"].partition("@")[2]
            fitting = [version for version in task.versions if version.short == named]
            right = fitting and adapters.agree(
                fitting[0].expected[0], adapters.answered(answer.json())
            )
            self._findings.check(right, "a wrong answer", f"{task.name}@{named}: {answer.text}")
        return answer.status_code

    def upload(self, version: Version, *, broken: bool = False) -> int:
        answer = self._http.post("/adapters", files={"file": version.data})
        return self._judge(answer, "an upload", (200, 201), broken)

    def activate(self, task: Task, version: Version, *, broken: bool = False) -> int:
        path = f"/adapters/{task.name}/activate"
        answer = self._http.post(path, json={"version": version.digest})
        return self._judge(answer, "an activation", (200,), broken)

    def delete(self, task: Task, *, broken: bool = False) -> int:
        answer = self._http.delete(f"/adapters/{task.name}")
        return self._judge(answer, "a deletion", (204,), broken)

    def download(self, task: Task, version: Version, *, broken: bool = False) -> int:
        """To the bit, or not at all."""
        path = f"/adapters/{task.name}/versions/{version.digest}/file"
        answer = self._http.get(path)
        self._judge(answer, "a download", (200,), broken)
        whole = answer.status_code != 200 or answer.content == version.data
        self._findings.check(whole, "a file that is not whole", path)
        return answer.status_code

    def read_on(self) -> None:
        """What needs no disk answers 200 whatever has become of that."""
        for path in ("/health", "/ready", "/metrics", "/adapters", "/storage"):
            self._judge(self._http.get(path), path, (200,), False)

    def _judge(
        self, answer: httpx2.Response, what: str, expected: tuple[int, ...], broken: bool
    ) -> int:
        status = answer.status_code
        self.answers[str(status)] += 1
        refused = broken and status == 503 and answer.json()["error_type"] in UNAVAILABLE
        sentence = f"{what} was answered {status} {answer.text[:300]}"
        self._findings.check(status in expected or refused, "a wrong status", sentence)
        return status


def disk(files: int, findings: Findings, seed: int, chosen: Sequence[Scenario]) -> dict[str, Any]:
    """The `chosen` scenarios, each on a store of its own; `files` are damaged in
    the scenario of wrong bytes."""
    found: dict[str, Any] = {}
    with adapters.scratch() as folder:
        name, loaded = adapters.backbone_of(TINY, Path(folder))
        tasks = adapters.tasks(loaded, VERSIONS, TASKS)
        for scenario in chosen:
            scratch = Path(folder) / scenario.value
            scratch.mkdir()
            run = SCENARIOS[scenario]
            place = Place(scratch, forks(), name, tasks, findings, files, random.Random(seed))
            found[(run.__doc__ or "").partition(":")[0]] = run(place)
    return {"backbone": "two layers of 32", "scenarios": found}


def full(place: Place) -> dict[str, Any]:
    """a full disk: uploads are refused with 503, all else goes on; a deletion makes room again."""
    first, other, last = place.tasks
    with _small(place) as fill:
        place.fill()
        with _served(place) as (server, client):
            how = fill(server)
            for version in first.versions[1:]:
                refused = client.upload(version, broken=True)
                place.findings.check(refused == 503, "a full disk that took a file", str(refused))
            for task in place.tasks:
                client.predict(task)
                client.download(task, task.versions[0])
            client.read_on()
            client.delete(last)  # a rename: it takes no room
            fill(server, room=True)
            for version in first.versions[1:]:
                client.upload(version)
            client.predict(first)
            answers = dict(client.answers)
        with _served(place) as (_, client):
            for version in first.versions:
                client.download(first, version)
            place.findings.check(
                client.predict(first) == client.predict(other) == 200,
                "a task that is lost",
                "after the disk was full",
            )
    return {"how": how, "answers": answers}


def read_only(place: Place) -> dict[str, Any]:
    """a disk that becomes read-only: writes are refused with 503, reads go on, also after a start
    on it."""
    first, _, last = place.tasks
    place.fill(2)
    with _served(place) as (_, client):
        with _unwritable(place) as how:
            if not how:
                return {"how": "not tried: nothing here can keep root from writing"}
            _refused(client, place, first, last)
            for task in place.tasks:
                client.predict(task)
                client.download(task, task.versions[1])
            client.read_on()
            with _served(place) as (_, reader):
                _refused(reader, place, first, last)
                for task in place.tasks:
                    reader.predict(task)
        client.activate(first, first.versions[1])
        client.predict(first)
        answers = client.answers + reader.answers
    return {"how": how, "answers": dict(answers)}


def lying(place: Place) -> dict[str, Any]:
    """a disk that returns wrong bytes: a file that was cut, or has other bits, is never served;
    others are, and the next upload mends it."""
    first, other, _ = place.tasks
    place.fill(2)
    damages: Counter[str] = Counter()
    with _served(place, host_cache_bytes=0) as (_, client):
        for number in range(place.files):
            task = place.tasks[number % len(place.tasks)]
            version = task.versions[place.chance.randrange(2)]
            path = place.store / task.name / f"{version.digest}.safetensors"
            damages[_damage(path, place.chance)] += 1
            told = client.download(task, version, broken=True)
            place.findings.check(told == 503, "a damaged file that was served", str(path.name))
            refused = client.activate(task, version, broken=True)
            place.findings.check(refused == 503, "a damaged file that was activated", path.name)
            client.predict(task, broken=True)
            client.predict(place.tasks[(number + 1) % len(place.tasks)])
            client.upload(version)
            client.download(task, version)
            client.predict(task)
        answers = client.answers
    # and where files were damaged while the service was down
    for task in (first, other):
        active = task.versions[0]
        _damage(place.store / task.name / f"{active.digest}.safetensors", place.chance)
    (place.store / other.name / ACTIVE).write_bytes(b"\0" * 64)
    with _served(place) as (_, client):
        for task in place.tasks:
            client.predict(task, broken=True)
            client.upload(task.versions[0])
            client.predict(task)
        answers += client.answers
    return {"files": place.files, "damages": dict(damages), "answers": dict(answers)}


def removed(place: Place) -> dict[str, Any]:
    """a store that is removed under the process: what is in memory is served, all else is refused
    with 503, what is put back is served again, and an upload mends a task whose folder is gone."""
    first, other, _ = place.tasks
    place.fill(2)
    aside = place.folder / "aside"
    with _served(place) as (_, client):
        client.predict(first)
        place.store.rename(aside)
        place.findings.check(
            client.predict(first) == 200, "a task in memory that is not served", first.name
        )
        client.predict(other, broken=True)
        client.download(first, first.versions[1], broken=True)
        refused = client.upload(first.versions[2], broken=True)
        place.findings.check(refused == 503, "a write to nowhere that was taken", str(refused))
        client.read_on()
        aside.rename(place.store)
        shutil.rmtree(place.store / other.name)
        client.predict(other, broken=True)
        for task in place.tasks:
            client.upload(task.versions[0])
            client.predict(task)
        answers = client.answers
    with _served(place) as (_, client):
        for task in place.tasks:
            client.predict(task)
        answers += client.answers
    return {"answers": dict(answers)}


def two_services(place: Place) -> dict[str, Any]:
    """two services on one store: the second one does not start, with a sentence; a read-only one
    serves; after the first one was killed the next one starts."""
    first, *_ = place.tasks
    place.fill(2)
    with _served(place) as (server, client):
        settings = {"STORE": place.store, "PORT": 0, "BACKBONE": place.backbone}
        done = subprocess.run(
            [sys.executable, "-m", "service"],
            env=surroundings({f"ADAMIX_{name}": str(value) for name, value in settings.items()}),
            capture_output=True, text=True, cwd=ROOT, timeout=START_SECONDS, check=False,
        )  # fmt: skip
        told = done.returncode == 2 and done.stderr.startswith("error: ")
        place.findings.check(
            told and done.stderr.count("\n") == 1, "a second writer", done.stderr[-300:]
        )
        with _served(place, read_only=True) as (_, reader):
            reader.predict(first)
            refused = reader.activate(first, first.versions[1], broken=True)
            place.findings.check(refused == 503, "a reader that wrote", str(refused))
        client.activate(first, first.versions[1])
        answers = client.answers + reader.answers
        server.process.kill()
    with _served(place) as (_, client):
        client.predict(first)
        client.upload(first.versions[2])
        answers += client.answers
    said = done.stderr.strip().replace(str(place.store), "…")
    return {"second_writer": said, "answers": dict(answers)}


SCENARIOS: dict[Scenario, Callable[[Place], dict[str, Any]]] = {
    Scenario.FULL: full,
    Scenario.READ_ONLY: read_only,
    Scenario.LYING: lying,
    Scenario.REMOVED: removed,
    Scenario.SHARED: two_services,
}


@contextlib.contextmanager
def _served(place: Place, **settings: Any) -> Iterator[tuple[Server, Client]]:
    with place.forks.service(place.store, place.backbone, **settings) as server:
        yield server, Client(server, place)
        place.findings.check_log(server)


Fill = Callable[..., str]


@contextlib.contextmanager
def _small(place: Place) -> Iterator[Fill]:
    """A store's folder that can be filled: a tmpfs where mounting is possible. Else the service
    may not write a file with any bytes (RLIMIT_FSIZE), which fails with EFBIG and not ENOSPC."""
    place.store.mkdir()
    if not _done("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place.store)):
        yield _by_limit
        return

    def fill(_: Server, *, room: bool = False) -> str:
        ballast = place.store / "ballast"
        if room:
            ballast.unlink()
            return ""
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))
        return f"a tmpfs of {DISK_BYTES >> 10} KiB, filled"

    try:
        yield fill
    finally:
        subprocess.run(["umount", place.store], check=True)


def _by_limit(server: Server, *, room: bool = False) -> str:
    most = resource.RLIM_INFINITY if room else 0
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    return "RLIMIT_FSIZE of 0 bytes"


@contextlib.contextmanager
def _unwritable(place: Place) -> Iterator[str]:
    """The store's folder mounted over itself, to be read only; where that is impossible, folders
    without leave to write, which stop everybody but root: then nothing."""
    store = str(place.store)
    if _done("mount", "--bind", store, store):
        try:
            read_only = _done("mount", "-o", "remount,ro,bind", store)
            yield "mounted read-only" if read_only else ""
        finally:
            subprocess.run(["umount", store], check=True)
        return
    if os.geteuid() == 0:
        yield ""
        return
    folders = [place.store, *(path for path in place.store.iterdir() if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield "folders without leave to write"
    finally:
        for folder in folders:
            folder.chmod(0o755)


def _done(*command: str) -> bool:
    """Whether a command is there and succeeds."""
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def _refused(client: Client, place: Place, first: Task, last: Task) -> None:
    """Each kind of write is a 503."""
    statuses = [
        client.upload(first.versions[2], broken=True),
        client.activate(first, first.versions[1], broken=True),
        client.delete(last, broken=True),
    ]
    place.findings.check(
        statuses == [503] * 3, "a write to a read-only disk that was taken", str(statuses)
    )


def _damage(path: Path, chance: random.Random) -> str:
    """Cut a file, or change bits of it, in place; what was done."""
    data = bytearray(path.read_bytes())
    how = chance.choice(("cut", "empty", "a bit", "some bytes", "zeros at the end"))
    if how == "cut":
        del data[chance.randrange(1, len(data)) :]
    elif how == "empty":
        data.clear()
    elif how == "a bit":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif how == "some bytes":
        at = chance.randrange(len(data) - 16)
        data[at : at + 16] = bytes(byte ^ 0x5A for byte in data[at : at + 16])
    else:
        data[-512:] = bytes(512)
    path.write_bytes(data)
    return how


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What the table shows."""
    return [
        (name, ", ".join(f"{key}: {value}" for key, value in found.items()))
        for name, found in figures["scenarios"].items()
    ]
