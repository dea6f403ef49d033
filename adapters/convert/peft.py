"""Give our names to PEFT's LoRA, and to the head of a `…ForSequenceClassification`.

Which modules a folder's configuration names depends on the base model, so a folder is read in two
steps: alone (`adapters.convert.peft_folder`), and on its backbone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from adapters.backbone import Backbone, public_name
from adapters.convert.foreign import (
    Foreign,
    bert_head,
    check_model_type,
    linear,
    modernbert_head,
    problem_type,
    roberta_head,
)
from adapters.convert.peft_config import CONFIG
from adapters.convert.peft_folder import WEIGHTS, WRITER, Folder
from adapters.convert.peft_modules import PeftModules
from adapters.convert.weights import refuse_rest, take
from adapters.errors import CannotConvert
from adapters.families.family import Place
from adapters.families.registry import family_of
from adapters.spec import INNER_SITES, MAX_RANK, LoraSite, Pooling, ProblemType, shown

LORA = re.compile(r"(.+)\.lora_([AB])(?:\.([^.]+))?\.weight")
POOLER = "pooler.dense"
NUMBER = re.compile("[0-9]{1,9}")
# transformers' names for labels that nobody named
UNNAMED = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class Classifier:
    """The classifiers of transformers that give their encoder the same name, and their head."""

    model_types: tuple[str, ...]
    head: Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], Pooling]]
    head_modules: tuple[str, ...]


_DENSE_HEAD = ("classifier", "classifier.dense", "classifier.out_proj")
CLASSIFIERS: Mapping[str, Classifier] = {
    "bert": Classifier(("bert",), bert_head, ("classifier", f"bert.{POOLER}")),
    "roberta": Classifier(("roberta", "xlm-roberta", "camembert"), roberta_head, _DENSE_HEAD),
    "mpnet": Classifier(("mpnet",), roberta_head, _DENSE_HEAD),
    "model": Classifier(("modernbert",), modernbert_head, ("classifier", "head.dense")),
}


class Layers:
    """Where a backbone's layers have the sites of an adapter file, by names of modules."""

    def __init__(self, backbone: Backbone) -> None:
        family = family_of(backbone.config)
        self.places: Mapping[LoraSite, Place] = family.places
        self._pattern = re.compile(rf"{re.escape(family.layers)}\.(\d+)\.(.+)")

    def sites(self, module: str) -> tuple[int, list[tuple[LoraSite, Place]]]:
        """The number of the module's layer, and the sites that are at this module: none where it is
        in no layer."""
        found = self._pattern.fullmatch(module)
        if found is None:
            return 0, []
        places = self.places.items()
        return int(found[1]), [(site, at) for site, at in places if at.module == found[2]]


def fit(folder: Folder, backbone: Backbone) -> Foreign:
    """Look up the folder's modules in its base model, and give them our names. Raises
    CannotConvert."""
    classifier, config = CLASSIFIERS[folder.prefix], folder.config
    check_model_type(classifier.model_types, backbone)
    weights = dict(folder.weights)
    pairs = _pairs(weights, folder.prefix, backbone)
    names = _names(folder.prefix, backbone)
    modules = PeftModules(config, {*names, *(f"{folder.prefix}.{name}" for name in pairs)})
    _check_targets(folder.prefix, pairs, names, modules, backbone)
    scales = {name: modules.scale(f"{folder.prefix}.{name}") for name in pairs}
    form, tensors = _layers(pairs, scales, backbone)
    head, pooling = classifier.head(weights)
    if "head.norm.weight" in head:
        form["normed_head"] = True
        pooling = family_of(backbone.config).pooling(backbone.config, False)
    pooler = _pooler(weights, folder.prefix, pairs.get(POOLER), scales.get(POOLER, 1.0), backbone)
    if pooler:
        head, pooling = {**pooler, **head}, "cls"
    encoder = {
        name.removeprefix(f"{folder.prefix}."): weights.pop(name)
        for name in list(weights)
        if name.startswith(f"{folder.prefix}.")
    }
    refuse_rest(weights, f"lora_A, lora_B, classifier and {folder.prefix} tensors")
    labels, kind = _model_says(folder, backbone, len(head["head.out.weight"]))
    return Foreign(
        tensors={**tensors, **head},
        form=form,
        pooling=pooling,
        problem_type=kind,
        model_types=classifier.model_types,
        labels=labels,
        provenance={
            "converted_from": "PEFT adapter",
            **{
                key: public_name(value) if key == "base_model_name_or_path" else value
                for key in ("base_model_name_or_path", "revision", "peft_version")
                if (value := getattr(config, key))
            },
        },
        encoder=encoder,
    )


