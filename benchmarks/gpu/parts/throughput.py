"""Full batches: mixed tasks against the bare backbone and against transformers, and the arithmetic
rate against matmul's.

Rows are ready ids: no tokenising. All systems pack or pad them, and bring their answers back, in
the measured time.

- mixed: this engine, an adapter and a head for each task
- mixed, as copies: the same over as many tasks as there are copies
- bare: the same engine without adapters and heads
- copies: transformers, a full copy for each task, by turns
- one model: transformers, the whole batch padded, one model for all
- encoder, matmul: the encoder alone on a packed batch; its linear layers alone, each with weights
  of its own, at its tokens
"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contest import summary
from benchmarks.gpu.parts import material
from benchmarks.gpu.parts.bench import LABELS, Bench, by_length, encoded, flops
from benchmarks.gpu.parts.clock import Run
from benchmarks.gpu.parts.copies import Copies

RATIOS = (
    ("mixed", "bare"),
    ("mixed, as copies", "copies"),
    ("mixed, as copies", "one model"),
)


@torch.inference_mode()
def measure(bench: Bench) -> dict[str, Any]:
    copies = Copies(bench)
    weights = _weights(bench)
    return {
        name: _workload(bench, copies, weights, lengths)
        for name, lengths in workloads(bench).items()
        if not bench.clock.is_up
    }


def workloads(bench: Bench) -> dict[str, list[int]]:
    sizes, rng = bench.sizes, random.Random(0)
    return {
        f"length {sizes.length}, {sizes.tokens} tokens": (
            [sizes.length] * (sizes.tokens // sizes.length)
        ),
        f"SST-2's lengths, {sizes.tokens} tokens": material.within(
            bench.lengths, sizes.tokens, rng
        ),
        f"SST-2's lengths, {sizes.rows} rows": rng.choices(bench.lengths, k=sizes.rows),
    }


def lines(result: dict[str, Any]) -> list[str]:
    found = []
    for workload, figures in result.items():
        speeds = ", ".join(
            f"{name} {speed['median']:.4g}" for name, speed in figures["texts_per_second"].items()
        )
        rates = ", ".join(
            f"{name} {rate['median']:.4g}" for name, rate in figures["tflops"].items()
        )
        found += [f"{workload}: texts/s: {speeds}", f"{workload}: TFLOP/s: {rates}"]
        for name, ratio in figures["ratios"].items():
            found.append(
                f"{workload}: {name} = {ratio['median']:.3f} ({ratio['low']:.3f} –"
                f" {ratio['high']:.3f})"
            )
    return found


def _workload(
    bench: Bench, copies: Copies, weights: list[Tensor], lengths: list[int]
) -> dict[str, Any]:
    engine = bench.mixed
    rows = bench.rows(bench.adapters, lengths)
    fewer = bench.rows(bench.adapters[: bench.sizes.copies], lengths)
    plain = by_length(rows)
    packed = engine.encoder.pack([(row.ids, row.types) for row in plain])
    tokens = sum(lengths)
    inputs = {
        width: torch.randn(tokens, width, device=bench.device, dtype=bench.dtype)
        for width in (bench.sizes.large.hidden, bench.sizes.large.inner)
    }

    def matmul() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    runs: dict[str, Run] = {
        "mixed": lambda: engine.run(rows),
        "bare": lambda: encoded(engine, plain)[:, :LABELS].tolist(),
        "mixed, as copies": lambda: engine.run(fewer),
        "copies": lambda: copies.by_turns(fewer),
        "one model": lambda: copies.one(rows),
        "encoder": lambda: engine.encoder.forward(packed),
        "matmul": matmul,
    }
    timed = bench.clock.interleaved(runs, bench.sizes.repeats)
    linear, whole = flops(bench.large.config, lengths)
    rates = {
        "mixed": [whole / seconds / 1e12 for seconds in timed["mixed"]],
        "encoder": [whole / seconds / 1e12 for seconds in timed["encoder"]],
        "matmul": [linear / seconds / 1e12 for seconds in timed["matmul"]],
    }
    pairs = {f"{one} / {other}": (timed[other], timed[one]) for one, other in RATIOS}
    pairs |= {
        f"{name} / matmul, TFLOP/s": (rates[name], rates["matmul"]) for name in ("encoder", "mixed")
    }
    return {
        "rows": len(rows),
        "tokens": tokens,
        "tasks": {
            "mixed": len({row.task for row in rows}),
            "as copies": len({row.task for row in fewer}),
        },
        "texts_per_second": {
            name: summary([len(rows) / s for s in seconds])
            for name, seconds in timed.items()
            if name != "matmul"
        },
        "tflops": {name: summary(values) for name, values in rates.items()},
        "ratios": {
            name: summary([a / b for a, b in zip(above, below, strict=True)])
            for name, (above, below) in pairs.items()
        },
        "repeats": len(timed["mixed"]),
    }


def _weights(bench: Bench) -> list[Tensor]:
    """One layer's after the other's, each `[outputs, inputs]`."""
    d, inner = bench.sizes.large.hidden, bench.sizes.large.inner
    shapes = ((3 * d, d), (d, d), (inner, d), (d, inner))
    return [
        torch.randn(shape, device=bench.device, dtype=bench.dtype)
        for _ in range(bench.sizes.large.layers)
        for shape in shapes
    ]
