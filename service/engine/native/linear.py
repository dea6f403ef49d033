"""Linear layers by the native kernels. A row's output does not depend on the rows beside it, to the
bit."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from service.engine.activations import Activation
from service.engine.native.library import ACTIVATIONS, Library
from service.engine.quantized import quantized, smoothing


class Native:
    """In float32."""

    def __init__(self, library: Library, weight: Tensor, bias: Tensor) -> None:
        """`weight` is `[outputs, inputs]`."""
        self.outputs = weight.shape[0]
        self._packed = library.packed(weight, bias)
        self._product: Callable[..., Tensor] = library.linear

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self._packed,)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._product(x, self._packed, self.outputs, ACTIVATIONS["none"], out)

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        fused = ACTIVATIONS.get(activation.fused or "")
        if fused is None:
            return activation.function(self(x))
        return self._product(x, self._packed, self.outputs, fused)


class NativeQuantized(Native):
    """With weights in int8.

    Inputs are rounded row by row, to 16 bits or, where the processor has VNNI, to 8
    (`Library.int8_inputs`). 16 bits lose nothing beside the weights. So do 8 bits, if large inputs
    are made smaller first.
    """

    def __init__(
        self, library: Library, weight: Tensor, bias: Tensor, *, largest: Tensor | None = None
    ) -> None:
        """`weight` is `[outputs, inputs]` in float32. `largest`, `[inputs]`, is how large each
        input tends to be (`service.engine.quantized.smoothing`)."""
        self.outputs = weight.shape[0]
        factors = None
        if largest is not None:
            factors = smoothing(largest, weight)
            weight = weight / factors
        self._packed = library.packed_int8(*in_blocks(weight, library.int8_block), bias, factors)
        self._product = library.linear_int8


def in_blocks(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """A weight `[outputs, inputs]` in int8, and the scales of each row's blocks, `[outputs,
    blocks]`."""
    outputs, inputs = weight.shape
    padded = F.pad(weight, (0, -inputs % block)).view(-1, block)
    whole, scales = quantized(padded)
    return whole.view(outputs, -1)[:, :inputs], scales.view(outputs, -1)
