"""MPNet: transformers 5.23, `models/mpnet/modeling_mpnet.py`, `MPNetLayer` and
`MPNetEncoder.compute_position_bias`."""

from __future__ import annotations

from typing import Any

import torch

from adapters.backbone import Backbone
from service.engine.architecture import (
    Architecture,
    Embeddings,
    Layer,
    LearnedPositions,
    Numbering,
    RelativePositions,
)

MODEL_TYPES = ("mpnet",)


def describe(backbone: Backbone) -> Architecture:
    """The encoder's modules."""
    encoder: Any = backbone.encoder
    said, embeddings = backbone.encoder_config, encoder.embeddings
    relative = _relative(encoder.encoder, said.max_length)
    return Architecture(
        name=backbone.name,
        width=backbone.config.hidden_size,
        heads=backbone.config.num_attention_heads,
        norm_eps=said.norm_eps,
        positions=LearnedPositions(embeddings.position_embeddings),
        numbering=Numbering(said.first_position, uncounted=said.first_position - 1),
        embeddings=Embeddings(embeddings.word_embeddings, None, embeddings.LayerNorm),
        layers=tuple(_layer(layer, said.activation, relative) for layer in encoder.encoder.layer),
        pooler=encoder.pooler.dense if backbone.has_pooler else None,
    )


def _relative(encoder: Any, longest: int) -> RelativePositions:
    """The bias of each distance: transformers' own buckets, over the distances of the longest
    row."""
    distances = torch.arange(1 - longest, longest)  # of the key from the query
    buckets = encoder.relative_position_bucket(distances)
    return RelativePositions(encoder.relative_attention_bias.weight.detach()[buckets].T)


def _layer(layer: Any, activation: str, positions: RelativePositions) -> Layer:
    attention = layer.attention.attn
    return Layer(
        query=attention.q,
        key=attention.k,
        value=attention.v,
        attention_out=attention.o,
        attention_norm=layer.attention.LayerNorm,
        up=layer.intermediate.dense,
        down=layer.output.dense,
        feed_forward_norm=layer.output.LayerNorm,
        activation=activation,
        positions=positions,
    )
