"""A new replica on a bucket with ten thousand tasks: how long until it is ready.

    python -m benchmarks.http.bucket_start

A SeaweedFS holds the log of so many uploads. `python -m service` starts on it with its default
settings, each time with an empty folder for copies, and is asked for one of the tasks. No start
reads the files of tasks, so only that one's is there.

- one task: what a start takes by itself.
- snapshot: the snapshot is of the last change but one thousand, the most that follows one.
- no snapshot: every change is read by itself.

All are started in turns. Ready is when /ready answers, from the process's start; the first answer
is of a prediction then. Processor time is the replica's own until it is ready: what else runs on
the machine lengthens a start, but hardly this.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.bucket import blobs
from adapters.bucket.changes import Change, State, encoded
from adapters.bucket.log import LATEST, SNAPSHOT_EVERY, key_of
from adapters.bucket.objects import Objects, connect
from benchmarks import stores
from benchmarks.contest import turns
from benchmarks.http import load
from benchmarks.http.load import Call
from benchmarks.http.server import ROOT, service
from tests.buckets import seaweedfs
from training.hardware import hardware

WRITERS = 8  # of the objects, before anything is measured
TIMEOUT = 60.0  # seconds for one of them


def main(
    tasks: Annotated[int, typer.Option(help="In the bucket.")] = 10_000,
    repeats: Annotated[int, typer.Option(help="Starts of each kind.")] = 3,
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")
    ] = backbones.EMBEDDED,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/bucket_start.json"
    ),
) -> None:
    """Measure starts on this machine; print a table, write JSON."""
    loaded = backbones.load(backbone)
    (ROOT / "var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "var") as name:
        folder = Path(name)
        (folder / "seaweedfs").mkdir()
        with seaweedfs(folder / "seaweedfs") as server:
            os.environ.update(server.environment)

            def filled(name: str, tasks: int, snapshot: int | None) -> Start:
                url = server.url(name)
                fill(connect(url, TIMEOUT), loaded, tasks, snapshot)
                return Start(name, url, tasks, snapshot)

            starts = [
                filled("one-task", 1, None),
                filled("snapshot", tasks, max(0, tasks + 1 - (SNAPSHOT_EVERY - 1))),
                filled("no-snapshot", tasks, None),
            ]
            for repeat in range(repeats):
                for start in turns(starts, repeat):
                    start.measure(folder / f"cache-{start.name}-{repeat}", backbone)
    result = {
        "command": " ".join(["python", "-m", "benchmarks.http.bucket_start", *sys.argv[1:]]),
        "tasks": tasks,
        "starts": {start.name: start.figures() for start in starts},
        "hardware": hardware(torch.device("cpu")),
        "versions": {"torch": torch.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("start", "ready, s", "processor, s", "first answer, ms")
    for start in starts:
        medians = (statistics.median(start.ready), statistics.median(start.processor))
        table.add_row(start.name, *(f"{seconds:.2f}" for seconds in medians), f"{start.first:.0f}")
    Console().print(table)
    Console().print(f"written to {out}")


@dataclass
class Start:
    """One prefix of the bucket, and what its starts took."""

    name: str
    url: str
    tasks: int
    snapshot: int | None
    ready: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)

    def measure(self, cache: Path, backbone: str) -> None:
        """Start a replica and ask it for the last task."""
        if self.snapshot is None:  # a start leaves one
            objects = connect(self.url, TIMEOUT)
            for key in [found.key for found in objects.under("snapshots")]:
                objects.delete(key)
        with service(self.url, backbone, cache=cache) as server:
            self.ready.append(server.seconds)
            used = server.process.cpu_times()
            self.processor.append(used.user + used.system)
            call = Call(f"/predict?task={task(self.tasks - 1)}", b'{"inputs": "good"}')
            began = time.perf_counter()
            load.answers(server.url, [call])
            self.answered.append(time.perf_counter() - began)

    @property
    def first(self) -> float:
        """Milliseconds of the first answer."""
        return 1000 * statistics.median(self.answered)

    def figures(self) -> dict[str, object]:
        """For the JSON of results."""
        return {
            "tasks": self.tasks,
            "snapshot": self.snapshot,
            "ready_seconds": [round(seconds, 2) for seconds in sorted(self.ready)],
            "ready_seconds_median": round(statistics.median(self.ready), 2),
            "processor_seconds_median": round(statistics.median(self.processor), 2),
            "first_answer_ms_median": round(self.first, 1),
        }


def task(number: int) -> str:
    """Its name."""
    return f"task-{number:05d}"


def fill(objects: Objects, backbone: Backbone, tasks: int, snapshot: int | None) -> None:
    """Write the log of a store of so many tasks, the last one's file, and the snapshot of a
    generation."""
    data = stores.random_file(backbone, task(tasks - 1), 0, "cls")
    digest = hashlib.sha256(data).hexdigest()
    objects.write(blobs.key_of(digest), data)
    name, fingerprint = backbone.reference.name, backbone.reference.fingerprint
    changes = [Change(change="found", task=name, digest=fingerprint)]
    for number in range(tasks):
        other = hashlib.sha256(str(number).encode()).hexdigest()
        own = digest if number == tasks - 1 else other
        changes.append(Change(change="upload", task=task(number), digest=own, bytes=len(data)))
    signed = [change.signed("benchmark") for change in changes]
    keys = [key_of(i + 1) for i in range(len(signed))]
    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(objects.create, keys, map(encoded, signed)))
    if snapshot is not None:
        state = State()
        for change in signed[:snapshot]:
            state.apply(change)
        objects.write(f"snapshots/{snapshot:020d}.json", state.packed())
        objects.write(LATEST, str(snapshot).encode())


if __name__ == "__main__":
    typer.run(main)
