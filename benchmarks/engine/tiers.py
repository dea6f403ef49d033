"""What an adapter costs on its way from the disk to the device, in processor time: it hardly
matters what else runs.

    python -m benchmarks.engine.tiers

- scan: opening a store of so many tasks.
- get: an adapter that is in no memory yet, its file in the page cache.
- memory: private memory (USS) for each adapter in the host cache, over its file's size.
- acquire: an adapter that has no slot yet, where another one must make room.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer

from adapters import backbone as backbones
from adapters.store import Store
from benchmarks import stores
from benchmarks.http.server import ROOT
from service.engine.slots import Slots

SLOTS = 16


def main(
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")
    ] = backbones.EMBEDDED,
    tasks: Annotated[int, typer.Option(help="In the store.")] = 10_000,
    read: Annotated[int, typer.Option(help="How many of them are read.")] = 1000,
) -> None:
    """Measure the tiers on this machine; print JSON."""
    torch.set_num_threads(1)
    (ROOT / "var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "var") as folder:
        names = stores.fill(Path(folder), backbones.load(backbone), tasks)
        scan = min(_cpu(lambda: Store(Path(folder))) for _ in range(5))
        store = Store(Path(folder), cache_bytes=1 << 62)
        first, *others = names[: read + 1]
        store.get(first)  # what the first one alone brings along
        gc.collect()
        process = psutil.Process()
        before = process.memory_full_info().uss
        get = _cpu(lambda: [store.get(name) for name in others])
        gc.collect()
        kept = process.memory_full_info().uss - before
        adapters = [store.get(name) for name in others]
        slots = Slots(SLOTS, torch.device("cpu"), torch.float32)
        acquire = _cpu(lambda: [slots.acquire([adapter]) for adapter in adapters])
        found = {
            "tasks": tasks,
            "scan_ms": round(1000 * scan, 1),
            "get_ms": round(1000 * get / len(others), 3),
            "memory / file": round(kept / sum(adapter.bytes for adapter in adapters), 3),
            "acquire_ms": round(1000 * acquire / len(others), 3),
        }
    typer.echo(json.dumps(found))


def _cpu(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    typer.run(main)
