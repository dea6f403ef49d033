"""Adapters within an encoder of transformers, by hooks: of the reference model and of training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters.families.family import Place
from adapters.families.registry import family_of
from adapters.spec import LoraSite


@contextlib.contextmanager
def attached(encoder: PreTrainedModel, sites: nn.ModuleList) -> Iterator[None]:
    """Within the context, each of the uppermost layers has its adapter. The encoder itself is not
    changed.

    A `ModuleDict` adds at the sites that it names what its modules make of the sites' inputs. The
    feed-forward's output passes through any other module: right after the site `down`, before
    dropout, residual and LayerNorm. Where a layer has its sites, its family says.
    """
    layers = encoder_layers(encoder)
    places = family_of(encoder.config).places
    if not 1 <= len(sites) <= len(layers):
        raise ValueError(
            f"there are {len(sites)} adapters for {len(layers)} layers; expected at least one, at"
            " most one each"
        )
    handles = [
        layer.get_submodule(place).register_forward_hook(hook)
        for layer, site in zip(layers[-len(sites) :], sites, strict=True)
        for place, hook in _hooks(site, places)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def encoder_layers(encoder: PreTrainedModel) -> nn.ModuleList:
    """The encoder's layers, the lowest first."""
    return cast(nn.ModuleList, encoder.get_submodule(family_of(encoder.config).layers))


def _hooks(
    site: nn.Module, places: Mapping[LoraSite, Place]
) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """The modules of a layer that an adapter changes, and how."""
    if isinstance(site, nn.ModuleDict):
        for name, added in site.items():
            place = places[cast(LoraSite, name)]
            yield place.module, _adding(added, place)
    else:
        yield places["down"].module, _applying(site)


def _adding(added: nn.Module, place: Place) -> Callable[..., Tensor]:
    def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change: Tensor = added(inputs[0])
        if place.parts > 1:
            width = change.shape[-1]
            rest = (place.part * width, (place.parts - place.part - 1) * width)
            change = nn.functional.pad(change, rest)
        return output + change

    return add


def _applying(site: nn.Module) -> Callable[..., Tensor]:
    def apply(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        adapted: Tensor = site(output)
        return adapted

    return apply
