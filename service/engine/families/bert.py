"""BERT, and the families that transformers builds from its layer: RoBERTa, XLM-R, CamemBERT,
ELECTRA."""

from __future__ import annotations

from typing import Any

from adapters.backbone import Backbone, position_offset
from adapters.errors import BackboneError
from service.engine.architecture import Architecture, Embeddings, Layer, LearnedPositions, Numbering

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


def describe(backbone: Backbone) -> Architecture:
    """Raises BackboneError for a decoder, and for positions that are not absolute."""
    encoder: Any = backbone.encoder
    config, embeddings = backbone.config, encoder.embeddings
    if config.is_decoder:
        raise BackboneError(
            f"backbone {backbone.name!r} has is_decoder true; expected an encoder, whose tokens"
            " attend to both sides"
        )
    # transformers 4 knew other kinds; version 5 ignores the key
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind != "absolute":
        raise BackboneError(
            f"backbone {backbone.name!r} has position_embedding_type {kind!r}; expected 'absolute'"
        )
    first = position_offset(config)
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
