"""What the device spends its time on, by torch's profiler: one text, and a full batch of mixed
tasks. Waits between the kernels are not in it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.parts.bench import Bench
from service.engine.row import Row

RUNS = 10
SHOWN = 12
WIDTH = 80  # of a name: those of templates go on for lines


def measure(bench: Bench) -> dict[str, Any]:
    sizes = bench.sizes
    batches = {
        "one text": [sizes.text],
        "a full batch": [sizes.length] * (sizes.tokens // sizes.length),
    }
    return {
        name: _profiled(bench, bench.rows(bench.adapters, lengths))
        for name, lengths in batches.items()
    }


def lines(result: dict[str, Any]) -> list[str]:
    found = []
    for name, figures in result.items():
        found.append(
            f"{name}: {figures['ms']:.3f} ms in {figures['kernels']:.0f} kernels and copies"
        )
        found += [
            f"  {ms:.3f} ms  {kernel}" for kernel, ms in list(figures["longest_ms"].items())[:SHOWN]
        ]
    return found


def _profiled(bench: Bench, rows: list[Row]) -> dict[str, Any]:
    """A run's, on average. On a CPU its operators', which hold each other."""
    on_gpu = bench.device.type == "cuda"
    bench.mixed.run(rows)
    with profile(
        activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    ) as profiled:
        for _ in range(RUNS):
            bench.mixed.run(rows)
    events = [
        e
        for e in profiled.events()
        if e.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU)
    ]
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        spent[event.name[:WIDTH]] += event.time_range.elapsed_us() / 1e3 / RUNS
    longest = sorted(spent.items(), key=lambda entry: -entry[1])
    return {
        "ms": sum(spent.values()),
        "kernels": len(events) / RUNS,
        "longest_ms": dict(longest[: 2 * SHOWN]),
    }
