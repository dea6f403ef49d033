"""LoRA: `y += scale · B·A·x` at some linear modules of a layer (Hu et al. 2022, arXiv 2106.09685,
section 4.1; the maths is `adapters.lora`'s)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from adapters.spec import AdapterSpec, LoraSite
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

    def __init__(self, adapters: Sequence[Lora], tokens: Sequence[slice], rows: int) -> None:
        """`tokens[i]` are those of `adapters[i]`, in ascending order, of `rows` in all."""
        self._adapters = adapters
        self._at_site: dict[LoraSite, list[int]] = {}
        for i, adapter in enumerate(adapters):
            for site in adapter.pairs:
                self._at_site.setdefault(site, []).append(i)
        some = next(iter(adapters[0].pairs.values()))[0]
        self._parts = Parts(tokens, rows, some.dtype)
        self._inners = self._buffers(some)

    def at(self, layer: int) -> Mapping[Site, Add]:
        found: dict[Site, Add] = {}
        for site, adapters in self._at_site.items():
            adapting = [i for i in adapters if layer >= self._adapters[i].first_layer]
            if adapting:
                found[site] = partial(self._add, site, layer, adapting)
        return found

    def _add(self, site: LoraSite, layer: int, adapting: list[int], x: Tensor, y: Tensor) -> None:
        own = self._parts.of(y, adapting)
        whole = self._parts.whole(y, own)
        inputs = self._parts.whole(x, self._parts.of(x, adapting))
        for i in adapting:
            adapter = self._adapters[i]
            a, b = adapter.layers[site][layer - adapter.first_layer]
            inner, foreign = self._inners[i, a.shape[1]]
            torch.mm(inputs[i], a, out=inner)
            if foreign is not None:
                foreign.zero_()  # so that the second product adds 0 to rows of others
            whole[i].addmm_(inner, b, alpha=adapter.scale)
            self._parts.settle(whole[i], own[i], i, len(y))

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
