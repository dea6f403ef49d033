"""LoRA: `y += scale · B·A·x` at some linear modules of a layer (Hu et al. 2022, arXiv 2106.09685,
section 4.1; the maths is `adapters.lora`'s)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from adapters.spec import INNER_SITES, AdapterSpec, LoraSite
from service.engine.kinds.parts import Parts
from service.engine.sites import Add, Branch, Site


@dataclass(frozen=True, eq=False)
class Lora:
    """One adapter's tensors on the device, as they lie in the file: at each of its sites A
    `[L, r, inputs]` and B `[L, outputs, r]`, of L layers from `first_layer` on."""

    pairs: Mapping[LoraSite, tuple[Tensor, Tensor]]
    scale: float
    first_layer: int

    @classmethod
    def load(cls, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> Lora:
        """From an adapter file's tensors."""
        assert spec.ranks is not None, "the spec is LoRA's"
        assert spec.scale is not None, "the spec is LoRA's"
        return cls(
            pairs={
                site: (tensors[f"lora.{site}.a"], tensors[f"lora.{site}.b"]) for site in spec.ranks
            },
            scale=spec.scale,
            first_layer=spec.first_layer,
        )

    @property
    def branch(self) -> Branch:
        # Rows part before the layer's attention, also if only a later module is changed.
        return Branch(self.first_layer, late=False)

    @cached_property
    def layers(self) -> Mapping[LoraSite, list[tuple[Tensor, Tensor]]]:
        """By site, per adapted layer: Aᵀ `[inputs, r]` and Bᵀ `[r, outputs]`; views that all
        batches share."""
        return {
            site: list(zip(a.mT.unbind(), b.mT.unbind(), strict=True))
            for site, (a, b) in self.pairs.items()
        }


class Loras:
    """The LoRA adapters of one batch, each for its own rows: two products per adapter, layer and
    site that it has. Adapters without a site cost nothing there."""

    def __init__(self, adapters: Sequence[Lora], tokens: Sequence[slice], _rows: int) -> None:
        """`tokens[i]` are those of `adapters[i]`, in ascending order."""
        numbers: dict[LoraSite, list[int]] = defaultdict(list)
        for i, adapter in enumerate(adapters):
            for site in adapter.pairs:
                numbers[site].append(i)
        # sites that the same adapters have share a group, and so cut their input once
        groups = {
            own: _Group([adapters[i] for i in own], [tokens[i] for i in own])
            for own in {tuple(own) for own in numbers.values()}
        }
        self._groups = {site: groups[tuple(own)] for site, own in numbers.items()}
        self.inner_rows = max(
            (self._groups[site].end for site in INNER_SITES if site in self._groups), default=0
        )

    def at(self, layer: int) -> Mapping[Site, Add]:
        return {
            site: partial(group.add, site, layer)
            for site, group in self._groups.items()
            if layer >= group.first_layer
        }


class _Group:
    """Adapters of a batch that have the same sites, and their rows."""

    def __init__(self, adapters: Sequence[Lora], tokens: Sequence[slice]) -> None:
        some = next(iter(adapters[0].pairs.values()))[0]
        self._adapters = adapters
        self._parts = Parts(tokens, some.dtype)
        self._inners = self._buffers(some)
        self._last: tuple[Tensor, list[Tensor]] | None = None
        self.first_layer = min(adapter.first_layer for adapter in adapters)
        self.end = self._parts.end

    def add(self, site: LoraSite, layer: int, x: Tensor, y: Tensor) -> None:
        own = self._parts.of(y)
        whole = self._parts.whole(y, own)
        inputs = self._inputs(x)
        for i, adapter in enumerate(self._adapters):
            at = layer - adapter.first_layer
            if at < 0:
                continue
            a, b = adapter.layers[site][at]
            inner, foreign = self._inners[i, a.shape[1]]
            torch.mm(inputs[i], a, out=inner)
            if foreign is not None:
                foreign.zero_()  # so that the second product adds 0 to rows of others
            whole[i].addmm_(inner, b, alpha=adapter.scale)
            self._parts.settle(whole[i], own[i], i, len(y))

    def _inputs(self, x: Tensor) -> list[Tensor]:
        """The rows of each adapter's products. Query, key and value have the same input."""
        if self._last is None or self._last[0] is not x:
            self._last = x, self._parts.whole(x, self._parts.of(x))
        return self._last[1]

    def _buffers(self, some: Tensor) -> dict[tuple[int, int], tuple[Tensor, Tensor | None]]:
        """For each adapter and rank of it, where A·x goes, and the rows of it that belong to
        others. One piece of memory: only one product at a time is under way."""
        sizes = {
            (i, a.shape[1]): self._parts.heights[i]
            for i, adapter in enumerate(self._adapters)
            for a, _ in adapter.pairs.values()
        }
        memory = some.new_empty(max(height * rank for (_, rank), height in sizes.items()))
        found = {}
        for (i, rank), height in sizes.items():
            inner = memory[: height * rank].view(height, rank)
            own = self._parts.own_heights[i]
            found[i, rank] = inner, inner[own:] if own < height else None
        return found
