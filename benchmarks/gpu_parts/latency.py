"""One short text, with CUDA graphs and without: until its answer is here, and what of that the device's kernels take."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from benchmarks.contest import summary
from benchmarks.gpu_parts.bench import Bench
from benchmarks.gpu_parts.clock import Run
from service.engine import Engine, Row
from service.slots import Slots

OPTION = "graphs"  # the engine's, by which it uses CUDA graphs or does not
PROFILED = 20


def measure(bench: Bench) -> dict[str, Any]:
    """`device_ms` is between CUDA events before and after: waits for the next launch are in it. `kernels_ms` is the sum of
    the kernels' own times."""
    row = bench.rows(bench.adapters, [bench.sizes.text])[0]
    engines = _engines(bench)
    runs: dict[str, Run] = {name: lambda engine=engine: engine.run([row]) for name, engine in engines.items()}
    on_device = bench.clock.interleaved(runs, bench.sizes.texts)
    result: dict[str, Any] = {"tokens": row.tokens}
    for name, engine in engines.items():
        result[name] = {
            "device_ms": summary([1e3 * seconds for seconds in on_device[name]]),
            "end_to_end_ms": summary([1e3 * bench.clock.wall(runs[name]) for _ in range(bench.sizes.texts)]),
        }
        if bench.device.type == "cuda":
            result[name] |= _kernels(engine, row)
    if len(engines) == 1:
        result["with graphs"] = "no graphs in this engine"
    else:
        answers = [torch.tensor(engine.run([row])) for engine in engines.values()]
        result["difference_of_answers"] = float((answers[0] - answers[1]).abs().max())
    return result


def lines(result: dict[str, Any]) -> list[str]:
    found = []
    for name in ("without graphs", "with graphs"):
        figures = result[name]
        if isinstance(figures, str):
            found.append(f"{name}: {figures}")
            continue
        device, whole = figures["device_ms"], figures["end_to_end_ms"]
        line = (
            f"{name}, {result['tokens']} tokens: {device['median']:.3f} ms on the device, {whole['median']:.3f} end to end"
        )
        found.append(line + (f", {figures['kernels_ms']:.3f} in kernels" if "kernels_ms" in figures else ""))
    return found


def _engines(bench: Bench) -> dict[str, Engine]:
    if OPTION not in inspect.signature(Engine).parameters:
        return {"without graphs": bench.mixed}

    def engine(graphs: bool) -> Engine:
        slots = Slots(bench.sizes.tasks, bench.device, bench.dtype)
        return Engine(bench.large, slots, bench.device, bench.dtype, **{OPTION: graphs})

    return {"without graphs": engine(False), "with graphs": engine(True)}


def _kernels(engine: Engine, row: Row) -> dict[str, float]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(PROFILED):
            engine.run([row])
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "kernels_ms": sum(event.time_range.elapsed_us() for event in events) / 1e3 / PROFILED,
        "kernels": len(events) / PROFILED,  # copies included
    }
