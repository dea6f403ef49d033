"""DistilBERT (transformers 5.23, `models/distilbert/modeling_distilbert.py`): BERT's layer under
other names, without token types and without a pooler."""

from __future__ import annotations

from typing import Any

from adapters.families.family import EncoderConfig, Family, MaskedHead, Place

NORM_EPS = 1e-12  # of every LayerNorm (`TransformerBlock`, `Embeddings`); the config has none


def read(_name: str, config: Any) -> EncoderConfig:
    """The config's values. Sinusoidal positions are a table in the checkpoint like learned ones."""
    return EncoderConfig(
        activation=config.activation,
        norm_eps=NORM_EPS,
        intermediate_size=config.hidden_dim,
        max_length=config.max_position_embeddings,
        dropout=config.seq_classif_dropout,
    )


def masked_head(model: Any) -> MaskedHead:
    """The parts of `DistilBertForMaskedLM`."""
    return MaskedHead(
        model.vocab_transform,
        model.config.activation,
        model.vocab_layer_norm,
        model.vocab_projector.weight,
        model.vocab_projector.bias,
    )


FAMILY = Family(
    model_types=("distilbert",),
    layers="transformer.layer",
    places={
        "query": Place("attention.q_lin"),
        "key": Place("attention.k_lin"),
        "value": Place("attention.v_lin"),
        "attention_out": Place("attention.out_lin"),
        "up": Place("ffn.lin1"),
        "down": Place("ffn.lin2"),
    },
    read=read,
    masked_head=masked_head,
)
