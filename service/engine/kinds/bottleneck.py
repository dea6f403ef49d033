"""Bottleneck adapters: `x += U·gelu(D·x + b_D) + b_U` at the feed-forward's output (AdaMix, arXiv
2205.12410, section 3; the maths is `adapters.bottleneck`'s)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adapters.spec import AdapterSpec
from service.engine.kinds.parts import Parts, split
from service.engine.sites import Add, Branch, Site

# oneDNN compiles GELU for each number of values that it meets, and keeps the last thousand of these
# kernels. They lie scattered over the heap, so that the memory between them cannot be used again
# for large arrays: the process grew by 80 MiB. So the number of values is a multiple of this.
GELU_STEP = 4096


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """One adapter's tensors on the device, as they lie in the file: down `[L, r, d]`, its bias
    `[L, r]`, up `[L, d, r]`, its bias `[L, d]`, of L layers from `first_layer` on."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    first_layer: int

    @classmethod
    def load(cls, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> Bottleneck:
        """From an adapter file's tensors."""
        return cls(
            down=tensors["down.weight"],
            down_bias=tensors["down.bias"],
            up=tensors["up.weight"],
            up_bias=tensors["up.bias"],
            first_layer=spec.first_layer,
        )

    @property
    def branch(self) -> Branch:
        return Branch(self.first_layer, late=True)

    @cached_property
    def layers(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Per adapted layer: Dᵀ `[d, r]`, its bias, Uᵀ `[r, d]`, its bias; views that all batches
        share."""
        return list(
            zip(
                self.down.mT.unbind(),
                self.down_bias.unbind(),
                self.up.mT.unbind(),
                self.up_bias.unbind(),
                strict=True,
            )
        )


class Bottlenecks:
    """The bottlenecks of one batch, each for its own rows: two products per adapter and layer."""

    def __init__(self, adapters: Sequence[Bottleneck], tokens: Sequence[slice], _rows: int) -> None:
        """`tokens[i]` are those of `adapters[i]`, in ascending order."""
        self._parts = Parts(tokens, adapters[0].down.dtype)
        self._first = [adapter.first_layer for adapter in adapters]
        self._layers = [adapter.layers for adapter in adapters]
        heights = self._parts.heights
        shapes = [(n, adapter.down.shape[1]) for n, adapter in zip(heights, adapters, strict=True)]
        sizes = [n * width for n, width in shapes]
        # one buffer for all adapters, so that GELU is one call
        spare = -sum(sizes) % GELU_STEP
        self._inner = adapters[0].down.new_empty(sum(sizes) + spare)
        self._inner[sum(sizes) :] = 0.0
        self._inners = [
            part.view(shape)
            for part, shape in zip(split(self._inner, [*sizes, spare]), shapes, strict=False)
        ]
        self._foreign = [
            inner[own:]
            for inner, own in zip(self._inners, self._parts.own_heights, strict=True)
            if len(inner) > own
        ]

    @property
    def inner_rows(self) -> int:
        return 0

    def at(self, layer: int) -> Mapping[Site, Add]:
        adapting = [(i, layer - first) for i, first in enumerate(self._first) if layer >= first]
        if not adapting:
            return {}
        return {"feed_forward": lambda _x, y: self._add(adapting, y)}

    def _add(self, adapting: list[tuple[int, int]], y: Tensor) -> None:
        """`adapting` are the adapters by their numbers, and which of their layers this is."""
        own = self._parts.of(y)
        whole = self._parts.whole(y, own)
        for i, at in adapting:
            down, bias, _, _ = self._layers[i][at]
            torch.addmm(bias, whole[i], down, out=self._inners[i])
        torch.ops.aten.gelu_(self._inner)
        for inner in self._foreign:
            inner.zero_()  # so that the second product adds 0 to rows of others
        for i, at in adapting:
            _, _, up, bias = self._layers[i][at]
            whole[i].addmm_(self._inners[i], up)
            self._parts.settle(whole[i], own[i], i, len(y))
            own[i].add_(bias)
