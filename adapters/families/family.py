"""What is to be known of a family of encoders to load one, to attach adapters to it, and to read
its masked-language-model head.

How the engine computes a layer is described in `service.engine.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor, nn

from adapters.spec import LoraSite, Pooling, PositionType

if TYPE_CHECKING:  # the GPU benchmark runs where it is not installed
    from pydantic import JsonValue


class Place(NamedTuple):
    """Where a layer has a site: a linear module by its name in the layer, and which of how many
    equal parts of that module's outputs."""

    module: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class EncoderConfig:
    """What a checkpoint's config says, under one set of names."""

    activation: str  # of the feed-forward
    norm_eps: float
    intermediate_size: int
    max_length: int  # tokens of the longest row
    dropout: float  # of a classifier
    positions: PositionType = "absolute"
    first_position: int = 0  # the position id of a row's first token
    token_types: int = 0  # 0: the encoder takes none
    # What else decides what a layer computes, under the config's own names
    # (docs/adapter-format.md, section 4); None if nothing does.
    further: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True, eq=False)
class MaskedHead:
    """A masked-language-model head: `rows · LayerNorm(activation(dense(x))) + biases`. `rows` is
    `[vocabulary, d]`, `biases` `[vocabulary]` or None."""

    dense: nn.Linear
    activation: str
    norm: nn.LayerNorm
    rows: Tensor
    biases: Tensor | None


DenseHead = Literal["tanh", "gelu-norm"]
"""The hidden layer of a classifier's head: `tanh(dense(x))`, or `LayerNorm(gelu(dense(x)))`."""


@dataclass(frozen=True)
class Family:
    """Encoders that transformers builds alike."""

    model_types: tuple[str, ...]
    layers: str  # the name of the encoder's list of layers
    places: Mapping[LoraSite, Place]
    # The config under one set of names, given the backbone's name for messages. Raises
    # BackboneError for a config that is not supported.
    read: Callable[[str, Any], EncoderConfig]
    masked_head: Callable[[Any], MaskedHead]  # of an `AutoModelForMaskedLM`
    # What the family's own classifiers pool, given the config and whether there is a pooler.
    pooling: Callable[[Any, bool], Pooling] = lambda _config, _has_pooler: "cls"
    dense_head: DenseHead | None = "tanh"  # of a fresh classifier; None: a linear layer alone
    prepare: Callable[[Any], None] = lambda _encoder: None  # changes a loaded encoder
    # Classes that load a tokeniser in the place of transformers' own.
    tokenizers: Mapping[type, Any] = field(default_factory=dict)