def _pairs(
    weights: dict[str, Tensor], prefix: str, backbone: Backbone
) -> dict[str, tuple[Tensor, Tensor]]:
    """Take each module's A `[r, inputs]` and B `[outputs, r]`, in float32, by the module's name in
    the backbone."""
    sides: dict[str, dict[str, Tensor]] = defaultdict(dict)
    names = set()
    for key in list(weights):
        found = LORA.fullmatch(key)
        if found:
            names.add(found[3])
            module = found[1].removeprefix(f"{prefix}.")
            sides[module][found[2]] = take(weights, key).float()
    if names != {None}:
        shown_names = ", ".join(shown(name) for name in sorted(filter(None, names))[:4])
        raise CannotConvert(
            f"{WEIGHTS} holds adapters by names ({shown_names}); expected the one adapter that"
            f" {WRITER} writes, without a name"
        )
    modules, layers = dict(backbone.encoder.named_modules()), Layers(backbone)
    for module, pair in sides.items():
        _check_pair(module, pair, modules.get(module), backbone, layers)
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _check_pair(
    name: str,
    pair: Mapping[str, Tensor],
    module: nn.Module | None,
    backbone: Backbone,
    layers: Layers,
) -> None:
    for side, other in ("AB", "BA"):
        if side not in pair:
            raise CannotConvert(
                f"{WEIGHTS} has lora_{other} and no lora_{side} at {shown(name)}; expected both"
            )
    if module is None:
        raise CannotConvert(
            f"{WEIGHTS} has LoRA at {shown(name)}; backbone {backbone.name!r} of"
            f" {backbone.reference.num_layers} layers has no such module"
        )
    _check_place(name, module, layers)
    a, b = pair["A"], pair["B"]
    outputs, inputs = module.weight.shape  # type: ignore[misc]  # of a linear module
    if (a.shape[1], b.shape[0]) != (inputs, outputs):
        raise CannotConvert(
            f"LoRA at {shown(name)} is for {a.shape[1]} inputs and {b.shape[0]} outputs; expected"
            f" {inputs} and {outputs}, as backbone {backbone.name!r} has"
        )


def _check_place(name: str, module: nn.Module, layers: Layers) -> None:
    """Refuse a module that is no site of an adapter file."""
    if name != POOLER and not layers.sites(name)[1]:
        what = "embeddings" if name.startswith("embeddings.") else f"a {type(module).__name__}"
        raise CannotConvert(
            f"LoRA is at {shown(name)}, {what}; expected it at the linear modules of layers or at"
            " the pooler"
        )


def _names(prefix: str, backbone: Backbone) -> dict[str, bool]:
    """All modules of the classifier by their full names, and whether they are linear."""
    names = {
        f"{prefix}.{name}": isinstance(module, nn.Linear)
        for name, module in backbone.encoder.named_modules()
        if name and (prefix == "bert" or not name.startswith("pooler"))
    }
    return names | dict.fromkeys(CLASSIFIERS[prefix].head_modules, True)


def _check_targets(
    prefix: str,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    names: Mapping[str, bool],
    configured: PeftModules,
    backbone: Backbone,
) -> None:
    """Check that the tensors are those that the configuration names, with its ranks: PEFT itself
    starts the others at random."""
    modules, layers = dict(backbone.encoder.named_modules()), Layers(backbone)
    unmatched = configured.unmatched(names)
    if unmatched is not None:
        raise CannotConvert(
            f"{CONFIG} has {shown(unmatched)} in target_modules, which names no module of backbone"
            f" {backbone.name!r}; expected modules that it has, such as 'query'"
        )
    for whole, is_linear in names.items():
        name = whole.removeprefix(f"{prefix}.")
        if configured.targets(whole, linear=is_linear):
            if name in modules:
                _check_place(name, modules[name], layers)
            if name not in pairs:
                raise CannotConvert(
                    f"{WEIGHTS} has no LoRA at {shown(name)}, which target_modules name in backbone"
                    f" {backbone.name!r} of {backbone.reference.num_layers} layers; expected it"
                )
    for name, (a, b) in pairs.items():
        whole = f"{prefix}.{name}"
        if not configured.targets(whole, linear=True):
            raise CannotConvert(
                f"{WEIGHTS} has LoRA at {shown(name)}, which {CONFIG} does not name in"
                " target_modules; expected no other"
            )
        rank = configured.rank(whole)
        if not a.shape[0] == b.shape[1] == rank:
            raise CannotConvert(
                f"LoRA at {shown(name)} has an A of rank {a.shape[0]} and a B of rank"
                f" {b.shape[1]}; expected {shown(rank)}, as {CONFIG} says"
            )


