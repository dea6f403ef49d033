"""An adapter on the device, and the neighbouring rows of a batch that it is for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adapters.spec import AdapterSpec
from service.engine.kinds.registry import Weights

Pair = tuple[Tensor, Tensor]
"""Weight and bias."""


@dataclass(frozen=True, eq=False)
class Head:
    """In float32: out `[C, d]`; dense `[d, d]` and norm `[d]` where the file has them
    (docs/adapter-format.md, section 2)."""

    dense: Pair | None
    norm: Pair | None
    out: Pair


@dataclass(frozen=True, eq=False)
class Resident:
    """One adapter on the device: its weights in the backbone's dtype, laid out as in the file.
    `bytes` is the size of its tensors there."""

    spec: AdapterSpec
    weights: Weights
    head: Head
    bytes: int


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows of one adapter, and their tokens, in the packed batch."""

    resident: Resident
    rows: slice
    tokens: slice
