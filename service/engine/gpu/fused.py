"""A batch's adapters and heads on a GPU, in a few launches for any number of tasks."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from adapters.spec import LoraSite, Pooling
from service.engine.gpu import kernels
from service.engine.gpu.tables import Tables
from service.engine.heads import logits
from service.engine.kinds.bottleneck import Bottleneck
from service.engine.kinds.lora import Lora
from service.engine.kinds.registry import Combine, Weights
from service.engine.resident import Pair, Segment
from service.engine.sites import Add, Site

# Tokens per tile. In a small batch tiles are small, so that more of the card's processors have one;
# in a large batch they are as tall as the matrix units need. Heads see few rows of a task.
SMALL, LARGE = 16, 64
FEW_TOKENS = 2048


class FusedBottlenecks:
    """What `kinds.bottleneck.Bottlenecks` does, in one launch per layer."""

    def __init__(self, adapters: Sequence[Bottleneck], tokens: Sequence[slice], rows: int) -> None:
        """`tokens[i]` are those of `adapters[i]`; others of the `rows` stay as they are."""
        self._adapters = adapters  # kept alive: the tables hold the addresses of their weights
        self.tables = Tables.of(
            tokens,
            [_addresses(adapter) for adapter in adapters],
            adapters[0].down.device,
            height=SMALL if rows <= FEW_TOKENS else LARGE,
            widest=max(adapter.down.shape[1] for adapter in adapters),
        )

    @property
    def inner_rows(self) -> int:
        return 0

    def at(self, layer: int) -> Mapping[Site, Add]:
        return launches(layer, self.tables)


def launches(layer: int, tables: Tables) -> Mapping[Site, Add]:
    """A layer's bottlenecks, as the tables say by the time of the launch."""
    return {"feed_forward": lambda _x, y: kernels.adapt(y, layer, tables)}


class FusedLoras:
    """What `kinds.lora.Loras` does, in one launch per layer and site."""

    def __init__(self, adapters: Sequence[Lora], tokens: Sequence[slice], rows: int) -> None:
        """`tokens[i]` are those of `adapters[i]`; others of the `rows` stay as they are."""
        self._adapters = adapters  # kept alive: the tables hold the addresses of their weights
        height = SMALL if rows <= FEW_TOKENS else LARGE
        sites = dict.fromkeys(site for adapter in adapters for site in adapter.pairs)
        self.inner_rows = rows
        self._tables = {site: _at_site(site, adapters, tokens, height) for site in sites}

    def at(self, layer: int) -> Mapping[Site, Add]:
        return {
            site: partial(_low_rank, layer=layer, tables=tables)
            for site, tables in self._tables.items()
        }


def _low_rank(x: Tensor, y: Tensor, layer: int, tables: Tables) -> None:
    kernels.low_rank(x, y, layer, tables)


def _at_site(
    site: LoraSite, adapters: Sequence[Lora], tokens: Sequence[slice], height: int
) -> Tables:
    """The rows and the weights of the adapters that have the site."""
    there = [
        (adapter.pairs[site], adapter, part)
        for adapter, part in zip(adapters, tokens, strict=True)
        if site in adapter.pairs
    ]
    assert all(a.is_contiguous() and b.is_contiguous() for (a, b), _, _ in there), (
        "the layers' offsets are those of the file"
    )
    return Tables.of(
        [part for _, _, part in there],
        [
            (a.data_ptr(), b.data_ptr(), a.shape[1], adapter.first_layer, _bits(adapter.scale), 0)
            for (a, b), adapter, _ in there
        ],
        there[0][0][0].device,
        height=height,
        widest=max(a.shape[1] for (a, _), _, _ in there),
    )


def _bits(number: float) -> int:
    """A float32 as an integer of the same bits, for a table of integers."""
    bits: int = struct.unpack("<i", struct.pack("<f", number))[0]
    return bits


