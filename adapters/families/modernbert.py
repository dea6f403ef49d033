"""ModernBERT (transformers 5.23, `models/modernbert/modeling_modernbert.py` and
`configuration_modernbert.py`): norms before attention and feed-forward, a gated feed-forward,
rotary positions, a window in most layers, no token types."""

from __future__ import annotations

from typing import Any

from adapters.errors import BackboneError
from adapters.families.family import EncoderConfig, Family, MaskedHead, Place
from adapters.spec import Pooling, shown

KINDS = ("full_attention", "sliding_attention")


def read(name: str, config: Any) -> EncoderConfig:
    """The config's values. A config of transformers 4 has the thetas and the layers' kinds under
    other names, which transformers 5 reads. Raises BackboneError."""
    for kind in config.layer_types:
        if kind not in KINDS:
            raise BackboneError(
                f"backbone {name!r} has {shown(kind)} in layer_types; expected"
                f" {' or '.join(map(repr, KINDS))}"
            )
    thetas = {}
    for kind in dict.fromkeys(config.layer_types):
        rope = config.rope_parameters[kind]
        if rope["rope_type"] != "default":
            raise BackboneError(
                f"backbone {name!r} has rotary positions of the type {shown(rope['rope_type'])};"
                " expected 'default'"
            )
        thetas[kind] = float(rope["rope_theta"])
    if config.hidden_size // config.num_attention_heads % 2:
        raise BackboneError(
            f"backbone {name!r} has heads of {config.hidden_size // config.num_attention_heads}"
            " numbers, which rotary positions rotate in pairs; expected an even number"
        )
    return EncoderConfig(
        activation=config.hidden_activation,
        norm_eps=config.norm_eps,
        intermediate_size=config.intermediate_size,
        max_length=config.max_position_embeddings,
        dropout=config.classifier_dropout,
        positions="rotary",
        further={
            "layer_types": list(config.layer_types),
            "local_attention": config.local_attention,
            **{f"rope_theta.{kind}": theta for kind, theta in thetas.items()},
        },
    )


def pooling(config: Any, _has_pooler: bool) -> Pooling:
    """`ModernBertForSequenceClassification` takes what the config says."""
    return "mean" if config.classifier_pooling == "mean" else "cls"


def masked_head(model: Any) -> MaskedHead:
    """The parts of `ModernBertForMaskedLM`."""
    head, decoder = model.head, model.decoder
    return MaskedHead(
        head.dense, model.config.classifier_activation, head.norm, decoder.weight, decoder.bias
    )


FAMILY = Family(
    model_types=("modernbert",),
    layers="layers",
    places={
        "query": Place("attn.Wqkv", 0, 3),
        "key": Place("attn.Wqkv", 1, 3),
        "value": Place("attn.Wqkv", 2, 3),
        "attention_out": Place("attn.Wo"),
        "up": Place("mlp.Wi", 1, 2),
        "gate": Place("mlp.Wi", 0, 2),
        "down": Place("mlp.Wo"),
    },
    read=read,
    masked_head=masked_head,
    pooling=pooling,
    dense_head="gelu-norm",
)
