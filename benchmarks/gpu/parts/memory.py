"""What the device's memory holds by the number of tasks, beside full copies."""

from __future__ import annotations

import gc
from typing import Any

import torch

from benchmarks.gpu.parts import material
from benchmarks.gpu.parts.bench import Bench


def measure(bench: Bench) -> dict[str, Any]:
    """`engine` is what an engine with so many adapters in as many slots takes, in bytes, as torch
    allocated it; before it runs, so without what a batch needs besides. Null on a CPU, where torch
    does not count."""
    counts = bench.sizes.residents
    adapters = material.adapters(bench.large, max(counts))
    taken = {count: _taken(bench, adapters[:count]) for count in counts}
    parameters = sum(parameter.numel() for parameter in bench.large.encoder.parameters())
    one = parameters * bench.dtype.itemsize
    most, before = taken[counts[-1]], taken[counts[-2]]
    further = (
        None if most is None or before is None else (most - before) / (counts[-1] - counts[-2])
    )
    return {
        "adapter_bytes": adapters[0].bytes,
        "engine": {str(count): value for count, value in taken.items()},
        "further_adapter_over_its_file": None if further is None else further / adapters[0].bytes,
        "full_copies": {str(count): one * count for count in counts},
    }


def lines(result: dict[str, Any]) -> list[str]:
    shown = {
        count: "–" if taken is None else f"{taken / 2**20:.0f} MiB"
        for count, taken in result["engine"].items()
    }
    found = [
        f"{count} tasks: {size}, {result['full_copies'][count] / 2**20:.0f} MiB in full"
        for count, size in shown.items()
    ]
    ratio = result["further_adapter_over_its_file"]
    return found if ratio is None else [*found, f"a further adapter takes {ratio:.2f} of its file"]


def _taken(bench: Bench, adapters: list[Any]) -> int | None:
    if bench.device.type != "cuda":
        return None
    gc.collect()
    before = torch.cuda.memory_allocated(bench.device)
    engine = bench.engine(bench.large, max(1, len(adapters)), graphs=False)
    for adapter in adapters:
        engine.slots.acquire([adapter])
    return torch.cuda.memory_allocated(bench.device) - before
