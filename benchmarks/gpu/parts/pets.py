"""The tables of PetS (USENIX ATC'22), on this engine: throughput by tasks, and queries of uneven
lengths.

Its models are BERT-base and larger ones: here RoBERTas of base's and of large's sizes. A batch has
so many rows of each task, all of one length; throughput is given over that of one task. The queries
have lengths N(32, σ), by as many tasks as there are copies, in batches of as many tokens as the
service takes.
"""

from __future__ import annotations

import random
from typing import Any

from adapters.file import Adapter
from benchmarks.contest import summary
from benchmarks.gpu.parts import material
from benchmarks.gpu.parts.bench import Bench
from benchmarks.gpu.parts.clock import Run
from service.engine.engine import Engine
from service.engine.row import Row

MEAN = 32
SHORTEST = 3


def measure(bench: Bench) -> dict[str, Any]:
    result = {}
    for name, sizes in (("base", bench.sizes.base), ("large", bench.sizes.large)):
        if bench.clock.is_up:
            break
        backbone = bench.large if name == "large" else material.roberta(sizes, bench.device)
        adapters = material.adapters(backbone, max(bench.sizes.grid_tasks))
        engine = bench.engine(backbone, len(adapters))
        result[name] = {
            "grid": _grid(bench, engine, adapters, sizes.vocabulary),
            "queries": _queries(bench, engine, adapters, sizes.vocabulary),
        }
    return result


def lines(result: dict[str, Any]) -> list[str]:
    found = []
    for name, tables in result.items():
        for cell, by_tasks in tables["grid"].items():
            ratios = ", ".join(
                f"{tasks} {figures['ratio']['median']:.2f}" for tasks, figures in by_tasks.items()
            )
            found.append(f"{name}, {cell}: throughput over one task's by tasks: {ratios}")
        rates = ", ".join(
            f"σ {spread} {rate['median']:.4g}" for spread, rate in tables["queries"].items()
        )
        found.append(f"{name}, queries of N({MEAN}, σ) tokens: texts/s: {rates}")
    return found


def _grid(bench: Bench, engine: Engine, adapters: list[Adapter], vocabulary: int) -> dict[str, Any]:
    counts = bench.sizes.grid_tasks
    found: dict[str, Any] = {}
    for each, length in bench.sizes.grid:
        batches = {
            tasks: material.rows(
                adapters[:tasks], [length] * tasks * each, vocabulary, random.Random(0)
            )
            for tasks in counts
        }
        runs: dict[str, Run] = {
            str(tasks): lambda rows=rows: engine.run(rows) for tasks, rows in batches.items()
        }
        timed = bench.clock.interleaved(runs, bench.sizes.repeats)
        rates = {
            tasks: [int(tasks) * each / s for s in seconds] for tasks, seconds in timed.items()
        }
        one = rates[str(counts[0])]
        found[f"{{{each}, {length}}}"] = {
            tasks: {
                "texts_per_second": summary(values),
                "ratio": summary([a / b for a, b in zip(values, one, strict=True)]),
            }
            for tasks, values in rates.items()
        }
    return found


def _queries(
    bench: Bench, engine: Engine, adapters: list[Adapter], vocabulary: int
) -> dict[str, Any]:
    runs: dict[str, Run] = {}
    for spread in bench.sizes.spreads:
        rng = random.Random(0)
        lengths = [
            max(SHORTEST, round(rng.gauss(MEAN, spread))) for _ in range(bench.sizes.queries)
        ]
        rows = material.rows(adapters[: bench.sizes.copies], lengths, vocabulary, rng)
        batches = _batches(rows, max(bench.sizes.tokens, 2 * max(lengths)))
        runs[str(spread)] = lambda batches=batches: [engine.run(batch) for batch in batches]
    timed = bench.clock.interleaved(runs, bench.sizes.repeats)
    return {
        spread: summary([bench.sizes.queries / s for s in seconds])
        for spread, seconds in timed.items()
    }


def _batches(rows: list[Row], tokens: int) -> list[list[Row]]:
    """In their order, none of more tokens."""
    batches: list[list[Row]] = [[]]
    held = 0
    for row in rows:
        if held + row.tokens > tokens:
            batches.append([])
            held = 0
        batches[-1].append(row)
        held += row.tokens
    return batches
