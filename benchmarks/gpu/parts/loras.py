"""PEFT, where it is installed: a LoRA of as many parameters for each task, a mixed batch by
`adapter_names`.

Its mixed batches take no head of RoBERTa's form, so it is spared its heads: it gives back a few
numbers of the first token.

AdapterHub is not here: its package has the name of one of ours, and it wants another transformers.
"""

from __future__ import annotations

import copy
from importlib import metadata
from typing import Any

import torch

from benchmarks.contest import summary
from benchmarks.gpu.parts import material
from benchmarks.gpu.parts.bench import LABELS, Bench
from benchmarks.gpu.parts.clock import Run
from benchmarks.gpu.parts.throughput import workloads
from service.engine.row import Row


@torch.inference_mode()
def measure(bench: Bench) -> dict[str, Any]:
    try:
        model = _model(bench)
    except ModuleNotFoundError as error:
        return {"not_installed": str(error)}
    result: dict[str, Any] = {"peft": metadata.version("peft")}
    for name, lengths in workloads(bench).items():
        if bench.clock.is_up:
            break
        rows = bench.rows(bench.adapters[: bench.sizes.copies], lengths)

        def run(rows: list[Row] = rows) -> list[list[float]]:
            answers = model(
                **material.padded(rows, bench.device), adapter_names=[row.task for row in rows]
            )
            return answers.last_hidden_state[:, 0, :LABELS].tolist()

        runs: dict[str, Run] = {"mixed": lambda rows=rows: bench.mixed.run(rows), "peft": run}
        timed = bench.clock.interleaved(runs, max(1, bench.sizes.repeats // 3))
        result[name] = {
            "texts_per_second": {
                system: summary([len(rows) / s for s in seconds])
                for system, seconds in timed.items()
            },
            "mixed / peft": summary(
                [b / a for a, b in zip(timed["mixed"], timed["peft"], strict=True)]
            ),
        }
    return result


def lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{name}: mixed / peft = {figures['mixed / peft']['median']:.2f}"
        for name, figures in result.items()
        if isinstance(figures, dict)
    ] or [", ".join(map(str, result.values()))]


def _model(bench: Bench) -> Any:
    import peft

    config = peft.LoraConfig(
        r=8, lora_alpha=8, target_modules=["query", "value"], init_lora_weights=False
    )
    first, *others = (adapter.spec.task for adapter in bench.adapters[: bench.sizes.copies])
    with torch.inference_mode(False):
        model = peft.get_peft_model(copy.deepcopy(bench.large.encoder), config, adapter_name=first)
        for name in others:
            model.add_adapter(name, config)
    return model.to(bench.device, bench.dtype).eval()
