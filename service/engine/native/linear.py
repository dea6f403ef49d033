"""A linear layer by the native kernels."""

from __future__ import annotations

from torch import Tensor

from service.engine.activations import Activation
from service.engine.native.library import ACTIVATIONS, Library


class Native:
    """float32, laid out for `kernels.cpp`. A row's output does not depend on the rows beside it, to
    the bit."""

    def __init__(self, library: Library, weight: Tensor, bias: Tensor) -> None:
        self.outputs = weight.shape[0]
        self._library = library
        self._packed = library.packed(weight, bias)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self._packed,)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._library.linear(x, self._packed, self.outputs, ACTIVATIONS["none"], out)

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        fused = ACTIVATIONS.get(activation.fused or "")
        if fused is None:
            return activation.function(self(x))
        return self._library.linear(x, self._packed, self.outputs, fused)
