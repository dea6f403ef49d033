"""MPNet (transformers 5.23, `models/mpnet/modeling_mpnet.py`): BERT's layer without token types,
and in all layers one bias of the attention scores by the distance of two tokens."""

from __future__ import annotations

from typing import Any

from adapters.errors import BackboneError
from adapters.families.family import EncoderConfig, Family, MaskedHead, Place

PADDING = 1  # the padding token's id; `MPNetEmbeddings` has it as a constant
BUCKETS = 32  # of the distances; `MPNetEncoder.compute_position_bias` has it as a constant


def read(name: str, config: Any) -> EncoderConfig:
    """The config's values. Raises BackboneError."""
    if config.relative_attention_num_buckets != BUCKETS:
        raise BackboneError(
            f"backbone {name!r} has relative_attention_num_buckets"
            f" {config.relative_attention_num_buckets}; expected {BUCKETS}, which transformers"
            " computes with"
        )
    first = PADDING + 1
    return EncoderConfig(
        activation=config.hidden_act,
        norm_eps=config.layer_norm_eps,
        intermediate_size=config.intermediate_size,
        max_length=config.max_position_embeddings - first,
        dropout=config.hidden_dropout_prob,
        positions="relative",
        first_position=first,
    )


def masked_head(model: Any) -> MaskedHead:
    """The parts of `MPNetForMaskedLM`."""
    head = model.lm_head
    return MaskedHead(head.dense, "gelu", head.layer_norm, head.decoder.weight, head.decoder.bias)


FAMILY = Family(
    model_types=("mpnet",),
    layers="encoder.layer",
    places={
        "query": Place("attention.attn.q"),
        "key": Place("attention.attn.k"),
        "value": Place("attention.attn.v"),
        "attention_out": Place("attention.attn.o"),
        "up": Place("intermediate.dense"),
        "down": Place("output.dense"),
    },
    read=read,
    masked_head=masked_head,
)
