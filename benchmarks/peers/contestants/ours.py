"""This repository's engine: rows of all tasks in one packed batch; and the same without adapters
and heads."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from worker import MAX_LENGTH, Batch, Rows, in_turn, serve

from adapters import backbone as backbones
from adapters.classifier import collate, from_adapter
from adapters.store import Store
from adapters.text import Tokens, encode
from service.engine.engine import Engine
from service.engine.row import Row
from service.engine.slots import Slots


class Ours:
    def __init__(self, backbone: str, store: Path) -> None:
        self.backbone = backbones.load(backbone)
        opened = Store(store)
        self.adapters = [opened.get(entry.task) for entry in opened.entries()]
        self.length = min(MAX_LENGTH, self.backbone.max_length)
        cpu = torch.device("cpu")
        self.engine = Engine(
            self.backbone, Slots(len(self.adapters), cpu, torch.float32), cpu, torch.float32
        )

    def tokens(self, texts: list[list[str]]) -> list[Tokens]:
        return encode(self.backbone.tokenizer, [tuple(text) for text in texts], self.length)

    def mixed(self, batch: Batch) -> Rows:
        rows = self.tokens([text for _, text in batch])
        return self.engine.run(
            [
                Row(self.adapters[task], row.ids, row.types)
                for (task, _), row in zip(batch, rows, strict=True)
            ]
        )

    def bare(self, batch: Batch) -> Rows:
        """The first token's vector of every row; sorted by length, as the engine sorts within a
        task."""
        rows = self.tokens([text for _, text in batch])
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        packed = self.engine.encoder.pack([(rows[i].ids, rows[i].types) for i in order])
        vectors = self.engine.encoder.pool_first(self.engine.encoder.forward(packed), packed)
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
    ours = Ours(sys.argv[1], Path(sys.argv[2]))
    serve(
        {"mixed": ours.mixed, "bare": ours.bare, "reference": ours.reference},
        {"transformers": transformers.__version__},
    )
