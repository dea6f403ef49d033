"""A warm start: every expert begins as another task's merged adapter (Hu et al. 2022 start rte,
mrpc and stsb from mnli)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.bottleneck import Bottleneck, RoutedBottleneck
from adapters.classifier import Classifier, Head
from adapters.errors import BackboneMismatch, InvalidAdapter
from adapters.file import Adapter, load
from adapters.lora import Lora, RoutedLora
from adapters.parity import check_backbone
from adapters.spec import LoraSite
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
    """Copy the adapter into each site's experts and, if the heads are built alike, its hidden
    layer and, if the labels are the same too, its output layer.

    LoRA of another scale begins at the same product: what the scales differ by goes into B. Raises
    TrainingError if the adapter is of another backbone, kind, size or first layer.
    """
    check_fits(adapter, backbone, recipe)
    tensors = adapter.tensors
    for i, site in enumerate(model.sites):
        for tensor, parameter in _parameters(site):
            parameter.copy_(tensors[tensor][i])
            if tensor.startswith("lora.") and tensor.endswith(".b"):
                parameter.mul_((adapter.spec.scale or 1.0) / recipe.scale)
    if not isinstance(model.head, Head) or adapter.spec.pooling == "mask":
        return
    own = [getattr(model.head, part) is not None for part in ("dense", "norm")]
    if own == [f"head.{part}.weight" in tensors for part in ("dense", "norm")]:
        head = {
            name.removeprefix("head."): tensor
            for name, tensor in tensors.items()
            if name.startswith("head.")
        }
        if adapter.spec.labels != labels:
            head = {name: tensor for name, tensor in head.items() if not name.startswith("out.")}
        model.head.load_state_dict(head, strict=False)


def check_fits(adapter: Adapter, backbone: Backbone, recipe: Recipe) -> None:
    """Raise TrainingError unless the recipe's adapters have the shape of this one, on its
    backbone."""
    spec = adapter.spec
    try:
        check_backbone(
            adapter,
            backbone.reference,
            intermediate_size=backbone.encoder_config.intermediate_size,
            max_length=spec.max_length,
            has_pooler=True,
            has_mask=True,
        )
    except BackboneMismatch as error:
        raise TrainingError(f"--init {name(adapter)}: {error}") from None
    if spec.kind != recipe.adaptation:
        raise TrainingError(
            f"--init {name(adapter)} is of kind {spec.kind!r}; expected {recipe.adaptation!r},"
            " which this run trains"
        )
    size = "bottleneck" if spec.ranks is None else "ranks"
    for of in (size, "first_layer"):
        found, expected = getattr(spec, of), getattr(recipe, of)
        if found != expected:
            raise TrainingError(
                f"--init {name(adapter)} has {of} {_shown(found)}; expected {_shown(expected)},"
                " as this run has"
            )


def _shown(size: int | Mapping[LoraSite, int]) -> str:
    if isinstance(size, int):
        return str(size)
    return ", ".join(f"{site} {rank}" for site, rank in sorted(size.items()))


def _parameters(site: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of a layer's adapter with the name of the tensor that it begins as."""
    if isinstance(site, nn.ModuleDict):
        for name, part in site.items():
            if isinstance(part, RoutedLora):
                yield from ((f"lora.{name}.a", expert) for expert in part.a)
                yield from ((f"lora.{name}.b", expert) for expert in part.b)
            elif isinstance(part, Lora):
                yield from ((f"lora.{name}.a", part.a), (f"lora.{name}.b", part.b))
        return
    for side, projection in _projections(site):
        yield from ((f"{side}.{of}", parameter) for of, parameter in projection.named_parameters())


def _projections(site: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    if isinstance(site, RoutedBottleneck):
        yield from (("down", expert) for expert in site.downs)  # type: ignore[misc]  # a ModuleList of them
        yield from (("up", expert) for expert in site.ups)  # type: ignore[misc]
    elif isinstance(site, Bottleneck):
        yield from (("down", site.down), ("up", site.up))
