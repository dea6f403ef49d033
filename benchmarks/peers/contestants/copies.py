"""transformers: one full copy of the model per task; a batch is split by task, each part padded."""

from __future__ import annotations

import sys
from pathlib import Path

import transformers
from transformers import BertForSequenceClassification
from worker import Batch, Padded, Rows, in_turn, serve


class Copies:
    def __init__(self, model: Path, tasks: int) -> None:
        self.padded = Padded(model)
        self.models = [
            BertForSequenceClassification.from_pretrained(model).eval() for _ in range(tasks)
        ]

    def copies(self, batch: Batch) -> Rows:
        return in_turn(
            batch, lambda task, texts: self.models[task](**self.padded(texts)).logits.tolist()
        )

    def encoder(self, batch: Batch) -> Rows:
        """The first token's vector of every row: the encoder is the one that all contestants
        have."""
        return in_turn(
            batch,
            lambda task, texts: (
                self.models[task].bert(**self.padded(texts)).last_hidden_state[:, 0].tolist()
            ),
        )


if __name__ == "__main__":
    copies = Copies(Path(sys.argv[1]), int(sys.argv[2]))
    serve(
        {"copies": copies.copies, "encoder": copies.encoder},
        {"transformers": transformers.__version__},
    )
