"""Per-row heads: pooled rows of many tasks → logits, each task with its own number of labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from service.slots import Resident


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows of one adapter, and their tokens, in the packed batch."""

    resident: Resident
    rows: slice
    tokens: slice


def logits(pooled: Tensor, resident: Resident, eps: float) -> Tensor:
    """`[n, d]` rows of one adapter → `[n, C]`, in float32; `eps` is that of the backbone's LayerNorms."""
    x = pooled.float()
    if resident.dense is not None and resident.norm is not None:
        x = F.layer_norm(F.gelu(F.linear(x, *resident.dense)), x.shape[-1:], *resident.norm, eps)
    elif resident.dense is not None:
        x = torch.tanh(F.linear(x, *resident.dense))
    return F.linear(x, *resident.out)
