"""Whether the engine answers what transformers does in float32: on real weights and on a
RoBERTa-large's sizes, with adapters and without, of one task and of many that differ in all they
may.

Logits are of about unit size. `transformers` is its own model without adapters in the same dtype,
padded: how far a correct program is from float32 in that dtype.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.file import Adapter
from adapters.text import Tokens
from benchmarks.gpu.parts import material
from benchmarks.gpu.parts.bench import Bench, by_length, encoded
from service.engine.row import Row

# Of a logit: at most, and on average; about three times what transformers' own differ by in the
# dtype.
TOLERANCES = {torch.bfloat16: (0.15, 0.03), torch.float16: (0.03, 0.005)}
Logits = list[list[float]]


@torch.inference_mode()
def measure(bench: Bench) -> dict[str, Any]:
    torch.set_float32_matmul_precision("highest")  # no tf32 in what the others are held against
    cases = {}
    for name, backbone in (("embedded", bench.embedded), ("random RoBERTa-large", bench.large)):
        for case, found in _cases(bench, backbone).items():
            cases[f"{name}, {case}"] = found
    tolerances = {
        str(dtype).removeprefix("torch."): dict(zip(("max", "mean"), limits, strict=True))
        for dtype, limits in TOLERANCES.items()
    }
    return {
        "passed": all(case["passed"] for case in cases.values()),
        "tolerances": tolerances,
        "cases": cases,
    }


def lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{name}: max {case['max']:.2g}, mean {case['mean']:.2g}, same label"
        f" {case['agreement']:.1%}" + ("" if case["passed"] else "  FAILED")
        for name, case in result["cases"].items()
    ]


def _cases(bench: Bench, backbone: Backbone) -> dict[str, dict[str, Any]]:
    rng = random.Random(1)
    words = range(material.FIRST_WORD, backbone.config.vocab_size)
    lengths = rng.choices([*bench.lengths, bench.sizes.length], k=bench.sizes.parity_rows - 1)
    ids = [rng.choices(words, k=length) for length in [bench.sizes.length, *lengths]]
    if bench.texts and backbone is bench.embedded:
        ids = [row[: bench.sizes.length] for row in rng.choices(bench.texts, k=len(ids))]
    adapters = material.varied_adapters(backbone, bench.sizes.tasks)
    batches = {
        f"{tasks} tasks" if tasks > 1 else "1 task": [
            Row(adapters[i % tasks], row, [0] * len(row)) for i, row in enumerate(ids)
        ]
        for tasks in (1, len(adapters))
    }
    wanted = {name: _reference(backbone, rows) for name, rows in batches.items()}
    plain = by_length(batches["1 task"])
    head = (
        torch.randn(backbone.config.hidden_size, 3, device=bench.device)
        / backbone.config.hidden_size**0.5
    )
    padded = material.padded(plain, bench.device)

    def transformers(encoder: Any) -> Tensor:
        first: Tensor = encoder(**padded).last_hidden_state[:, 0]
        return first.float() @ head

    unadapted = transformers(backbone.encoder).tolist()
    found = {}
    for dtype in TOLERANCES:
        engine = bench.engine(backbone, len(adapters), dtype, graphs=dtype == bench.dtype)
        own = copy.deepcopy(backbone.encoder).to(dtype)
        runs: dict[str, tuple[Callable[[], Logits], Logits]] = {
            "no adapters": (
                lambda engine=engine: (encoded(engine, plain).float() @ head).tolist(),
                unadapted,
            ),
            "transformers": (lambda own=own: transformers(own).tolist(), unadapted),
        }
        for name, rows in batches.items():
            runs[name] = (lambda engine=engine, rows=rows: engine.run(rows), wanted[name])
        for name, (run, reference) in runs.items():
            found[f"{str(dtype).removeprefix('torch.')}, {name}"] = _compared(
                run(), reference, TOLERANCES[dtype]
            )
    return found


def _reference(backbone: Backbone, rows: list[Row]) -> Logits:
    """Task by task, transformers' encoder in float32 with the adapter's plain formula."""
    places: dict[str, list[int]] = {}
    adapters: dict[str, Adapter] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.adapter_key, []).append(i)
        adapters[row.adapter_key] = row.adapter
    answers: Logits = [[] for _ in rows]
    for key, adapter in adapters.items():
        tokens = [Tokens(rows[i].ids, rows[i].types, rows[i].tokens) for i in places[key]]
        logits = from_adapter(backbone, adapter)(collate(tokens, backbone.encoder.device))
        for i, answer in zip(places[key], logits.tolist(), strict=True):
            answers[i] = answer
    return answers


def _compared(found: Logits, wanted: Logits, limits: tuple[float, float]) -> dict[str, Any]:
    """Passed, if no logit is further off than it may be and the best label is the same, or tied
    with it in float32."""
    most, average = limits
    differences = [
        abs(a - b) for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True)
    ]
    best = [(y[x.index(max(x))], max(y)) for x, y in zip(found, wanted, strict=True)]
    case = {
        "max": max(differences),
        "mean": sum(differences) / len(differences),
        "agreement": sum(chosen == right for chosen, right in best) / len(best),
        "rows": len(found),
    }
    # a NaN is not
    close = all(difference <= most for difference in differences) and case["mean"] <= average
    return {**case, "passed": close and all(right - chosen <= most for chosen, right in best)}
