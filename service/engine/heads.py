"""Per-row heads: pooled rows of many tasks → logits, each task with its own number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.spec import Pooling
from service.engine.slots import Resident


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows of one adapter, and their tokens, in the packed batch."""

    resident: Resident
    rows: slice
    tokens: slice


def classify(
    pooled: Mapping[Pooling, Tensor], segments: Sequence[Segment], eps: float
) -> list[list[float]]:
    """The logits of each row, in order; `pooled` has all rows, `[B, d]`, by each pooling that a
    segment has."""
    found: list[list[float]] = []
    for segment in segments:
        found += logits(
            pooled[segment.resident.spec.pooling][segment.rows], segment.resident, eps
        ).tolist()
    return found


def logits(pooled: Tensor, resident: Resident, eps: float) -> Tensor:
    """`[n, d]` rows of one adapter → `[n, C]`, in float32; `eps` is that of the backbone's
    LayerNorms."""
    x = pooled.float()
    if resident.dense is not None and resident.norm is not None:
        x = F.layer_norm(F.gelu(F.linear(x, *resident.dense)), x.shape[-1:], *resident.norm, eps)
    elif resident.dense is not None:
        x = torch.tanh(F.linear(x, *resident.dense))
    return F.linear(x, *resident.out)
