"""A batch's adapters and heads on a GPU: a few launches, whatever the number of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapters.spec import Pooling
from service.engine.gpu import kernels
from service.engine.gpu.tables import Tables
from service.engine.heads import Segment, logits
from service.engine.slots import Resident

# Tokens of a tile: few where there are few, so that more of the card's processors have one; else
# what fills their matrix units. Heads see few rows of a task.
SMALL, LARGE = 16, 64
FEW_TOKENS = 2048


class FusedAdaptation:
    """What `Adaptation` does, in one launch a layer."""

    def __init__(self, segments: Sequence[Segment], rows: int) -> None:
        """Of `rows`, those that belong to no segment stay as they are."""
        residents = [segment.resident for segment in segments]
        self._residents = residents  # kept: the tables know their weights by address alone
        self.tables = Tables.of(
            [segment.tokens for segment in segments],
            [_addresses(resident) for resident in residents],
            residents[0].down.device,
            height=SMALL if rows <= FEW_TOKENS else LARGE,
            widest=max(resident.spec.bottleneck for resident in residents),
        )

    def __call__(self, layer: int, x: Tensor) -> None:
        """`x` is the feed-forward's output, `[rows, d]`."""
        kernels.adapt(x, layer, self.tables)


def fused_classify(
    pooled: Mapping[Pooling, Tensor], segments: Sequence[Segment], eps: float
) -> list[list[float]]:
    """What `heads.classify` does, in two launches and one copy to the host; heads of prompts add
    theirs one by one."""
    inputs = {pooling: x.float().contiguous() for pooling, x in pooled.items()}
    prompts = [segment for segment in segments if segment.resident.norm is not None]
    plain = [segment for segment in segments if segment.resident.norm is None]
    widest = max(len(segment.resident.spec.labels) for segment in segments)
    some = next(iter(inputs.values()))
    out = some.new_empty(len(some), widest)
    if plain:
        dense = _dense(inputs, [segment for segment in plain if segment.resident.dense is not None])
        sources = [
            inputs[s.resident.spec.pooling] if s.resident.dense is None else dense for s in plain
        ]
        _product(out, sources, plain, [segment.resident.out for segment in plain])
    for segment in prompts:
        answer = logits(inputs[segment.resident.spec.pooling][segment.rows], segment.resident, eps)
        out[segment.rows, : answer.shape[1]] = answer
    values: list[list[float]] = out.tolist()
    return [row[: len(s.resident.spec.labels)] for s in segments for row in values[s.rows]]


def compile_all(width: int, dtype: torch.dtype, device: torch.device) -> None:
    """Launch every kernel that a batch may ask for on nothing, so that no request waits for the
    compiler: seconds each at a first start, later ones find them in Triton's cache."""
    x, out = torch.zeros(1, width, dtype=dtype, device=device), torch.empty(1, 1, device=device)
    kernels.add_norm(x, x, x[0], x[0], 1.0)
    for height in (SMALL, LARGE):
        for inner in kernels.INNERS:
            kernels.adapt(
                x,
                0,
                Tables.idle(1, 1, kernels.ADAPTER_COLUMNS, device, height=height, widest=inner),
            )
    for columns in kernels.COLUMNS:
        nothing = Tables.idle(1, 1, kernels.PRODUCT_COLUMNS, device, height=SMALL, widest=columns)
        kernels.grouped(out, width, nothing)


def _dense(inputs: Mapping[Pooling, Tensor], segments: Sequence[Segment]) -> Tensor:
    """tanh(W·x + b) of the segments' rows, `[rows, d]`; others' are anything."""
    out = torch.empty_like(next(iter(inputs.values())))
    if segments:
        weights = [segment.resident.dense for segment in segments]
        sources = [inputs[segment.resident.spec.pooling] for segment in segments]
        _product(out, sources, segments, [pair for pair in weights if pair is not None])
    return out.tanh_()


def _product(
    out: Tensor,
    sources: Sequence[Tensor],
    segments: Sequence[Segment],
    weights: Sequence[tuple[Tensor, Tensor]],
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


def _addresses(resident: Resident) -> tuple[int, ...]:
    """What `kernels.adapt` reads of one adapter; its weights lie as in the file, and are seen
    transposed."""
    down, up = resident.down.transpose(1, 2), resident.up.transpose(1, 2)
    whole = (down, resident.down_bias, up, resident.up_bias)
    assert all(tensor.is_contiguous() for tensor in whole), (
        "the layers' offsets are those of the file"
    )
    return (
        *(tensor.data_ptr() for tensor in whole),
        resident.spec.bottleneck,
        resident.spec.first_layer,
    )