def _layers(
    pairs: Mapping[str, tuple[Tensor, Tensor]], scales: Mapping[str, float], backbone: Backbone
) -> tuple[dict[str, JsonValue], dict[str, Tensor]]:
    """Return the spec's keys and the tensors of the layers' LoRA. A module of several sites, such
    as ModernBERT's `Wqkv`, gives each of them its A and the site's rows of its B. The scale is the
    most frequent one; what another differs from it is multiplied into B. Raises CannotConvert."""
    layers = Layers(backbone)
    sites: dict[LoraSite, dict[int, tuple[str, Place]]] = defaultdict(dict)
    for name in pairs:
        number, found = layers.sites(name)
        for site, place in found:
            sites[site][number] = name, place
    if not sites:
        modules = dict.fromkeys(place.module for place in layers.places.values())
        raise CannotConvert(
            f"{WEIGHTS} has LoRA in no layer; expected it at one of {', '.join(modules)}"
        )
    in_layers = [name for named in sites.values() for name, _ in named.values()]
    scale = Counter(scales[name] for name in in_layers).most_common(1)[0][0]
    first = min(number for named in sites.values() for number in named)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, JsonValue] = {}
    for site in (site for site in layers.places if site in sites):
        named = {
            number: (pairs[name][0], _part(pairs[name][1] * (scales[name] / scale), place))
            for number, (name, place) in sites[site].items()
        }
        tensors |= _stacked(site, named, range(first, backbone.reference.num_layers))
        ranks[site] = tensors[f"lora.{site}.a"].shape[1]
    form: dict[str, JsonValue] = {"kind": "lora", "ranks": ranks, "scale": scale}
    if first:
        form["first_layer"] = first
    if any(site in INNER_SITES for site in sites):
        form["intermediate_size"] = backbone.config.intermediate_size
    return form, tensors


def _part(b: Tensor, place: Place) -> Tensor:
    """The rows of a module's B `[outputs, r]` that are one site's."""
    return b.chunk(place.parts)[place.part]


def _stacked(
    site: LoraSite, layers: Mapping[int, tuple[Tensor, Tensor]], numbers: range
) -> dict[str, Tensor]:
    """Stack one site's A `[L, r, inputs]` and B `[L, outputs, r]`. Zeros fill up smaller ranks and
    layers without LoRA: they add nothing."""
    one_a, one_b = next(iter(layers.values()))
    rank = max(len(a) for a, _ in layers.values())
    if rank > MAX_RANK:  # before room is made for it in every layer
        raise CannotConvert(f"LoRA of {site} has rank {rank}; expected at most {MAX_RANK}")
    a = torch.zeros(len(numbers), rank, one_a.shape[1])
    b = torch.zeros(len(numbers), one_b.shape[0], rank)
    for i, layer in enumerate(numbers):
        if layer in layers:
            own = len(layers[layer][0])
            a[i, :own], b[i, :, :own] = layers[layer]
    return {f"lora.{site}.a": a, f"lora.{site}.b": b}


def _pooler(
    weights: dict[str, Tensor],
    prefix: str,
    lora: tuple[Tensor, Tensor] | None,
    scale: float,
    backbone: Backbone,
) -> dict[str, Tensor]:
    """Return BERT's pooler, dense and tanh over the first token, as our head's dense layer if it
    was trained: as a whole, or by LoRA. It is empty if it was not."""
    name = f"{prefix}.{POOLER}"
    if f"{name}.weight" in weights and prefix == "bert":
        return linear(weights, "head.dense", name)
    if lora is None:
        return {}
    a, b = (side.double() for side in lora)
    dense = backbone.encoder.get_submodule(POOLER)
    weight, bias = (dense.get_parameter(name).detach() for name in ("weight", "bias"))
    return {
        "head.dense.weight": (weight.double() + scale * b @ a).float(),
        "head.dense.bias": bias.float(),
    }


def _model_says(
    folder: Folder, backbone: Backbone, rows: int
) -> tuple[tuple[str, ...] | None, ProblemType]:
    """Labels and problem type as the model's configuration has them: the one beside the adapter,
    else the base model's if it has as many labels."""
    own = bool(folder.model)
    id2label = folder.model.get("id2label") if own else backbone.config.id2label
    labels = None
    if isinstance(id2label, Mapping) and all(NUMBER.fullmatch(str(key)) for key in id2label):
        numbered = {int(key): str(label) for key, label in id2label.items()}
        names = tuple(numbered[key] for key in sorted(numbered))
        if not all(map(UNNAMED.fullmatch, names)) and (own or len(names) == rows):
            labels = names
    said: Any = folder.model.get("problem_type")
    return labels, said if said in get_args(ProblemType) else problem_type(rows)
