"""BERT, and the families that transformers builds from its layer: RoBERTa, XLM-R, CamemBERT,
ELECTRA."""

from __future__ import annotations

from typing import Any

from adapters.backbone import Backbone
from service.engine.architecture import Architecture, Embeddings, Layer, LearnedPositions, Numbering

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


def describe(backbone: Backbone) -> Architecture:
    """The encoder's modules. That it is one, with absolute positions, `adapters.backbone.load` has
    checked."""
    encoder: Any = backbone.encoder
    config, embeddings = backbone.config, encoder.embeddings
    first = backbone.encoder_config.first_position
    return Architecture(
        name=backbone.name,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        norm_eps=config.layer_norm_eps,
        positions=LearnedPositions(embeddings.position_embeddings),
        # RoBERTa's positions start behind its padding token's id, and skip that token.
        numbering=Numbering(first, uncounted=first - 1 if first else None),
        embeddings=Embeddings(
            words=embeddings.word_embeddings,
            types=embeddings.token_type_embeddings,
            norm=embeddings.LayerNorm,
            projection=getattr(encoder, "embeddings_project", None),  # ELECTRA's small embeddings
        ),
        layers=tuple(_layer(layer, config.hidden_act) for layer in encoder.encoder.layer),
        pooler=encoder.pooler.dense if backbone.has_pooler else None,
    )


def _layer(layer: Any, activation: str) -> Layer:
    attention, output = layer.attention.self, layer.attention.output
    return Layer(
        query=attention.query,
        key=attention.key,
        value=attention.value,
        attention_out=output.dense,
        attention_norm=output.LayerNorm,
        up=layer.intermediate.dense,
        down=layer.output.dense,
        feed_forward_norm=layer.output.LayerNorm,
        activation=activation,
    )
