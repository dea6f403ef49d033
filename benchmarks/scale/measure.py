"""Measure what the simulation reads: batches on the real engine; files on their way from a real
bucket to the disk, to memory, to a slot.

Batches and reads from the disk are counted in processor time of one thread: it hardly matters what
else runs. What waits for the bucket is counted by the clock, and its tenth percentile is taken:
what it takes while the processor is free.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.bucket import blobs
from adapters.bucket.changes import Change, encoded
from adapters.bucket.log import key_of
from adapters.bucket.objects import Objects, connect
from adapters.bucket.store import BucketStore
from adapters.file import Adapter, parse
from adapters.text import encode
from benchmarks.contest import read_rows
from benchmarks.http.server import ROOT
from benchmarks.scale.costs import Costs
from benchmarks.stores import random_file
from service.engine.engine import Engine
from service.engine.row import Row
from service.engine.slots import Slots
from tests.buckets import seaweedfs
from training.hardware import hardware

ROWS = (1, 2, 4, 8, 16, 32)  # of a batch
TIMEOUT = 30.0  # seconds of one access to the bucket
MAX_TOKENS = 128  # of a text


def measure(
    data: Path | None, backbone: str, slots: int, repeats: int, files: int, out: Path
) -> dict[str, Any]:
    """Measure with so many slots, repeats of each batch, and files in the bucket; write JSON."""
    torch.set_num_threads(1)
    loaded = backbones.load(backbone)
    rng = random.Random(0)
    texts = [(row[0],) for row in read_rows(data, "sst2", rng)]
    longest = min(MAX_TOKENS, loaded.max_length)
    ids = [row.ids for row in encode(loaded.tokenizer, texts, longest)]
    batches = timed_batches(loaded, ids, slots, repeats, rng)
    coefficients, error = fitted(batches)
    tiers = timed_tiers(loaded, files)
    percentiles = {"disk": 50, "bucket": 10, "poll": 10, "commit": 10}
    costs = Costs(
        **coefficients,
        **{name: float(np.percentile(tiers[name], part)) for name, part in percentiles.items()},
    )
    result = {
        "command": " ".join(["python", "-m", "benchmarks.scale", *sys.argv[1:]]),
        "costs_seconds": costs.to_json(),
        "fit_relative_error": error,
        "batches": [summary(size, values) for size, values in batches.items()],
        "tiers_milliseconds": {name: spread(values) for name, values in tiers.items()},
        "tokens": [len(row) for row in ids],
        "adapter_bytes": len(random_file(loaded, "task", 0, "cls")),
        "slots": slots,
        "hardware": hardware(torch.device("cpu")),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "versions": {"torch": torch.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result) + "\n")
    return result


@dataclass(frozen=True, slots=True)
class Size:
    """A batch's rows and distinct adapters, and how many of these have no slot yet."""

    rows: int
    adapters: int
    loads: int


Timed = dict[Size, list[tuple[int, float]]]  # tokens and seconds of each repeat


