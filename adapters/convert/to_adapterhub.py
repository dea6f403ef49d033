"""Write an adapter as a folder from which AdapterHub's `load_adapter` makes the same adapter and
head."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.convert.adapterhub import (
    CONFIG,
    HEAD_CONFIG,
    HEAD_TYPES,
    HEAD_WEIGHTS,
    NEEDED,
    WEIGHTS,
)
from adapters.convert.folder import write_folder
from adapters.errors import CannotConvert
from adapters.file import Adapter
from adapters.spec import AdapterSpec

VERSION = "adapters.1.3.0"  # the version whose layout is written
MODELS = {  # prefix of the tensors' names, and class, by model type
    "bert": ("bert", "BertAdapterModel"),
    "roberta": ("roberta", "RobertaAdapterModel"),
    "xlm-roberta": ("roberta", "XLMRobertaAdapterModel"),
    "electra": ("electra", "ElectraAdapterModel"),
}


def write(adapter: Adapter, folder: Path) -> None:
    """Write `folder` completely or not at all. It must be absent or empty. Raises CannotConvert or
    OSError."""
    spec = adapter.spec
    if spec.kind != "bottleneck":
        raise CannotConvert(
            f"{spec.task!r} is of kind {spec.kind!r}, and this writes AdapterHub's bottlenecks;"
            " expected 'bottleneck', or --to peft"
        )
    if spec.backbone.model_type not in MODELS:
        raise CannotConvert(
            f"AdapterHub has no {spec.backbone.model_type} model that this writes; expected one of"
            f" {', '.join(MODELS)}"
        )
    if spec.pooling not in ("cls", "pooler"):
        raise CannotConvert(
            f"pooling is {spec.pooling!r}, which AdapterHub's heads do not have; expected cls or"
            " pooler"
        )
    if spec.normed_head:
        raise CannotConvert(
            f"the head of {spec.task!r} has a norm, which AdapterHub's heads do not have; expected"
            " a head without one"
        )
    if spec.first_layer:
        raise CannotConvert(
            f"first_layer is {spec.first_layer}, and this writes an adapter for every layer;"
            " expected 0"
        )
    if hasattr(nn.ModuleDict, spec.task):
        raise CannotConvert(
            f"task {spec.task!r} is a word that PyTorch keeps for itself; expected another name"
        )
    prefix, model_class = MODELS[spec.backbone.model_type]
    about = {
        "name": spec.task,
        "model_type": spec.backbone.model_type,
        "model_name": spec.backbone.name,
        "model_class": model_class,
        "hidden_size": spec.backbone.hidden_size,
        "version": VERSION,
    }
    tensors = {name: tensor.float() for name, tensor in adapter.tensors.items()}
    dense = "head.dense.weight" in tensors
    configs = {CONFIG: _config(spec), HEAD_CONFIG: _head_config(spec, dense)}
    weights = {  # the names that `load_adapter` looks for unless it is told of safetensors
        WEIGHTS[1]: _sites(tensors, f"{prefix}.encoder.layer", spec.task),
        HEAD_WEIGHTS[1]: _head(tensors, f"heads.{spec.task}", dense),
    }
    write_folder(
        folder,
        {
            **{
                name: json.dumps({**about, "config": config}, indent=2).encode()
                for name, config in configs.items()
            },
            **{name: _pickled(named) for name, named in weights.items()},
        },
    )


def _config(spec: AdapterSpec) -> dict[str, Any]:
    """Return the adapter's configuration. AdapterHub's bottleneck is ⌊hidden size /
    reduction_factor⌋."""
    d, r = spec.backbone.hidden_size, spec.bottleneck
    assert r is not None, "`write` refuses other kinds"
    fields = {name: values[0] for name, values in NEEDED.items() if name != "architecture"}
    return {**fields, "reduction_factor": d // r if d % r == 0 else d / (r + 0.5)}


def _head_config(spec: AdapterSpec, dense: bool) -> dict[str, Any]:
    return {
        "head_type": HEAD_TYPES[spec.problem_type == "multi_label_classification"],
        "num_labels": len(spec.labels),
        "label2id": {label: i for i, label in enumerate(spec.labels)},
        "layers": 2 if dense else 1,
        "activation_function": "tanh",
        "use_pooler": spec.pooling == "pooler",
        "bias": True,
        "dropout_prob": None,
    }


def _sites(tensors: Mapping[str, Tensor], prefix: str, task: str) -> dict[str, Tensor]:
    sides = {"down": "adapter_down.0", "up": "adapter_up"}
    return {
        # without `clone`, a slice would be saved with all layers
        f"{prefix}.{i}.output.adapters.{task}.{sides[side]}.{kind}": layer.clone()
        for side in sides
        for kind in ("weight", "bias")
        for i, layer in enumerate(tensors[f"{side}.{kind}"])
    }


def _head(tensors: Mapping[str, Tensor], name: str, dense: bool) -> dict[str, Tensor]:
    """Name the head's tensors. AdapterHub's head is a sequence in which dropout and tanh have
    numbers, too."""
    numbers = {"dense": 1, "out": 4} if dense else {"out": 1}
    return {
        f"{name}.{number}.{kind}": tensors[f"head.{layer}.{kind}"]
        for layer, number in numbers.items()
        for kind in ("weight", "bias")
    }


def _pickled(tensors: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()
