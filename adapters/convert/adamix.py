"""Read the checkpoints of AdaMix's authors (microsoft/AdaMix, `pytorch_model_*_expert_soup.bin`),
which hold all experts and the head.

`ExpertSoup.MoA_A` projects down and `MoA_B` projects up. A projection that the experts share is a
mixture of one. The authors' code merges by the softmax of `expert_score_weight`; their training
leaves these at zero, so that the merge is the mean.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from adapters.convert.foreign import (
    Foreign,
    bert_head,
    bottleneck,
    in_order,
    problem_type,
    roberta_head,
    stack,
)
from adapters.convert.weights import read_weights, refuse_rest, take
from adapters.errors import CannotConvert
from adapters.merge import average

SOUP = re.compile(
    r"(bert|roberta)\.encoder\.layer\.(0|[1-9]\d?)\.output\.ExpertSoup\.MoA_([AB])\.(.+)"
)
EXPERT = re.compile(r"deepspeed_experts\.(0|[1-9]\d?)\.(?:weight|bias)")
SCORES = "expert_score_weight"
SIDES = {"A": "down", "B": "up"}
MODELS = {
    "bert": (bert_head, ("bert",)),
    "roberta": (roberta_head, ("roberta", "xlm-roberta", "camembert")),
}
# Old versions of transformers saved these counters, which are no weights.
BUFFERS = (".position_ids", ".token_type_ids")


def read(file: Path) -> Foreign:
    """Read a checkpoint, with or without the backbone's weights, and merge its experts. Raises
    CannotConvert or OSError."""
    weights = read_weights(file)
    mixtures: dict[int, dict[str, dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    prefixes = set()
    for key in list(weights):
        found = SOUP.fullmatch(key)
        if found:
            prefixes.add(found[1])
            mixtures[int(found[2])][found[3]][found[4]] = take(weights, key)
    if len(prefixes) != 1:
        kinds = " and ".join(sorted(prefixes)) or "no"
        raise CannotConvert(
            f"{file.name} holds {kinds} tensors named as AdaMix has them; expected"
            " 'roberta.encoder.layer.0.output.ExpertSoup.MoA_A.…', or all of them with 'bert.…'"
        )
    (prefix,) = prefixes
    take_head, model_types = MODELS[prefix]
    layers = [mixtures[i] for i in in_order(mixtures, "ExpertSoup")]
    merged = stack([_merge(layer, i) for i, layer in enumerate(layers)])
    experts = _experts(layers)
    head, pooling = take_head(weights)
    encoder = {key: weights.pop(key) for key in list(weights) if key.startswith(f"{prefix}.")}
    refuse_rest(weights, f"ExpertSoup, classifier and {prefix} tensors")
    return Foreign(
        tensors={**merged, **head},
        form=bottleneck(merged),
        pooling=pooling,
        problem_type=problem_type(len(head["head.out.weight"])),
        model_types=model_types,
        provenance={"converted_from": "AdaMix checkpoint", "experts": experts},
        encoder={
            key.removeprefix(f"{prefix}."): tensor
            for key, tensor in encoder.items()
            if not key.endswith(BUFFERS)
        },
    )


def _merge(mixture: dict[str, dict[str, Tensor]], layer: int) -> dict[str, Tensor]:
    merged = {}
    for side, ours in SIDES.items():
        tensors, where = mixture[side], f"layer {layer}'s MoA_{side}"
        experts = _count(tensors)
        for name in tensors:
            if name != SCORES and not EXPERT.fullmatch(name):
                raise CannotConvert(
                    f"{where} holds {name[:80]!r}; expected deepspeed_experts and {SCORES}"
                )
        scores = tensors.get(SCORES, torch.zeros(experts))
        if scores.shape != (experts,):
            raise CannotConvert(
                f"{where} has {SCORES} of shape {list(scores.shape)} for {experts} experts;"
                " expected one each"
            )
        for kind in ("weight", "bias"):
            names = [f"deepspeed_experts.{m}.{kind}" for m in range(experts)]
            missing = [name for name in names if name not in tensors]
            if missing or not names:
                raise CannotConvert(
                    f"{where} lacks {(missing or ['deepspeed_experts'])[0]!r}; expected a whole"
                    " mixture"
                )
            shapes = {tuple(tensors[name].shape) for name in names}
            if len(shapes) > 1:
                raise CannotConvert(
                    f"{where} has experts whose {kind}s have the shapes {sorted(shapes)}; expected"
                    " one shape"
                )
            merged[f"{ours}.{kind}"] = average(
                [tensors[name] for name in names], torch.softmax(scores.double(), dim=0)
            )
    return merged


def _experts(layers: list[dict[str, dict[str, Tensor]]]) -> dict[str, JsonValue]:
    """Count the experts of each projection, which must be the same in every layer. Raises
    CannotConvert."""
    for i, layer in enumerate(layers):
        for side in SIDES:
            found, expected = _count(layer[side]), _count(layers[0][side])
            if found != expected:
                raise CannotConvert(
                    f"layer {i} has {found} experts in MoA_{side}; expected {expected}, as layer"
                    " 0 has"
                )
    return {ours: _count(layers[0][side]) for side, ours in SIDES.items()}


def _count(tensors: dict[str, Tensor]) -> int:
    """Count the experts of a mixture by the highest number in it."""
    return 1 + max(
        (int(found[1]) for name in tensors if (found := EXPERT.fullmatch(name))), default=-1
    )
