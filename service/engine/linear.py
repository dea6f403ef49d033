"""The backbone's weights as a device holds them: in its dtype, or laid out for a CPU's matrix
kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# oneDNN compiles a kernel for every number of rows that it meets: a third of a millisecond and half
# a megabyte each. So it meets these alone, and multiples of ROUND below the smallest. 256 rows of a
# feed-forward's inner layer also fit a cache.
BLOCKS = (256, 128, 64)
ROUND = 8


class Linear(Protocol):
    """`x·Wᵀ + b`, `[n, inputs]` → `[n, outputs]`, written to `out` if that is given."""

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor: ...

    @property
    def outputs(self) -> int: ...

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that it holds on the device."""


@dataclass(frozen=True)
class Plain:
    """The weights as they are, by torch's own product: on GPUs, in half precision, and on CPUs
    unknown to us."""

    weight: Tensor
    bias: Tensor

    @property
    def outputs(self) -> int:
        return self.weight.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.weight, self.bias

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        assert out is None, "only layers that work in blocks are given where to write"
        return F.linear(x, self.weight, self.bias)


class Prepacked:
    """float32 in the layout of oneDNN's kernels, by the operators that torch.compile's `freezing`
    emits; 8 to 16 % faster than `F.linear`, which lays the weights out anew in every call. Exact
    GELU costs next to nothing if it is fused."""

    def __init__(self, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> None:
        self.outputs = weight.shape[0]
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, BLOCKS[0])
        self._bias = bias
        self._after = "gelu" if gelu else "none"

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self._weight, self._bias

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, self._after, [], "none"
        )
        return y if out is None else out.copy_(y)


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
    """Up, activation (if it is not fused into `up`), down."""

    up: Linear
    activation: Callable[[Tensor], Tensor] | None
    down: Linear

    @property
    def outputs(self) -> int:
        return self.down.outputs

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return *self.up.tensors, *self.down.tensors

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        inner = self.up(x)
        return self.down(inner if self.activation is None else self.activation(inner), out)


def prepacks() -> bool:
    """Whether this CPU is one that `Prepacked` is known to pay on."""
    built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    return built_in and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def blocks(rows: int) -> list[slice]:
    """Slices of so few different sizes that their kernels are soon all there; `rows` is a multiple
    of ROUND."""
    cuts = []
    start = 0
    for size in BLOCKS:
        while rows - start >= size:
            cuts.append(slice(start, start + size))
            start += size
    return [*cuts, slice(start, rows)] if start < rows else cuts


def in_blocks(layer: Linear, x: Tensor, parts: list[slice]) -> Tensor:
    """The layer on each part of the rows."""
    if len(parts) == 1:
        return layer(x)
    out = x.new_empty(x.shape[0], layer.outputs)
    for part in parts:
        layer(x[part], out[part])
    return out
