"""A task's model with its adapter as one module, as one exports it to another runtime. It needs
this repository on the interpreter's path."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from adapters import backbone as backbones
from adapters.classifier import Batch, from_adapter
from adapters.file import load


class Adapted(nn.Module):
    """Token ids, mask and types, `[rows, tokens]`, to logits `[rows, labels]`."""

    def __init__(self, backbone: str, adapter: Path) -> None:
        super().__init__()
        self.model = from_adapter(backbones.load(backbone), load(adapter)).eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.model(Batch(ids=input_ids, types=token_type_ids, mask=attention_mask))
