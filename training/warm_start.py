"""A warm start: every expert begins as another task's merged adapter (Hu et al. 2022 start rte,
mrpc and stsb from mnli)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from adapters.backbone import Backbone
from adapters.bottleneck import Bottleneck, RoutedBottleneck
from adapters.classifier import Classifier, Head
from adapters.errors import BackboneMismatch, InvalidAdapter
from adapters.file import Adapter, load
from adapters.parity import check_backbone
from training.config import Recipe
from training.errors import TrainingError


def read(path: Path) -> Adapter:
    """The adapter to start from. Raises TrainingError."""
    try:
        return load(path)
    except InvalidAdapter as error:
        raise TrainingError(f"--init {path}: {error}") from None
    except OSError as error:
        raise TrainingError(f"--init {path} cannot be read: {error.strerror}") from None


def name(adapter: Adapter) -> str:
    """What a recipe calls it."""
    return f"{adapter.spec.task}@{adapter.version}"


@torch.no_grad()
def begin_as(
    model: Classifier, adapter: Adapter, backbone: Backbone, labels: tuple[str, ...], recipe: Recipe
) -> None:
    """Copy the adapter into each site's experts and, if the heads are built alike, its dense layer
    and, if the labels are the same too, its output layer.

    Raises TrainingError if it is of another backbone, bottleneck or first layer.
    """
    check_fits(adapter, backbone, recipe)
    tensors = adapter.tensors
    for i, site in enumerate(model.sites):
        for side, projection in _projections(site):
            projection.weight.copy_(tensors[f"{side}.weight"][i])
            projection.bias.copy_(tensors[f"{side}.bias"][i])
    if not isinstance(model.head, Head) or adapter.spec.pooling == "mask":
        return
    if (model.head.dense is not None) == ("head.dense.weight" in tensors):
        head = {
            name.removeprefix("head."): tensor
            for name, tensor in tensors.items()
            if name.startswith("head.")
        }
        if adapter.spec.labels != labels:
            head = {name: tensor for name, tensor in head.items() if name.startswith("dense.")}
        model.head.load_state_dict(head, strict=False)


def check_fits(adapter: Adapter, backbone: Backbone, recipe: Recipe) -> None:
    """Raise TrainingError unless the recipe's adapters have the shape of this one, on its
    backbone."""
    spec = adapter.spec
    try:
        check_backbone(
            adapter,
            backbone.reference,
            intermediate_size=backbone.config.intermediate_size,
            max_length=spec.max_length,
            has_pooler=True,
            has_mask=True,
        )
    except BackboneMismatch as error:
        raise TrainingError(f"--init {name(adapter)}: {error}") from None
    for of in ("bottleneck", "first_layer"):
        found, expected = getattr(spec, of), getattr(recipe, of)
        if found != expected:
            raise TrainingError(
                f"--init {name(adapter)} has {of} {found}; expected {expected}, as this run has"
            )


def _projections(site: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    if isinstance(site, RoutedBottleneck):
        yield from (("down", expert) for expert in site.downs)  # type: ignore[misc]  # a ModuleList of them
        yield from (("up", expert) for expert in site.ups)  # type: ignore[misc]
    elif isinstance(site, Bottleneck):
        yield from (("down", site.down), ("up", site.up))
