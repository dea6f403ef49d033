"""Linear layers by the native kernels. A row's output does not depend on the rows beside it, to the
bit."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from service.engine.activations import Activation
from service.engine.native.library import ACTIVATIONS, Library
from service.engine.quantized import quantized


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
    """With weights in int8. The inputs are rounded to 16 bits or a few less, not to 8: an error
    that does not matter beside that of the weights. So no input needs to be made smaller."""

    def __init__(self, library: Library, weight: Tensor, bias: Tensor) -> None:
        """`weight` is `[outputs, inputs]` in float32."""
        self.outputs = weight.shape[0]
        whole, scales = quantized(weight)
        self._packed = library.packed_int8(whole, scales.squeeze(1), bias)
        self._product = library.linear_int8
