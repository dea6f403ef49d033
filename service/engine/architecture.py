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

from torch import Tensor, nn

from adapters.errors import BackboneError
from service.engine.activations import ACTIVATIONS

Norms = Literal["post", "pre"]
"""`post`: LayerNorm(x + f(x)), as in BERT; `pre`: x + f(LayerNorm(x)), as in ModernBERT."""


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
    2104.09864): the number i of a head's first half with that of its second half by `position ·
    theta^(-2i/D)`, where D is the head's size."""

    theta: float


@dataclass(frozen=True, eq=False)
class RelativePositions:
    """An attention score gains a bias by the distance of its tokens (T5, arXiv 1910.10683)."""

    biases: Tensor  # [heads, 2n - 1]: of a key n - 1 tokens before the query, to n - 1 behind it


@dataclass(frozen=True, eq=False)
class DisentangledPositions:
    """A score gains the products of the query with a key, and of the key with a query, that stand
    for the distance alone (DeBERTa, arXiv 2006.03654, section 3.1): `(q·k + q·K[d] + k·Q[d]) /
    sqrt(D · products)`, where d is the distance and D the head's size."""

    keys: Tensor | None  # K: [heads, rows, D]
    queries: Tensor | None  # Q: the same
    # [2n - 1]: the row of a key n - 1 tokens before the query, to n - 1 behind it. Far distances
    # share rows.
    rows: Tensor

    @property
    def products(self) -> int:
        return 1 + (self.keys is not None) + (self.queries is not None)


AttentionPositions = RotaryPositions | RelativePositions | DisentangledPositions


class Rows(nn.Linear):
    """Some outputs of a linear module that computes several at once, such as query, key and value:
    the same memory, as a linear module."""

    def __init__(self, whole: nn.Linear, part: int, parts: int) -> None:
        """Part number `part` of `parts` equal ones."""
        weight: Tensor = whole.weight.detach().chunk(parts)[part]
        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, bias=whole.bias is not None, device="meta")
        self.whole = (whole,)  # in a tuple: it is no module of this one
        self.weight = nn.Parameter(weight, requires_grad=False)
        if whole.bias is not None:
            self.bias = nn.Parameter(whole.bias.detach().chunk(parts)[part], requires_grad=False)


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
    attention_norm: nn.LayerNorm | None  # None with norms `pre` only: what is attended has a norm
    up: nn.Linear
    down: nn.Linear
    feed_forward_norm: nn.LayerNorm
    activation: str  # one of ACTIVATIONS
    norms: Norms = "post"
    gate: nn.Linear | None = None  # a gated feed-forward: down(activation(gate(x)) · up(x))
    window: int | None = None  # tokens attend to so many on either side; None: to all of the row
    positions: AttentionPositions | None = None  # what attention knows of them


@dataclass(frozen=True)
class Architecture:
    """An encoder: what a family reads from a checkpoint. It holds the checkpoint's modules, so keep
    it no longer than it takes to read them."""

    name: str  # the backbone's, for messages
    width: int  # hidden size
    heads: int
    norm_eps: float
    positions: LearnedPositions | None  # None: the embeddings do not know them
    numbering: Numbering
    embeddings: Embeddings
    layers: tuple[Layer, ...]
    pooler: nn.Linear | None  # dense, before a tanh, over the first token
    final_norm: nn.LayerNorm | None = None  # after the last layer


def check_supported(architecture: Architecture) -> None:
    """Raises BackboneError for what the engine cannot compute."""
    for i, layer in enumerate(architecture.layers):
        where = f"backbone {architecture.name!r}, layer {i}:"
        if layer.activation not in ACTIVATIONS:
            raise BackboneError(
                f"{where} the activation is {layer.activation!r}; expected one of"
                f" {', '.join(ACTIVATIONS)}"
            )
        if layer.attention_norm is None and layer.norms == "post":
            raise BackboneError(f"{where} there is no norm after attention; expected one")
        for norm in (layer.attention_norm, layer.feed_forward_norm):
            if norm is not None and not isinstance(norm, nn.LayerNorm):
                raise BackboneError(
                    f"{where} a norm is a {type(norm).__name__}; expected a LayerNorm"
                )
        biased = isinstance(layer.positions, RelativePositions | DisentangledPositions)
        if layer.window is not None and biased:
            kind = type(layer.positions).__name__.removesuffix("Positions").lower()
            raise BackboneError(
                f"{where} attention has a window of {layer.window} tokens and {kind} positions;"
                " expected one of the two"
            )
        if layer.window is not None and layer.window < 1:
            raise BackboneError(
                f"{where} attention has a window of {layer.window} tokens; expected 1 or more"
            )