ON_GPU: Mapping[type[Weights], Combine] = {Bottleneck: FusedBottlenecks, Lora: FusedLoras}


def fused_classify(
    pooled: Mapping[Pooling, Tensor], segments: Sequence[Segment], eps: float
) -> list[list[float]]:
    """What `heads.classify` does, in two launches and one copy to the host. Heads of prompts, which
    have a norm, take launches of their own."""
    inputs = {pooling: x.float().contiguous() for pooling, x in pooled.items()}
    prompts = [segment for segment in segments if segment.resident.head.norm is not None]
    plain = [segment for segment in segments if segment.resident.head.norm is None]
    widest = max(len(segment.resident.spec.labels) for segment in segments)
    some = next(iter(inputs.values()))
    out = some.new_empty(len(some), widest)
    if plain:
        dense = _dense(inputs, [s for s in plain if s.resident.head.dense is not None])
        sources = [
            inputs[s.resident.spec.pooling] if s.resident.head.dense is None else dense
            for s in plain
        ]
        _product(out, sources, plain, [s.resident.head.out for s in plain])
    for segment in prompts:
        rows = inputs[segment.resident.spec.pooling][segment.rows]
        answer = logits(rows, segment.resident.head, eps)
        out[segment.rows, : answer.shape[1]] = answer
    values: list[list[float]] = out.tolist()
    return [row[: len(s.resident.spec.labels)] for s in segments for row in values[s.rows]]


def compile_all(width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Launch once every kernel that a batch can need, on no rows, so that no request waits for the
    compiler. A first start takes seconds per kernel; later ones find them in Triton's cache."""
    x, out = torch.zeros(1, width, dtype=dtype, device=device), torch.empty(1, 1, device=device)
    kernels.add_norm(x, x, x[0], x[0], 1.0)
    for height in (SMALL, LARGE):
        for inner in kernels.INNERS:
            kernels.adapt(
                x,
                0,
                Tables.idle(1, 1, kernels.ADAPTER_COLUMNS, device, height=height, widest=inner),
            )
            kernels.low_rank(
                x,
                x,
                0,
                Tables.idle(1, 1, kernels.LORA_COLUMNS, device, height=height, widest=inner),
            )
    for columns in kernels.COLUMNS:
        nothing = Tables.idle(1, 1, kernels.PRODUCT_COLUMNS, device, height=SMALL, widest=columns)
        kernels.grouped(out, width, nothing)


def _dense(inputs: Mapping[Pooling, Tensor], segments: Sequence[Segment]) -> Tensor:
    """tanh(W·x + b) of the segments' rows, `[rows, d]`; other rows are arbitrary."""
    out = torch.empty_like(next(iter(inputs.values())))
    if segments:
        weights = [segment.resident.head.dense for segment in segments]
        sources = [inputs[segment.resident.spec.pooling] for segment in segments]
        _product(out, sources, segments, [pair for pair in weights if pair is not None])
    return out.tanh_()


def _product(
    out: Tensor,
    sources: Sequence[Tensor],
    segments: Sequence[Segment],
    weights: Sequence[Pair],
) -> None:
    columns = [
        (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), len(bias))
        for x, (weight, bias) in zip(sources, weights, strict=True)
    ]
    rows = [segment.rows for segment in segments]
    tables = Tables.of(
        rows, columns, out.device, height=SMALL, widest=max(len(bias) for _, bias in weights)
    )
    kernels.grouped(out, sources[0].shape[1], tables)


def _addresses(adapter: Bottleneck) -> tuple[int, ...]:
    """What `kernels.adapt` reads of one adapter."""
    whole = (adapter.down, adapter.down_bias, adapter.up, adapter.up_bias)
    assert all(tensor.is_contiguous() for tensor in whole), (
        "the layers' offsets are those of the file"
    )
    return (
        *(tensor.data_ptr() for tensor in whole),
        adapter.down.shape[1],
        adapter.first_layer,
    )
