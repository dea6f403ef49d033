"""The activations of a feed-forward, by the names that checkpoints give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from transformers.activations import ACT2FN


@dataclass(frozen=True)
class Activation:
    """`lowest` is the smallest value it gives, if that is near 0: int8 then spends nearly all of a
    byte on what is above 0. `fused` is oneDNN's name for it, where it can end a product."""

    function: Callable[[Tensor], Tensor]
    lowest: float | None = None
    fused: str | None = None


ACTIVATIONS = {
    "gelu": Activation(ACT2FN["gelu"], lowest=-0.17, fused="gelu"),
    "gelu_new": Activation(ACT2FN["gelu_new"], lowest=-0.1701),
    "relu": Activation(ACT2FN["relu"], lowest=0.0, fused="relu"),
    # Of transformers' others those that have no parameters and work number by number.
    **{
        name: Activation(ACT2FN[name])
        for name in [
            "gelu_10",
            "gelu_accurate",
            "gelu_fast",
            "gelu_python",
            "gelu_python_tanh",
            "gelu_pytorch_tanh",
            "hardswish",
            "laplace",
            "leaky_relu",
            "linear",
            "mish",
            "quick_gelu",
            "relu2",
            "relu6",
            "sigmoid",
            "silu",
            "swish",
            "tanh",
        ]
    },
}
