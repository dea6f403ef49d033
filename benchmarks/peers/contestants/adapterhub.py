"""AdapterHub: one model, the very adapters of our store; a batch by BatchSplit, or by switching
from task to task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import transformers
from adapters.composition import BatchSplit
from safetensors.torch import load_file
from torch import Tensor
from worker import Batch, Padded, Rows, by_task, in_turn, serve

import adapters


class Hub:
    def __init__(self, model: Path, store: Path) -> None:
        self.padded = Padded(model)
        self.model: Any = adapters.BertAdapterModel.from_pretrained(model)
        self.names = sorted(folder.name for folder in store.iterdir() if folder.is_dir())
        for name in self.names:
            self._add(name, load_file(next((store / name).glob("*.safetensors"))))
        self.model.eval()

    def batch_split(self, batch: Batch) -> Rows:
        groups = by_task(batch)
        order = [i for rows in groups.values() for i in rows]
        names = [self.names[task] for task in groups]
        self.model.active_adapters = BatchSplit(
            *names, batch_sizes=[len(rows) for rows in groups.values()]
        )
        heads = self.model(**self.padded([batch[i][1] for i in order])).head_outputs
        answers: Rows = [[] for _ in batch]
        for i, answer in zip(
            order, (row for head in heads for row in head.logits.tolist()), strict=True
        ):
            answers[i] = answer
        return answers

    def switching(self, batch: Batch) -> Rows:
        return in_turn(batch, self._switched)

    def _switched(self, task: int, texts: list[list[str]]) -> Rows:
        self.model.active_adapters = self.names[task]
        return self.model(**self.padded(texts)).logits.tolist()

    def _add(self, name: str, tensors: dict[str, Tensor]) -> None:
        width = self.model.config.hidden_size / tensors["down.weight"].shape[1]
        # Houlsby's second site alone: right after the feed-forward, its residual inside, the
        # layer's norm behind.
        config = adapters.DoubleSeqBnConfig(
            mh_adapter=False, non_linearity="gelu", reduction_factor=width
        )
        self.model.add_adapter(name, config=config)
        self.model.add_classification_head(
            name, num_labels=tensors["head.out.weight"].shape[0], layers=1
        )
        for i, sites in self.model.get_adapter(name).items():
            site = sites["output_adapter"]
            for module, side in ((site.adapter_down[0], "down"), (site.adapter_up, "up")):
                module.load_state_dict(
                    {kind: tensors[f"{side}.{kind}"][i].float() for kind in ("weight", "bias")}
                )
        self.model.heads[name][-1].load_state_dict(
            {kind: tensors[f"head.out.{kind}"].float() for kind in ("weight", "bias")}
        )


if __name__ == "__main__":
    hub = Hub(Path(sys.argv[1]), Path(sys.argv[2]))
    serve(
        {"BatchSplit": hub.batch_split, "switching": hub.switching},
        {"adapters": adapters.__version__, "transformers": transformers.__version__},
    )
