"""The maths of LoRA (Hu et al. 2022, arXiv 2106.09685, section 4.1): a product of low rank beside
a linear module of the frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adapters.header import site_sizes
from adapters.mixture import Mixture, project
from adapters.spec import LoraSite

# Where BERT, RoBERTa, XLM-R, CamemBERT and ELECTRA of transformers have a layer's linear modules.
MODULES: Mapping[LoraSite, str] = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}


class Lora(nn.Module):
    """`scale · B·A·x` over the last dimension, which is added to a linear module's output for the
    input `x`: `[..., inputs]` → `[..., outputs]`. `a` is `[rank, inputs]`, `b` `[outputs, rank]`.

    A starts at random, uniformly as `nn.Linear` does it, and B at 0 (the paper's released code,
    `loralib.layers.Linear`; the paper has A from a normal distribution).
    """

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, inputs), a=math.sqrt(5)))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        self.scale = scale

    @classmethod
    def of(cls, a: Tensor, b: Tensor, scale: float) -> Lora:
        """With these weights."""
        made = cls(a.shape[1], b.shape[0], a.shape[0], scale)
        made.load_state_dict({"a": a, "b": b})
        return made

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.linear(x, self.a)
        return nn.functional.linear(inner, self.b) * self.scale


class RoutedLora(Mixture):
    """M experts of `Lora` at one site: parameters `a`, `[rank, inputs]` each, and `b`,
    `[outputs, rank]` each.

    This follows AdaMix's released code for GPT-2: github.com/microsoft/AdaMix at df5f2d15,
    NLG/loralib/layers.py, class `AdamixMergedLinear`. Its `__init__` makes the experts of A as
    copies of one random draw, and those of B of zeros. In training its `forward` draws A and B
    independently, each once for a mini-batch; in evaluation it averages A and B, each for itself.
    The scripts share B and not A (`--share_A 0 --share_B 1`, NLG/run_train_e2e.sh), which is the
    default here. They have a dropout before A and no second pass; here it is the trainer that
    decides on passes, and there is no such dropout.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rank: int,
        scale: float,
        experts: int,
        *,
        share_down: bool = False,
        share_up: bool = True,
    ) -> None:
        super().__init__(experts, share_down=share_down, share_up=share_up)
        first, (downs, ups) = Lora(inputs, outputs, rank, scale), self.counts
        self.a = nn.ParameterList(first.a.detach().clone() for _ in range(downs))
        self.b = nn.ParameterList(first.b.detach().clone() for _ in range(ups))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """What is added for the input `x`: `[B, T, inputs]` → `[B, T, outputs]`."""
        down, up = self.route
        return project([*self.b], None, up, project([*self.a], None, down, x)) * self.scale


def layer_of(
    ranks: Mapping[LoraSite, int], scale: float, hidden_size: int, intermediate_size: int | None
) -> nn.ModuleDict:
    """One layer's `Lora` modules by their sites."""
    return nn.ModuleDict(
        {
            site: Lora(*site_sizes(site, hidden_size, intermediate_size), rank, scale)
            for site, rank in ranks.items()
        }
    )
