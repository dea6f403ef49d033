"""Classification heads: pooled rows of many tasks → logits, each task with its own number of
labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.spec import Pooling
from service.engine.resident import Head, Segment

Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`x·Wᵀ + b`."""


def classify(
    pooled: Mapping[Pooling, Tensor],
    segments: Sequence[Segment],
    eps: float,
    linear: Product = F.linear,
) -> list[list[float]]:
    """The logits of each row, in order. `pooled` has all rows, `[B, d]`, by each pooling that a
    segment has."""
    found: list[list[float]] = []
    for segment in segments:
        rows = pooled[segment.resident.spec.pooling][segment.rows]
        found += logits(rows, segment.resident.head, eps, linear).tolist()
    return found


def logits(pooled: Tensor, head: Head, eps: float, linear: Product = F.linear) -> Tensor:
    """`[n, d]` rows of one adapter → `[n, C]`, in float32; `eps` is that of the backbone's
    LayerNorms."""
    x = pooled.float()
    if head.dense is not None and head.norm is not None:
        x = F.layer_norm(F.gelu(linear(x, *head.dense)), x.shape[-1:], *head.norm, eps)
    elif head.dense is not None:
        x = torch.tanh(linear(x, *head.dense))
    return linear(x, *head.out)
