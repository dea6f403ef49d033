"""A cold adapter's way from this machine's memory to a slot, until the copy is done."""

from __future__ import annotations

import statistics
from typing import Any

from adapters.file import Adapter
from benchmarks.gpu.parts import material
from benchmarks.gpu.parts.bench import Bench
from service.engine.slots import Slots

KINDS = {"adapter": False, "adapter with RoBERTa's dense head": True}
WARM_UPS = 10


def measure(bench: Bench) -> dict[str, Any]:
    return {name: _timed(bench, dense) for name, dense in KINDS.items()}


def lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{name} of {figures['bytes'] / 1e6:.2f} MB: median {figures['median_ms']:.3f} ms, p99"
        f" {figures['p99_ms']:.3f} ms"
        for name, figures in result.items()
    ]


def _timed(bench: Bench, dense: bool) -> dict[str, Any]:
    adapters = material.adapters(bench.large, bench.sizes.loads + WARM_UPS, dense=dense)
    # the later ones find them full: one makes room for each
    slots = Slots(bench.sizes.slots, bench.device, bench.dtype)

    def load(adapter: Adapter) -> float:
        return 1e3 * bench.clock.wall(lambda: slots.acquire([adapter]))

    times = [load(adapter) for adapter in adapters][WARM_UPS:]
    return {
        "bytes": adapters[0].bytes,
        "median_ms": statistics.median(times),
        "p99_ms": statistics.quantiles(times, n=100, method="inclusive")[98],
        "most_ms": max(times),
        "loads": len(times),
    }
