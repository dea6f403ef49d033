"""This repository's engine: rows of all tasks in one packed batch; the same without adapters and
heads; one task's adapter; and the full model, as an adapter that changes nothing."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import transformers
from worker import MAX_LENGTH, Batch, Rows, in_turn, serve

from adapters import backbone as backbones
from adapters.classifier import collate, from_adapter
from adapters.file import Adapter, load, parse
from adapters.store import Store
from adapters.text import Tokens, encode
from benchmarks.stores import full_model
from service.engine.engine import Engine
from service.engine.row import Row
from service.engine.slots import Slots


class Ours:
    def __init__(
        self, model: Path, store: Path, backbone: str, adapter: Path | None, dtypes: list[str]
    ) -> None:
        self.backbone = backbones.load(backbone)
        opened = Store(store)
        self.adapters = [opened.get(entry.task) for entry in opened.entries()]
        self.length = min(MAX_LENGTH, self.backbone.max_length)
        self.full = parse(full_model(self.backbone, model))
        self.adapted = self.full if adapter is None else load(adapter)
        self.engines = {dtype: self.engine_of(getattr(torch, dtype)) for dtype in dtypes}

    def engine_of(self, dtype: torch.dtype) -> Engine:
        cpu = torch.device("cpu")
        slots = Slots(len(self.adapters), cpu, torch.float32)
        return Engine(self.backbone, slots, cpu, dtype)

    def tokens(self, texts: list[list[str]]) -> list[Tokens]:
        return encode(self.backbone.tokenizer, [tuple(text) for text in texts], self.length)

    def mixed(self, dtype: str, batch: Batch) -> Rows:
        return self.answers(dtype, batch, [self.adapters[task] for task, _ in batch])

    def alone(self, adapter: Adapter, dtype: str, batch: Batch) -> Rows:
        """One adapter for all rows, whatever tasks they name."""
        return self.answers(dtype, batch, [adapter] * len(batch))

    def answers(self, dtype: str, batch: Batch, adapters: list[Adapter]) -> Rows:
        rows = self.tokens([text for _, text in batch])
        return self.engines[dtype].run(
            [Row(adapter, row.ids, row.types) for adapter, row in zip(adapters, rows, strict=True)]
        )

    def bare(self, batch: Batch) -> Rows:
        """The first token's vector of every row; sorted by length, as the engine sorts within a
        task."""
        rows = self.tokens([text for _, text in batch])
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        encoder = self.engines["float32"].encoder
        packed = encoder.pack([(rows[i].ids, rows[i].types) for i in order])
        vectors = encoder.pool_first(encoder.forward(packed), packed)
        answers: Rows = [[] for _ in batch]
        for i, vector in zip(order, vectors.tolist(), strict=True):
            answers[i] = vector
        return answers

    def reference(self, batch: Batch) -> Rows:
        """The reference model, task by task: what the answers are held against."""
        return in_turn(
            batch,
            lambda task, texts: from_adapter(self.backbone, self.adapters[task])(
                collate(self.tokens(texts))
            ).tolist(),
        )


if __name__ == "__main__":
    model, store, backbone, adapter, *dtypes = sys.argv[1:]
    ours = Ours(Path(model), Path(store), backbone, Path(adapter) if adapter else None, dtypes)
    runs = {
        "bare": ours.bare,
        "reference": ours.reference,
        "full model": partial(ours.alone, ours.full, "float32"),
    }
    for dtype in dtypes:
        suffix = "" if dtype == "float32" else f" {dtype}"
        runs[f"mixed{suffix}"] = partial(ours.mixed, dtype)
        runs[f"adapted{suffix}"] = partial(ours.alone, ours.adapted, dtype)
    serve(runs, {"transformers": transformers.__version__})
