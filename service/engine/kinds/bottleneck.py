"""Bottleneck adapters: `x += U·gelu(D·x + b_D) + b_U` at the feed-forward's output (AdaMix, arXiv
2205.12410, section 3; the maths is `adapters.bottleneck`'s)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.spec import AdapterSpec
from service.engine.sites import Add, Branch, Site

# MKL shares a product's rows among its threads, and sums the last rows of a share in another order
# if they are fewer than four. A row's sums would then depend on how many other rows its adapter has
# in the batch, and int8 would round some of them to another step. Multiples of four have given the
# same sums with any number of threads; from 32 rows on, so has any number of rows (tried up to 16
# threads). In float32 only: half precision has other kernels, and there a weight may be infinite,
# whose product with 0 is NaN and would spoil another adapter's rows.
FOUR, ALIGNED_BELOW = 4, 32


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

    def __init__(self, adapters: Sequence[Bottleneck], tokens: Sequence[slice], rows: int) -> None:
        """`tokens[i]` are those of `adapters[i]`, in ascending order, of `rows` in all."""
        self._sizes, self._places = _cuts(tokens, rows)
        self._first = [adapter.first_layer for adapter in adapters]
        self._layers = [adapter.layers for adapter in adapters]
        counts = [part.stop - part.start for part in tokens]
        aligned = counts
        if adapters[0].down.dtype == torch.float32:
            aligned = [n + -n % FOUR if n < ALIGNED_BELOW else n for n in counts]
        # the rows that follow an adapter's own join its products, up to a multiple of four
        self._joined = {
            i: slice(part.start, part.start + n)
            for i, (part, n) in enumerate(zip(tokens, aligned, strict=True))
            if n != counts[i]
        }
        shapes = [(n, adapter.down.shape[1]) for n, adapter in zip(aligned, adapters, strict=True)]
        sizes = [n * width for n, width in shapes]
        # one buffer for all adapters, so that GELU is one call
        self._inner = adapters[0].down.new_empty(sum(sizes))
        self._inners = [
            part.view(shape) for part, shape in zip(_split(self._inner, sizes), shapes, strict=True)
        ]
        self._foreign = [self._inners[i][counts[i] :] for i in self._joined]

    def at(self, layer: int) -> Mapping[Site, Add]:
        adapting = [(i, layer - first) for i, first in enumerate(self._first) if layer >= first]
        if not adapting:
            return {}
        return {"feed_forward": lambda _x, y: self._add(adapting, y)}

    def _add(self, adapting: list[tuple[int, int]], y: Tensor) -> None:
        """`adapting` are the adapters by their numbers, and which of their layers this is."""
        parts = _split(y, self._sizes)
        own = {i: parts[self._places[i]] for i, _ in adapting}
        whole = {i: self._whole(i, y) if i in self._joined else own[i] for i, _ in adapting}
        for i, at in adapting:
            down, bias, _, _ = self._layers[i][at]
            torch.addmm(bias, whole[i], down, out=self._inners[i])
        torch.ops.aten.gelu_(self._inner)
        for inner in self._foreign:
            inner.zero_()  # so that the second product adds 0 to rows of others
        for i, at in adapting:
            _, _, up, bias = self._layers[i][at]
            whole[i].addmm_(self._inners[i], up)
            if i in self._joined and self._joined[i].stop > len(y):
                own[i].copy_(whole[i][: len(own[i])])
            own[i].add_(bias)

    def _whole(self, i: int, y: Tensor) -> Tensor:
        """An adapter's rows with those that join them; a copy with zeros behind the last row."""
        rows = self._joined[i]
        lacking = rows.stop - len(y)
        return y[rows] if lacking <= 0 else F.pad(y[rows], (0, 0, 0, lacking))


def _cuts(parts: Sequence[slice], rows: int) -> tuple[list[int], list[int]]:
    """Sizes that cut `rows` at the ends of all parts, and which of the pieces each part is."""
    sizes, places, end = [], [], 0
    for part in parts:
        if part.start > end:
            sizes.append(part.start - end)
        places.append(len(sizes))
        sizes.append(part.stop - part.start)
        end = part.stop
    return [*sizes, rows - end], places


def _split(x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = torch.split(x, sizes)
    return parts
