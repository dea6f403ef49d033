"""BERT, and the families that transformers builds from its layer: RoBERTa, XLM-R, CamemBERT,
ELECTRA (transformers 5.23, `models/bert/modeling_bert.py` and those of the others)."""

from __future__ import annotations

from typing import Any

from adapters.errors import BackboneError
from adapters.families.family import EncoderConfig, Family, MaskedHead, Place
from adapters.lora import MODULES
from adapters.spec import Pooling, shortened

FROM_ZERO = ("bert", "electra")  # their positions start at 0; the others' after the padding's id


def read(name: str, config: Any) -> EncoderConfig:
    """The config's values. Raises BackboneError."""
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise BackboneError(
            f"backbone {name!r} has position_embedding_type {shortened(positions, 80)!r}, whose"
            " weights transformers drops; expected 'absolute'"
        )
    if config.model_type not in FROM_ZERO and not isinstance(config.pad_token_id, int):
        raise BackboneError(
            f"backbone {name!r} has pad_token_id {config.pad_token_id!r}; expected the id of its"
            " padding, after which its positions start"
        )
    first = 0 if config.model_type in FROM_ZERO else config.pad_token_id + 1
    dropout = getattr(config, "classifier_dropout", None)
    return EncoderConfig(
        activation=config.hidden_act,
        norm_eps=config.layer_norm_eps,
        intermediate_size=config.intermediate_size,
        max_length=config.max_position_embeddings - first,
        dropout=config.hidden_dropout_prob if dropout is None else dropout,
        first_position=first,
        token_types=config.type_vocab_size,
    )


def pooling(config: Any, has_pooler: bool) -> Pooling:
    """`BertForSequenceClassification` takes the pooler, the other families' the first token."""
    return "pooler" if has_pooler and config.model_type == "bert" else "cls"


def masked_head(model: Any) -> MaskedHead:
    """The parts of `BertForMaskedLM`, `ElectraForMaskedLM` or `RobertaForMaskedLM`."""
    decoder = model.get_output_embeddings()
    activation = "gelu"
    if model.config.model_type == "bert":
        transform = model.cls.predictions.transform
        dense, norm, activation = transform.dense, transform.LayerNorm, model.config.hidden_act
    elif model.config.model_type == "electra":
        dense, norm = model.generator_predictions.dense, model.generator_predictions.LayerNorm
    else:
        dense, norm = model.lm_head.dense, model.lm_head.layer_norm
    return MaskedHead(dense, activation, norm, decoder.weight, decoder.bias)


_BERT = Family(
    model_types=("bert",),
    layers="encoder.layer",
    places={site: Place(module) for site, module in MODULES.items()},
    read=read,
    masked_head=masked_head,
    pooling=pooling,
    dense_head=None,
)
FAMILIES = (
    _BERT,
    # their classifiers have a hidden layer
    Family(
        model_types=("roberta", "xlm-roberta", "electra", "camembert"),
        layers=_BERT.layers,
        places=_BERT.places,
        read=read,
        masked_head=masked_head,
        pooling=pooling,
    ),
)
