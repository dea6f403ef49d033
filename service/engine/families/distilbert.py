"""DistilBERT: transformers 5.23, `models/distilbert/modeling_distilbert.py`, `TransformerBlock` and
`Embeddings`."""

from __future__ import annotations

from typing import Any

from adapters.backbone import Backbone
from service.engine.architecture import Architecture, Embeddings, Layer, LearnedPositions, Numbering

MODEL_TYPES = ("distilbert",)


def describe(backbone: Backbone) -> Architecture:
    """The encoder's modules."""
    encoder: Any = backbone.encoder
    said, embeddings = backbone.encoder_config, encoder.embeddings
    return Architecture(
        name=backbone.name,
        width=backbone.config.hidden_size,
        heads=backbone.config.num_attention_heads,
        norm_eps=said.norm_eps,
        positions=LearnedPositions(embeddings.position_embeddings),
        numbering=Numbering(),
        embeddings=Embeddings(embeddings.word_embeddings, None, embeddings.LayerNorm),
        layers=tuple(_layer(layer, said.activation) for layer in encoder.transformer.layer),
        pooler=None,
    )


def _layer(layer: Any, activation: str) -> Layer:
    attention = layer.attention
    return Layer(
        query=attention.q_lin,
        key=attention.k_lin,
        value=attention.v_lin,
        attention_out=attention.out_lin,
        attention_norm=layer.sa_layer_norm,
        up=layer.ffn.lin1,
        down=layer.ffn.lin2,
        feed_forward_norm=layer.output_layer_norm,
        activation=activation,
    )
