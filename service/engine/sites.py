"""Where adapters touch a layer, and what a batch's adapters look like to the encoder.

A kind of adapter (`service.engine.kinds`) says at which sites it adds something, and what. The
encoder asks once per layer, and does nothing at a site that no adapter of the batch touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Site = Literal["query", "key", "value", "attention_out", "up", "gate", "down", "feed_forward"]
"""The linear modules of `architecture.Layer` by name, before any activation; `feed_forward` is the
whole of up, gate, activation and down, before the residual."""

Add = Callable[[Tensor, Tensor], None]
"""Changes a site's output `[T, outputs]` in place, given its input `[T, inputs]` first."""


class Adaptation(Protocol):
    """The adapters of one batch."""

    @property
    def inner_rows(self) -> int:
        """How many rows, from the first on, hold all whose adapters are within the feed-forward.
        There the additions take `x` and `y` of that many rows or more."""

    def at(self, layer: int) -> Mapping[Site, Add]:
        """What they add in a layer, site by site."""


class _Bare:
    inner_rows = 0

    def at(self, _layer: int) -> Mapping[Site, Add]:
        return {}


BARE: Adaptation = _Bare()
"""No adapters: the backbone alone."""


class Branch(NamedTuple):
    """The first place where an adapter changes its rows: in `layer`, and there `late` if at the
    feed-forward's output only. Ordered as the encoder meets them."""

    layer: int
    late: bool
