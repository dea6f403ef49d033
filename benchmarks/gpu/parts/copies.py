"""transformers: a full copy of the model for each task, by turns, each part of a batch padded to
its longest row."""

from __future__ import annotations

import copy

import torch

from benchmarks.gpu.parts import material
from benchmarks.gpu.parts.bench import Bench
from service.engine.row import Row


class Copies:
    """Scaled dot-product attention, transformers' default. Answers come back once a batch, not once
    a task."""

    def __init__(self, bench: Bench) -> None:
        self._device = bench.device
        first = material.classifier(bench.large, bench.dtype)
        self._models = [first, *(copy.deepcopy(first) for _ in range(bench.sizes.copies - 1))]

    def by_turns(self, rows: list[Row]) -> list[list[float]]:
        """In the order of their tasks."""
        by_task: dict[str, list[Row]] = {}
        for row in rows:
            by_task.setdefault(row.task, []).append(row)
        parts = [
            model(**material.padded(group, self._device)).logits
            for model, group in zip(self._models, by_task.values(), strict=False)
        ]
        return torch.cat(parts).tolist()

    def one(self, rows: list[Row]) -> list[list[float]]:
        """One model for all: what transformers does without tasks."""
        return self._models[0](**material.padded(rows, self._device)).logits.tolist()
