"""Linear layers as a device holds them: in its dtype, or laid out for a CPU's matrix kernels. Those
in int8 are in `service.engine.quantized`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.activations import Activation

# oneDNN compiles a kernel for every number of rows that it meets: a third of a millisecond and half
# a megabyte each. So it is given these numbers alone, and multiples of ROUND below the smallest.
# 256 rows of a feed-forward's inner layer also fit a cache.
BLOCKS = (256, 128, 64)
ROUND = 8

# Kernels that any number of rows suits take so many at once: those of a feed-forward's inner layer
# then take a few megabytes.
PIECE = 768


class Linear(Protocol):
    """`x·Wᵀ + b`, `[n, inputs]` → `[n, outputs]`, written to `out` if that is given."""

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor: ...

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        """The same, then the activation."""

    @property
    def outputs(self) -> int: ...

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds on the device."""


@dataclass(frozen=True)
class Plain:
    """The weights as they are, by torch's own product: on GPUs, in half precision, and on CPUs
    that `prepacks` does not know."""

    weight: Tensor
    bias: Tensor

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        assert out is None, "only layers that work in blocks are told where to write"
        return F.linear(x, self.weight, self.bias)

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        return activation.function(self(x))


class Prepacked:
    """float32 in the layout of oneDNN's kernels, by the operators that torch.compile's `freezing`
    emits. 8 to 16 % faster than `F.linear`, which lays the weights out anew in every call. An
    activation that oneDNN can fuse costs next to nothing."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.outputs = weight.shape[0]
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, BLOCKS[0])
        self._bias = bias

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._weight, self._bias

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        y = self._product(x, "none")
        return y if out is None else out.copy_(y)

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        if activation.fused is None:
            return activation.function(self(x))
        return self._product(x, activation.fused)

    def _product(self, x: Tensor, then: str) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, then, [], "none"
        )
        return y


@dataclass(frozen=True)
class Table:
    """Embeddings: `[n]` ids → `[n, d]`."""

    weight: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def __call__(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


@dataclass(frozen=True)
class FeedForward:
    """Up, activation, down: `[n, d]` → `[n, d]`. With a gate, the activation is over the gate's
    output, and up multiplies what it gives (Shazeer 2020, arXiv 2002.05202)."""

    up: Linear
    activation: Activation
    down: Linear
    gate: Linear | None = None

    @property
    def outputs(self) -> int:
        return self.down.outputs

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        gate = () if self.gate is None else self.gate.tensors
        return *self.up.tensors, *gate, *self.down.tensors

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if self.gate is None:
            inner = self.up.activated(x, self.activation)
        else:
            inner = self.gate.activated(x, self.activation).mul_(self.up(x))
        return self.down(inner, out)


class Blockwise(Protocol):
    """What `in_blocks` runs: a linear layer or a whole feed-forward."""

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor: ...

    @property
    def outputs(self) -> int: ...


def prepacks() -> bool:
    """Whether `Prepacked` is known to be faster on this CPU."""
    built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    return built_in and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def blocks(rows: int) -> list[slice]:
    """Slices of at most ten different sizes, so that all their kernels are soon compiled; `rows` is
    a multiple of ROUND."""
    cuts = []
    start = 0
    for size in BLOCKS:
        while rows - start >= size:
            cuts.append(slice(start, start + size))
            start += size
    return [*cuts, slice(start, rows)] if start < rows else cuts


def pieces(rows: int) -> list[slice]:
    """Slices of at most PIECE rows."""
    return [slice(start, min(start + PIECE, rows)) for start in range(0, rows, PIECE)]


def in_blocks(layer: Blockwise, x: Tensor, parts: list[slice]) -> Tensor:
    """The layer on each part of the rows."""
    if len(parts) == 1:
        return layer(x)
    out = x.new_empty(x.shape[0], layer.outputs)
    for part in parts:
        layer(x[part], out[part])
    return out
