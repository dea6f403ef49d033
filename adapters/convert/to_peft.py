"""Write a LoRA adapter as a folder from which `PeftModel.from_pretrained` makes the same adapter
and head."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from adapters.backbone import EMBEDDED, EMBEDDED_ID
from adapters.convert.folder import write_folder
from adapters.convert.peft import POOLER
from adapters.convert.peft_config import CONFIG
from adapters.convert.peft_folder import CARD, PREFIX, WEIGHTS
from adapters.errors import CannotConvert
from adapters.families.registry import FAMILIES
from adapters.file import Adapter
from adapters.spec import AdapterSpec, LoraSite

VERSION = "0.21.2"  # the version whose layout is written
PREFIXES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "mpnet": "mpnet",
}
# The heads of `…ForSequenceClassification`: (prefix, pooling, with a dense layer) → our names and
# theirs. BERT's own pooler is a dense layer over the first token.
HEADS: Mapping[tuple[str, str, bool], dict[str, str]] = {
    ("bert", "pooler", False): {"head.out": "classifier"},
    ("bert", "cls", True): {"head.dense": f"bert.{POOLER}", "head.out": "classifier"},
    **{
        (prefix, "cls", True): {
            "head.dense": "classifier.dense",
            "head.out": "classifier.out_proj",
        }
        for prefix in ("roberta", "mpnet")
    },
}


def write(adapter: Adapter, folder: Path) -> None:
    """Write `folder` completely or not at all. It must be absent or empty. Raises CannotConvert or
    OSError."""
    spec = adapter.spec
    if spec.kind != "lora":
        raise CannotConvert(
            f"{spec.task!r} is of kind {spec.kind!r}, which PEFT does not have; expected 'lora', or"
            " --to adapterhub"
        )
    prefix = PREFIXES.get(spec.backbone.model_type)
    if prefix is None:
        raise CannotConvert(
            f"the backbone is a {spec.backbone.model_type!r}, whose classifier in transformers has"
            f" another head or other modules; expected one of {', '.join(PREFIXES)}"
        )
    dense = "head.dense.weight" in adapter.tensors
    head = None if spec.normed_head else HEADS.get((prefix, spec.pooling, dense))
    if head is None:
        choices = " or ".join(
            f"{pooling} with{'' if has_dense else 'out'} a dense layer"
            for of, pooling, has_dense in HEADS
            if of == prefix
        )
        raise CannotConvert(
            f"the head is {spec.pooling} with{'' if dense else 'out'} a dense layer, which"
            f" transformers' classifier of a {spec.backbone.model_type} does not have; expected"
            f" {choices}"
        )
    tensors = {
        **_sites(spec, adapter.tensors, f"{prefix}.encoder.layer"),
        **{
            f"{theirs}.{kind}": adapter.tensors[f"{ours}.{kind}"]
            for ours, theirs in head.items()
            for kind in ("weight", "bias")
        },
    }
    # copies: slices of one tensor would share its bytes, which safetensors refuses
    named = {f"{PREFIX}{name}": tensor.float().clone() for name, tensor in tensors.items()}
    saved = ["classifier", "score", *(["pooler"] if f"bert.{POOLER}" in head.values() else [])]
    write_folder(
        folder,
        {
            CONFIG: json.dumps(_config(spec, saved), indent=2, sort_keys=True).encode(),
            WEIGHTS: safetensors.torch.save(named, {"format": "pt"}),
            CARD: _card(spec).encode(),
        },
    )


def _config(spec: AdapterSpec, saved: list[str]) -> dict[str, Any]:
    ranks, scale = spec.ranks, spec.scale
    assert ranks is not None
    assert scale is not None, "`write` refuses other kinds"
    layers, modules = range(spec.first_layer, spec.backbone.num_layers), _modules(spec)
    r = Counter(ranks.values()).most_common(1)[0][0]
    others = {site: rank for site, rank in ranks.items() if rank != r}
    name, _, revision = _base_model(spec).partition("@")
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "peft_version": VERSION,
        "base_model_name_or_path": name,
        "revision": revision or None,
        "inference_mode": True,
        "bias": "none",
        "r": r,
        "lora_alpha": scale * r,
        "rank_pattern": {_pattern(modules[site]): rank for site, rank in others.items()},
        "alpha_pattern": {_pattern(modules[site]): scale * rank for site, rank in others.items()},
        "target_modules": [
            target
            for site, module in modules.items()
            if site in ranks
            for target in _targets(site, module, layers)
        ],
        "layers_to_transform": list(layers) if spec.first_layer else None,
        "modules_to_save": saved,
    }


def _base_model(spec: AdapterSpec) -> str:
    """The backbone's name, as PEFT and transformers find it."""
    return EMBEDDED_ID if spec.backbone.name == EMBEDDED else spec.backbone.name


def _modules(spec: AdapterSpec) -> dict[LoraSite, str]:
    """Each site's module in a layer."""
    places = FAMILIES[spec.backbone.model_type].places
    return {site: place.module for site, place in places.items()}


def _targets(site: LoraSite, module: str, layers: range) -> list[str]:
    """The ends of the names of a site's modules. `output.dense` would be the attention's, too."""
    if site == "down":
        return [f"layer.{i}.{module}" for i in layers]
    return [module]


def _pattern(module: str) -> str:
    """The same as one regular expression, which PEFT holds against the ends of names."""
    return rf"layer\.\d+\.{re.escape(module)}"


def _sites(spec: AdapterSpec, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    modules = _modules(spec)
    return {
        f"{prefix}.{spec.first_layer + i}.{modules[site]}.lora_{side}.weight": layer
        for site in spec.ranks or ()
        for side in "AB"
        for i, layer in enumerate(tensors[f"lora.{site}.{side.lower()}"])
    }


def _card(spec: AdapterSpec) -> str:
    """A model card: what a PEFT folder has no other place for."""
    rows = "\n".join(f"{i}. {label}" for i, label in enumerate(spec.labels))
    return f"""---
library_name: peft
base_model: {json.dumps(_base_model(spec))}
---

# {spec.task}

A LoRA adapter with its classifier, for `PeftModel.from_pretrained` on
`AutoModelForSequenceClassification.from_pretrained(…, num_labels={len(spec.labels)})`.

Problem type: {spec.problem_type}. The rows of its head:

{rows}
"""
