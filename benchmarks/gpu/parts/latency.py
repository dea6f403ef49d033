"""One short text, with CUDA graphs and without: what the device takes, and until its answer is
here."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from benchmarks.contest import summary
from benchmarks.gpu.parts.bench import Bench
from benchmarks.gpu.parts.clock import Run
from service.engine.engine import Engine
from service.engine.slots import Slots

OPTION = "graphs"  # the engine's, by which it uses CUDA graphs or does not


def measure(bench: Bench) -> dict[str, Any]:
    """`device_ms` is between CUDA events before and after: its waits for the next launch are in
    it."""
    row = bench.rows(bench.adapters, [bench.sizes.text])[0]
    engines = _engines(bench)
    runs: dict[str, Run] = {
        name: lambda engine=engine: engine.run([row]) for name, engine in engines.items()
    }
    on_device = bench.clock.interleaved(runs, bench.sizes.texts)
    result: dict[str, Any] = {"tokens": row.tokens}
    for name, run in runs.items():
        result[name] = {
            "device_ms": summary([1e3 * seconds for seconds in on_device[name]]),
            "end_to_end_ms": summary(
                [1e3 * bench.clock.wall(run) for _ in range(bench.sizes.texts)]
            ),
        }
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
        times = f"{device['median']:.3f} ms on the device, {whole['median']:.3f} end to end"
        found.append(f"{name}, {result['tokens']} tokens: {times}")
    return found


def _engines(bench: Bench) -> dict[str, Engine]:
    if OPTION not in inspect.signature(Engine).parameters:
        return {"without graphs": bench.mixed}

    def engine(graphs: bool) -> Engine:
        slots = Slots(bench.sizes.tasks, bench.device, bench.dtype)
        return Engine(bench.large, slots, bench.device, bench.dtype, **{OPTION: graphs})

    return {"without graphs": engine(False), "with graphs": engine(True)}
