"""The description of an encoder: its modules by their role, and how a layer is built from them.

A family (`service.engine.families`) reads it from a checkpoint. Everything else in the engine works
from it alone. What a description can say and the engine cannot run yet is refused by
`check_supported`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from torch import nn

from adapters.errors import BackboneError
from service.engine.activations import ACTIVATIONS

Norms = Literal["post", "pre"]
"""`post`: LayerNorm(x + f(x)), as in BERT; `pre`: x + f(LayerNorm(x))."""


@dataclass(frozen=True)
class Numbering:
    """The position ids of a row's tokens."""

    first: int = 0
    uncounted: int | None = None  # a token that takes no position and stands at its own id

    def of(self, ids: list[int]) -> Sequence[int]:
        """One position id per token."""
        if self.uncounted is None or self.uncounted not in ids:
            return range(self.first, self.first + len(ids))
        counted = accumulate(token != self.uncounted for token in ids)
        return [
            token if token == self.uncounted else self.first - 1 + n
            for token, n in zip(ids, counted, strict=True)
        ]


@dataclass(frozen=True)
class LearnedPositions:
    """One learned vector per position, added to the word's."""

    table: nn.Embedding


@dataclass(frozen=True)
class RotaryPositions:
    """Queries and keys are rotated by an angle that grows with the position (RoFormer, arXiv
    2104.09864)."""

    theta: float


@dataclass(frozen=True)
class RelativePositions:
    """Attention scores depend on the distance between two tokens, in `buckets` steps."""

    buckets: int


Positions = LearnedPositions | RotaryPositions | RelativePositions


@dataclass(frozen=True)
class Embeddings:
    """word + token type + position, then LayerNorm, then a projection to the layers' width."""

    words: nn.Embedding
    types: nn.Embedding | None
    norm: nn.LayerNorm
    projection: nn.Linear | None = None


@dataclass(frozen=True)
class Layer:
    """One layer. The linear modules are the sites that an adapter can touch, under these names
    (`service.engine.sites`). A linear module or a norm may lack a bias."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_out: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    feed_forward_norm: nn.LayerNorm
    activation: str  # one of ACTIVATIONS
    norms: Norms = "post"
    gate: nn.Linear | None = None  # a gated feed-forward: down(activation(gate(x)) · up(x))
    window: int | None = None  # tokens attend to so many on either side; None: to all of the row


@dataclass(frozen=True)
class Architecture:
    """An encoder: what a family reads from a checkpoint. It holds the checkpoint's modules, so keep
    it no longer than it takes to read them."""

    name: str  # the backbone's, for messages
    width: int  # hidden size
    heads: int
    norm_eps: float
    positions: Positions
    numbering: Numbering
    embeddings: Embeddings
    layers: tuple[Layer, ...]
    pooler: nn.Linear | None  # dense, before a tanh, over the first token


def check_supported(architecture: Architecture) -> LearnedPositions:
    """The positions, of the one kind that the engine computes. Raises BackboneError for what it
    cannot compute."""
    name, positions = architecture.name, architecture.positions
    if not isinstance(positions, LearnedPositions):
        kind = type(positions).__name__.removesuffix("Positions").lower()
        raise BackboneError(f"backbone {name!r} has {kind} positions; expected learned ones")
    for i, layer in enumerate(architecture.layers):
        where = f"backbone {name!r}, layer {i}:"
        if layer.activation not in ACTIVATIONS:
            raise BackboneError(
                f"{where} the activation is {layer.activation!r}; expected one of"
                f" {', '.join(ACTIVATIONS)}"
            )
        if layer.norms != "post":
            raise BackboneError(f"{where} the norms are {layer.norms!r}; expected 'post'")
        if layer.gate is not None:
            raise BackboneError(f"{where} the feed-forward is gated; expected one without a gate")
        if layer.window is not None:
            raise BackboneError(
                f"{where} attention has a window of {layer.window} tokens; expected none"
            )
    return positions
