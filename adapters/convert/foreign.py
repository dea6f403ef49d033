"""An adapter that was read from another library's file, in the terms of our format; every
conversion passes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import JsonValue
from torch import Tensor

from adapters.backbone import Backbone
from adapters.convert.weights import take
from adapters.errors import CannotConvert
from adapters.spec import Pooling, ProblemType, shown


@dataclass(frozen=True, eq=False)
class Foreign:
    """An adapter and its head, whose task and backbone are not known yet.

    `tensors` are named and shaped as in docs/adapter-format.md, in float32; `form` holds the keys
    of the spec that say which shapes they have; `encoder` holds the backbone's weights, if the file
    has them; `provenance` says where the adapter came from.
    """

    tensors: Mapping[str, Tensor]
    form: Mapping[str, JsonValue]
    pooling: Pooling
    problem_type: ProblemType
    model_types: tuple[str, ...]
    provenance: Mapping[str, JsonValue]
    labels: tuple[str, ...] | None = None
    encoder: Mapping[str, Tensor] = field(default_factory=dict)


def check_model_type(model_types: Sequence[str], backbone: Backbone) -> None:
    """Raise CannotConvert if a file for one of these types is not for this backbone."""
    found = backbone.reference.model_type
    if found not in model_types:
        raise CannotConvert(
            f"the file is for a {' or '.join(map(shown, model_types))} backbone; "
            f"expected {found!r}, as {backbone.name!r} is"
        )


def stack(layers: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack each layer's `down.weight`, `down.bias`, `up.weight` and `up.bias` into one tensor for
    all layers. Raises CannotConvert."""
    stacked = {}
    for name, first in layers[0].items():
        for i, layer in enumerate(layers):
            if layer[name].shape != first.shape:
                raise CannotConvert(
                    f"layer {i} has {name} of shape {list(layer[name].shape)}; expected layer 0's"
                    f" {list(first.shape)}"
                )
        stacked[name] = torch.stack([layer[name].float() for layer in layers])
    return stacked


def bottleneck(sites: Mapping[str, Tensor]) -> dict[str, JsonValue]:
    """Return the form of a bottleneck with these stacked tensors."""
    return {"bottleneck": sites["down.weight"].shape[1], "activation": "gelu"}


def in_order(layers: Mapping[int, object], what: str) -> range:
    """Return the numbers of the layers, from 0 to the last. Raises CannotConvert if one is
    missing."""
    numbers = range(max(layers) + 1)
    if len(layers) != len(numbers):
        missing = next(i for i in numbers if i not in layers)
        raise CannotConvert(
            f"layer {missing} has no {what}, layer {max(layers)} has one; expected one in every"
            " layer"
        )
    return numbers


def bert_head(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], Pooling]:
    """Take the head of `BertForSequenceClassification`: one layer over the pooler. Raises
    CannotConvert."""
    return linear(weights, "head.out", "classifier"), "pooler"


def roberta_head(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], Pooling]:
    """Take the head of `RobertaForSequenceClassification` or `MPNetForSequenceClassification`:
    dense, tanh, dense over the first token. Raises CannotConvert."""
    return {
        **linear(weights, "head.dense", "classifier.dense"),
        **linear(weights, "head.out", "classifier.out_proj"),
    }, "cls"


def modernbert_head(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], Pooling]:
    """Take the head of `ModernBertForSequenceClassification`: dense, GELU, LayerNorm, dense, over
    the first token if the config does not say the mean. Biases that it does not have are 0. Raises
    CannotConvert."""
    if "head.dense.weight" not in weights:
        raise CannotConvert(
            "the weights have no 'head.dense.weight': the hidden layer of ModernBERT's classifier"
            " stays in the base model, where an adapter file cannot say it; expected"
            " modules_to_save with 'head' and 'classifier'"
        )
    head: dict[str, Tensor] = {}
    for ours, theirs in (
        ("head.dense", "head.dense"),
        ("head.norm", "head.norm"),
        ("head.out", "classifier"),
    ):
        weight = take(weights, f"{theirs}.weight", 1 if ours == "head.norm" else 2).float()
        has_bias = f"{theirs}.bias" in weights
        bias = take(weights, f"{theirs}.bias").float() if has_bias else torch.zeros(len(weight))
        head |= {f"{ours}.weight": weight, f"{ours}.bias": bias}
    return head, "cls"


def linear(weights: dict[str, Tensor], ours: str, theirs: str) -> dict[str, Tensor]:
    """Take one linear layer and give it our name. Raises CannotConvert."""
    return {
        f"{ours}.{kind}": take(weights, f"{theirs}.{kind}").float() for kind in ("weight", "bias")
    }


def problem_type(rows: int) -> ProblemType:
    """Return the problem type that transformers assumes for a head with so many rows."""
    return "regression" if rows == 1 else "single_label_classification"
