"""From ten tasks to ten thousand: each row's task is drawn evenly, the adapters lie in this
machine's memory.

A thread brings the next batch's adapters to their slots while one runs, as the service does. Ratios
are to the fewest tasks, within a repeat.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

from adapters.file import Adapter
from benchmarks.contest import summary
from benchmarks.gpu.parts import material
from benchmarks.gpu.parts.bench import Bench
from benchmarks.gpu.parts.clock import Run
from service.engine.engine import Engine
from service.engine.row import Row

NUMBERS = 2  # bytes of one in an adapter's file


def measure(bench: Bench) -> dict[str, Any]:
    sizes = bench.sizes
    fitting = [count for count in sizes.stores if count * _bytes(bench) < _memory() / 2]
    adapters = material.adapters(bench.large, max(fitting))
    stores = [(adapters[:count], bench.engine(bench.large, sizes.slots)) for count in fitting]
    result: dict[str, Any] = {
        "adapter_bytes": adapters[0].bytes,
        "slots": sizes.slots,
        "rows_of_a_batch": sizes.rows,
    }
    result["stores_beyond_this_memory"] = [count for count in sizes.stores if count not in fitting]
    for workload, lengths in (
        (f"length {sizes.length}", [sizes.length]),
        ("SST-2's lengths", bench.lengths),
    ):
        if not bench.clock.is_up:
            result[workload] = _workload(bench, stores, lengths)
    return result


def lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{workload}, {name}: {figures['texts_per_second']['median']:.4g} texts/s,"
        f" {figures['ratio']['median']:.3f} ({figures['ratio']['low']:.3f} –"
        f" {figures['ratio']['high']:.3f})"
        for workload, found in result.items()
        if isinstance(found, dict)
        for name, figures in found.items()
    ]


def _workload(
    bench: Bench, stores: list[tuple[list[Adapter], Engine]], lengths: list[int]
) -> dict[str, Any]:
    sizes = bench.sizes
    rng = random.Random(0)
    # The texts stay, and only their tasks are drawn anew each time: that takes a thousandth of a
    # batch.
    texts = [
        bench.rows(stores[0][0], rng.choices(lengths, k=sizes.rows), seed)
        for seed in range(sizes.batches)
    ]

    def drawn(adapters: list[Adapter]) -> list[list[Row]]:
        return [[Row(rng.choice(adapters), row.ids, row.types) for row in batch] for batch in texts]

    with ThreadPoolExecutor(1) as loader:
        runs: dict[str, Run] = {
            f"{len(adapters)} tasks": _Stream(
                engine, loader, lambda adapters=adapters: drawn(adapters)
            )
            for adapters, engine in stores
        }
        timed = bench.clock.interleaved(runs, sizes.repeats)
    found = {}
    for name, seconds in timed.items():
        fewest = next(iter(timed.values()))
        found[name] = {
            "texts_per_second": summary([sizes.batches * sizes.rows / s for s in seconds]),
            "ratio": summary([a / b for a, b in zip(fewest, seconds, strict=True)]),
        }
    return found


class _Stream:
    """Batches without end, so many a call: of each the adapters come while the one before runs,
    across calls too."""

    def __init__(
        self, engine: Engine, loader: ThreadPoolExecutor, draw: Callable[[], list[list[Row]]]
    ) -> None:
        self._engine, self._loader, self._draw = engine, loader, draw
        self._batches = draw()

    def __call__(self) -> None:
        batches, self._batches = self._batches, self._draw()
        for batch, following in pairwise([*batches, self._batches[0]]):
            wanted = {row.adapter_key: row.adapter for row in following}
            coming = [
                self._loader.submit(self._engine.slots.prefetch, adapter)
                for adapter in wanted.values()
            ]
            self._engine.run(batch)
            wait(coming)


def _bytes(bench: Bench) -> int:
    """Of one adapter, nearly."""
    return NUMBERS * bench.sizes.large.layers * 2 * 16 * bench.sizes.large.hidden


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
