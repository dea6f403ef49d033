"""Read folders that `save_adapter` of AdapterHub's `adapters` library wrote.

Its bottleneck comes after the output projection and the dropout of the feed-forward network.
`NEEDED` lists the configurations that compute what ours does; docs/convert.md has the reasons.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.convert.foreign import (
    Foreign,
    bert_head,
    bottleneck,
    in_order,
    linear,
    problem_type,
    roberta_head,
    stack,
)
from adapters.convert.objects import read_object
from adapters.convert.weights import read_weights, refuse_rest, take
from adapters.errors import CannotConvert
from adapters.spec import Pooling, ProblemType, shown

WRITER = "AdapterHub's save_adapter"
CONFIG, WEIGHTS = "adapter_config.json", ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_CONFIG, HEAD_WEIGHTS = "head_config.json", ("model_head.safetensors", "pytorch_model_head.bin")

# The values that each field must have for `y = x + U·gelu(D·x + b_D) + b_U` before residual and
# LayerNorm. The first value is also AdapterHub's default for a missing field, except for those in
# `REQUIRED`.
NEEDED: dict[str, tuple[Any, ...]] = {
    "architecture": (None,),
    "mh_adapter": (False,),
    "output_adapter": (True,),
    "original_ln_before": (False,),
    "original_ln_after": (True,),
    "residual_before_ln": (True, False),
    "ln_before": (False,),
    "ln_after": (False,),
    "is_parallel": (False,),
    "scaling": (1.0,),
    "use_gating": (False,),
    "phm_layer": (False,),
    "inv_adapter": (None,),
    "leave_out": ([], None),
    "non_linearity": ("gelu", "gelu_python"),
}
REQUIRED = ("mh_adapter", "output_adapter", "non_linearity")
# Fields about training or initialisation, and fields that mean something only with other values of
# the fields above.
WITHOUT_EFFECT = {
    *(
        "adapter_residual_before_ln",
        "cross_adapter",
        "dropout",
        "init_weights",
        "init_weights_seed",
        "reduction_factor",
    ),
    *(
        "inv_adapter_reduction_factor",
        "stochastic_depth",
        "factorized_phm_W",
        "factorized_phm_rule",
        "learn_phm",
        "phm_bias",
    ),
    *(
        "hypercomplex_nonlinearity",
        "phm_c_init",
        "phm_dim",
        "phm_init_range",
        "phm_rank",
        "shared_W_phm",
        "shared_phm_rule",
    ),
}
# In older folders, which have no version, these words meant something else. AdapterHub's loader
# renames them as well.
OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
HEAD_TYPES = ("classification", "multilabel_classification")
STATIC_HEADS = {
    "BertForSequenceClassification": bert_head,
    "RobertaForSequenceClassification": roberta_head,
    "XLMRobertaForSequenceClassification": roberta_head,
}


def read(folder: Path) -> Foreign:
    """Read a folder with an adapter and its head, without changing what they compute. Raises
    CannotConvert or OSError."""
    config = read_object(folder / CONFIG, WRITER)
    _check_config(config)
    weights = read_weights(_first(folder, WEIGHTS))
    name = str(config.get("name"))
    site = re.compile(
        rf"(?:bert|roberta|electra)\.encoder\.layer\.(0|[1-9]\d?)\.output\.adapters\.{re.escape(name)}"
        r"\.(?:adapter_(down)\.0|adapter_(up))\.(weight|bias)"
    )
    layers: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key in list(weights):
        found = site.fullmatch(key)
        if found:
            layers[int(found[1])][f"{found[2] or found[3]}.{found[4]}"] = take(weights, key)
    refuse_rest(
        weights,
        f"adapter_down.0 and adapter_up of the adapter {shown(name)} in every layer's output",
    )
    if not layers:
        raise CannotConvert(
            f"{folder.name} holds no adapter {shown(name)}; expected one in every layer"
        )
    numbers = in_order(layers, "adapter")
    for i in numbers:
        missing = sorted(
            {f"{side}.{kind}" for side in ("down", "up") for kind in ("weight", "bias")}
            - set(layers[i])
        )
        if missing:
            raise CannotConvert(
                f"layer {i}'s adapter has no {missing[0]}; expected weight and bias of adapter_down"
                " and adapter_up"
            )
    sites = stack([layers[i] for i in numbers])
    head, pooling, kind, labels = _read_head(folder)
    return Foreign(
        tensors={**sites, **head},
        form=bottleneck(sites),
        pooling=pooling,
        problem_type=kind,
        model_types=(str(config.get("model_type")),),
        labels=labels,
        provenance={
            "converted_from": "AdapterHub adapter",
            **{
                key: str(config[key])
                for key in ("name", "model_name", "version")
                if config.get(key)
            },
        },
    )


def _check_config(config: Mapping[str, Any]) -> None:
    fields = config.get("config")
    if not isinstance(fields, dict):
        raise CannotConvert(
            f"{CONFIG} has the config {shown(fields)}; expected an object with a bottleneck's"
            " fields"
        )
    for name, values in NEEDED.items():
        found = fields.get(name, None if name in REQUIRED else values[0])
        if name == "non_linearity" and "version" not in config:
            found = OLD_ACTIVATIONS.get(str(found), found)
        if found not in values:
            expected = " or ".join(map(repr, values))
            raise CannotConvert(
                f"{CONFIG} has {name} {shown(found)}, which computes something else; expected"
                f" {expected}"
            )
    unknown = sorted(set(fields) - set(NEEDED) - WITHOUT_EFFECT)
    if unknown:
        raise CannotConvert(
            f"{CONFIG} has the field {unknown[0][:80]!r}, which is not known; expected only"
            " AdapterHub's"
        )


def _read_head(
    folder: Path,
) -> tuple[dict[str, Tensor], Pooling, ProblemType, tuple[str, ...] | None]:
    about = read_object(folder / HEAD_CONFIG, WRITER)
    weights = read_weights(_first(folder, HEAD_WEIGHTS))
    config = about.get("config")
    if config is None:
        model_class = str(about.get("model_class"))
        if model_class not in STATIC_HEADS:
            raise CannotConvert(
                f"{HEAD_CONFIG} is of {shown(model_class)}; expected one of"
                f" {', '.join(STATIC_HEADS)}"
            )
        head, pooling = STATIC_HEADS[model_class](weights)
        kind, label2id = problem_type(len(head["head.out.weight"])), about.get("label2id")
    else:
        head, pooling, multi_label = _flexible_head(config, f"heads.{about.get('name')}", weights)
        kind = (
            "multi_label_classification"
            if multi_label
            else problem_type(len(head["head.out.weight"]))
        )
        label2id = config.get("label2id")
    refuse_rest(weights, "the head's linear layers")
    return head, pooling, kind, _labels(label2id)


def _flexible_head(
    config: Any, name: str, weights: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Pooling, bool]:
    needed: dict[str, tuple[Any, ...]] = {
        "head_type": HEAD_TYPES,
        "layers": (1, 2),
        "use_pooler": (False, True),
        "bias": (True,),
    }
    if not isinstance(config, dict):
        raise CannotConvert(f"{HEAD_CONFIG} has the config {shown(config)}; expected an object")
    if config.get("layers") == 2:
        needed["activation_function"] = ("tanh",)
    defaults = {"use_pooler": False, "bias": True}
    for field, values in needed.items():
        found = config.get(field, defaults.get(field))
        if found not in values:
            raise CannotConvert(
                f"{HEAD_CONFIG} has {field} {shown(found)}; expected"
                f" {' or '.join(map(repr, values))}"
            )
    dense = linear(weights, "head.dense", f"{name}.1") if config["layers"] == 2 else {}
    head = {**dense, **linear(weights, "head.out", f"{name}.{4 if dense else 1}")}
    return (
        head,
        "pooler" if config.get("use_pooler") else "cls",
        config["head_type"] == HEAD_TYPES[1],
    )


def _labels(label2id: Any) -> tuple[str, ...] | None:
    if label2id is None:
        return None
    if not isinstance(label2id, dict) or sorted(map(str, label2id.values())) != sorted(
        map(str, range(len(label2id)))
    ):
        raise CannotConvert(
            f"{HEAD_CONFIG} has the label2id {shown(label2id)}; expected names with the numbers"
            " from 0"
        )
    return tuple(sorted(label2id, key=lambda label: int(label2id[label])))


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise CannotConvert(f"{folder.name} has no {' and no '.join(names)}; expected one of them")
    return found[0]
