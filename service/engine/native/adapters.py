"""A batch's adapters by the native kernels: one call per layer and site for any number of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from adapters.spec import INNER_SITES, LoraSite
from service.engine.kinds.bottleneck import Bottleneck
from service.engine.kinds.lora import Lora
from service.engine.kinds.registry import Combine, Weights
from service.engine.native.library import ACTIVATIONS, PART, Library, Parts
from service.engine.sites import Add, Site


class NativeBottlenecks:
    """What `kinds.bottleneck.Bottlenecks` does."""

    def __init__(
        self, library: Library, adapters: Sequence[Bottleneck], tokens: Sequence[slice], _rows: int
    ) -> None:
        """`tokens[i]` are those of `adapters[i]`."""
        self._library = library
        self._adapters = adapters  # kept alive: the parts hold the addresses of their weights
        self._first_layer = min(adapter.first_layer for adapter in adapters)
        self._parts = Parts(
            [
                PART.pack(
                    *_addresses(adapter.down, adapter.down_bias, adapter.up, adapter.up_bias),
                    adapter.down.shape[1],
                    adapter.first_layer,
                    part.start,
                    part.stop,
                    1.0,
                    ACTIVATIONS["gelu"],
                )
                for adapter, part in zip(adapters, tokens, strict=True)
            ]
        )

    @property
    def inner_rows(self) -> int:
        return 0

    def at(self, layer: int) -> Mapping[Site, Add]:
        return {"feed_forward": partial(self._add, layer)} if layer >= self._first_layer else {}

    def _add(self, layer: int, _x: Tensor, y: Tensor) -> None:
        self._library.adapt(self._parts, layer, y, y)


class NativeLoras:
    """What `kinds.lora.Loras` does."""

    def __init__(
        self, library: Library, adapters: Sequence[Lora], tokens: Sequence[slice], _rows: int
    ) -> None:
        """`tokens[i]` are those of `adapters[i]`."""
        self._library = library
        self._adapters = adapters  # kept alive: the parts hold the addresses of their weights
        sites: dict[LoraSite, list[tuple[Lora, slice]]] = {}
        for adapter, part in zip(adapters, tokens, strict=True):
            for site in adapter.pairs:
                sites.setdefault(site, []).append((adapter, part))
        self._first_layers = {
            site: min(adapter.first_layer for adapter, _ in own) for site, own in sites.items()
        }
        self._parts = {site: _parts(site, own) for site, own in sites.items()}
        self.inner_rows = max(
            (part.stop for site in INNER_SITES for _, part in sites.get(site, [])), default=0
        )

    def at(self, layer: int) -> Mapping[Site, Add]:
        return {
            site: partial(self._library.adapt, parts, layer)
            for site, parts in self._parts.items()
            if layer >= self._first_layers[site]
        }


def combined(library: Library) -> Mapping[type[Weights], Combine]:
    """The library's way with each kind of adapter."""
    return {
        Bottleneck: partial(NativeBottlenecks, library),
        Lora: partial(NativeLoras, library),
    }


def _parts(site: LoraSite, own: Sequence[tuple[Lora, slice]]) -> Parts:
    records = []
    for adapter, part in own:
        a, b = adapter.pairs[site]
        down, up = _addresses(a, b)
        where = a.shape[1], adapter.first_layer, part.start, part.stop
        records.append(PART.pack(down, 0, up, 0, *where, adapter.scale, ACTIVATIONS["none"]))
    return Parts(records)


def _addresses(*tensors: Tensor) -> list[int]:
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in tensors), (
        "the layers' offsets are those of the file"
    )
    return [tensor.data_ptr() for tensor in tensors]