def timed_batches(
    backbone: Backbone, ids: list[list[int]], slots: int, repeats: int, rng: random.Random
) -> Timed:
    """Batches of several sizes, in turns."""
    cpu = torch.device("cpu")
    engine = Engine(backbone, Slots(slots, cpu, torch.float32), cpu, torch.float32)
    own = [_adapter(backbone, number) for number in range(max(ROWS))]
    # More than slots, so that each has lost its slot when its turn comes again.
    others = itertools.cycle(
        [_adapter(backbone, len(own) + number) for number in range(slots + max(ROWS))]
    )
    found: Timed = {
        Size(rows, adapters, loads): []
        for rows in ROWS
        for adapters in sorted({1, max(1, rows // 2), rows})
        for loads in (0, adapters)
    }
    for repeat in range(-1, repeats):  # the first one warms up
        for size in rng.sample(list(found), len(found)):
            chosen = list(itertools.islice(others, size.loads)) or own[: size.adapters]
            if not size.loads:
                engine.slots.acquire(chosen)
            texts = rng.choices(ids, k=size.rows)
            batch = [
                Row(adapter, text, [0] * len(text))
                for adapter, text in zip(itertools.cycle(chosen), texts, strict=False)
            ]
            seconds = _seconds(lambda batch=batch: engine.run(batch), time.thread_time)
            if repeat >= 0:
                found[size].append((sum(row.tokens for row in batch), seconds))
    return found


def fitted(batches: Timed) -> tuple[dict[str, float], dict[str, float]]:
    """The coefficients of `Costs.seconds` by least squares of relative errors, none below zero; and
    the percentiles of these errors' sizes."""
    from scipy.optimize import nnls  # an extra

    names = ("batch", "token", "row", "adapter", "load")
    sizes, seconds = [], []
    for size, values in batches.items():
        for tokens, measured in values:
            sizes.append([1, tokens, size.rows, size.adapters, size.loads])
            seconds.append(measured)
    matrix = np.array(sizes, float) / np.array(seconds)[:, None]
    found, _ = nnls(matrix, np.ones(len(matrix)))
    errors = np.percentile(np.abs(matrix @ found - 1), [50, 90]).round(4).tolist()
    return dict(zip(names, map(float, found), strict=True)), {"p50": errors[0], "p90": errors[1]}


def summary(size: Size, values: list[tuple[int, float]]) -> dict[str, Any]:
    """For the JSON of results."""
    return {
        **asdict(size),
        "tokens": round(statistics.mean(tokens for tokens, _ in values), 1),
        "milliseconds": spread([seconds for _, seconds in values]),
    }


def timed_tiers(backbone: Backbone, files: int) -> dict[str, list[float]]:
    """Seconds of each file from the bucket to memory, of each from the disk to memory, of a look
    for a change, and of the write of one."""
    (ROOT / "var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "var") as name:
        folder = Path(name)
        (folder / "seaweedfs").mkdir()
        with seaweedfs(folder / "seaweedfs") as server:
            with mock.patch.dict("os.environ", server.environment):
                objects = connect(server.url("costs"), TIMEOUT)
            tasks = [f"task-{number:05d}" for number in range(files)]
            commits = fill(objects, backbone, tasks)
            polls = [_seconds(lambda: objects.read(key_of(files + 2))) for _ in tasks]
            found = {}
            # The copies that the first makes are what the second reads.
            for tier, clock in (("bucket", time.perf_counter), ("disk", time.thread_time)):
                with BucketStore(
                    objects, folder / "cache", backbone=backbone.reference, read_only=True
                ) as store:
                    gc.collect()
                    found[tier] = [
                        _seconds(lambda task=task, store=store: store.get(task), clock)
                        for task in tasks
                    ]
    return {**found, "poll": polls, "commit": commits}


def fill(objects: Objects, backbone: Backbone, tasks: Sequence[str]) -> list[float]:
    """A store of these tasks, with their files; how long each change took to write."""
    reference = backbone.reference
    changes = [Change(change="found", task=reference.name, digest=reference.fingerprint)]
    for seed, task in enumerate(tasks):
        data = random_file(backbone, task, seed, "cls")
        digest = hashlib.sha256(data).hexdigest()
        objects.write(blobs.key_of(digest), data)
        changes.append(Change(change="upload", task=task, digest=digest, bytes=len(data)))
    signed = [encoded(change.signed("benchmark")) for change in changes]
    return [
        _seconds(lambda place=place, data=data: objects.create(key_of(place + 1), data))
        for place, data in enumerate(signed)
    ]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds: the median, and the tenth and ninetieth percentile."""
    low, median, high = (np.percentile(seconds, [10, 50, 90]) * 1000).round(4).tolist()
    return {"median": median, "p10": low, "p90": high}


def _adapter(backbone: Backbone, seed: int) -> Adapter:
    return parse(random_file(backbone, f"task-{seed:05d}", seed, "cls"))


def _seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    work()
    return clock() - started
