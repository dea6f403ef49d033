"""PEFT: one model, a LoRA and a head per task, mixed batches by `adapter_names`.

LoRA on query and value with rank 8 has as many parameters as a bottleneck of 16 at one site.
"""

from __future__ import annotations

import sys
from pathlib import Path

import peft
import transformers
from transformers import BertForSequenceClassification
from worker import Batch, Padded, Rows, in_turn, serve


class Loras:
    def __init__(self, model: Path, tasks: int) -> None:
        self.padded = Padded(model)
        config = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=8,
            lora_alpha=8,
            target_modules=["query", "value"],
            init_lora_weights=False,
        )
        base = BertForSequenceClassification.from_pretrained(model)
        self.model = peft.get_peft_model(base, config, adapter_name="task-0")
        for i in range(1, tasks):
            self.model.add_adapter(f"task-{i}", config)
        self.model.eval()

    def mixed(self, batch: Batch) -> Rows:
        names = [f"task-{task}" for task, _ in batch]
        return self.model(
            **self.padded([text for _, text in batch]), adapter_names=names
        ).logits.tolist()

    def one_by_one(self, batch: Batch) -> Rows:
        """What the mixed batch's answers are held against."""
        return in_turn(batch, self._alone)

    def _alone(self, task: int, texts: list[list[str]]) -> Rows:
        self.model.set_adapter(f"task-{task}")
        return self.model(**self.padded(texts)).logits.tolist()


if __name__ == "__main__":
    loras = Loras(Path(sys.argv[1]), int(sys.argv[2]))
    serve(
        {"peft": loras.mixed, "one by one": loras.one_by_one},
        {"peft": peft.__version__, "transformers": transformers.__version__},
    )
