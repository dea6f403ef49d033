"""The card's own rates: its best matrix products, those of the encoder's shapes, and its copies."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.contest import summary
from benchmarks.gpu.parts.bench import Bench
from benchmarks.gpu.parts.clock import Run


@torch.inference_mode()
def measure(bench: Bench) -> dict[str, Any]:
    sizes, device = bench.sizes, bench.device
    d, inner, tokens = sizes.large.hidden, sizes.large.inner, sizes.tokens
    shapes = {f"{n}×{n}×{n}": (n, n, n) for n in sizes.squares}
    shapes |= {
        f"{name}, {tokens} tokens": (tokens, inputs, outputs)
        for name, inputs, outputs in (
            ("query, key, value", d, 3 * d),
            ("attention out", d, d),
            ("up", d, inner),
            ("down", inner, d),
        )
    }
    products: dict[str, Run] = {}
    for name, (n, inputs, outputs) in shapes.items():
        x = torch.randn(n, inputs, device=device, dtype=bench.dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=bench.dtype)
        products[name] = lambda x=x, weight=weight: F.linear(x, weight)
    timed = bench.clock.interleaved(products, sizes.repeats)

    here = torch.empty(sizes.copied, dtype=torch.uint8, device=device).random_()
    there = torch.empty_like(here)
    pageable = torch.empty(sizes.copied // 4, dtype=torch.uint8).random_()
    part = there[: len(pageable)]
    copies: dict[str, Run] = {
        "on the device": lambda: there.copy_(here),
        "to the device, pageable": lambda: part.copy_(pageable),
    }
    # read and written
    moved = {"on the device": 2 * len(here), "to the device, pageable": len(pageable)}
    if device.type == "cuda":
        pinned = pageable.pin_memory()
        copies["to the device, pinned"] = lambda: part.copy_(pinned, non_blocking=True)
        moved["to the device, pinned"] = len(pinned)
    copied = bench.clock.interleaved(copies, sizes.repeats)
    return {
        "tflops": {
            name: summary([2 * n * inputs * outputs / seconds / 1e12 for seconds in timed[name]])
            for name, (n, inputs, outputs) in shapes.items()
        },
        "gb_per_second": {
            name: summary([moved[name] / s / 1e9 for s in seconds])
            for name, seconds in copied.items()
        },
    }


def lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {figure['median']:.4g} {unit} ({figure['low']:.4g} – {figure['high']:.4g})"
        for key, unit in (("tflops", "TFLOP/s"), ("gb_per_second", "GB/s"))
        for name, figure in result[key].items()
    ]
