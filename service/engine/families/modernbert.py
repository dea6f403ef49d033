"""ModernBERT: transformers 5.23, `models/modernbert/modeling_modernbert.py`,
`ModernBertEncoderLayer`, `ModernBertAttention` and `ModernBertMLP`."""

from __future__ import annotations

from typing import Any

from torch import nn

from adapters.backbone import Backbone
from service.engine.architecture import (
    Architecture,
    Embeddings,
    Layer,
    Numbering,
    RotaryPositions,
    Rows,
)

MODEL_TYPES = ("modernbert",)


def describe(backbone: Backbone) -> Architecture:
    """The encoder's modules."""
    encoder: Any = backbone.encoder
    embeddings = encoder.embeddings
    return Architecture(
        name=backbone.name,
        width=backbone.config.hidden_size,
        heads=backbone.config.num_attention_heads,
        norm_eps=backbone.encoder_config.norm_eps,
        positions=None,
        numbering=Numbering(),
        embeddings=Embeddings(embeddings.tok_embeddings, None, embeddings.norm),
        layers=tuple(_layer(layer, backbone.config) for layer in encoder.layers),
        pooler=None,
        final_norm=encoder.final_norm,
    )


def _layer(layer: Any, config: Any) -> Layer:
    kind = layer.attention_type
    query, key, value = (Rows(layer.attn.Wqkv, part, 3) for part in range(3))
    gate, up = (Rows(layer.mlp.Wi, part, 2) for part in range(2))
    return Layer(
        query=query,
        key=key,
        value=value,
        attention_out=layer.attn.Wo,
        # the first layer has none: its input comes from the embeddings' norm
        attention_norm=None if isinstance(layer.attn_norm, nn.Identity) else layer.attn_norm,
        up=up,
        down=layer.mlp.Wo,
        feed_forward_norm=layer.mlp_norm,
        activation=config.hidden_activation,
        norms="pre",
        gate=gate,
        window=config.sliding_window if kind == "sliding_attention" else None,
        positions=RotaryPositions(config.rope_parameters[kind]["rope_theta"]),
    )
