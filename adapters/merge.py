"""Routed experts → one adapter per layer, by averaging weights (AdaMix, arXiv 2205.12410, section
3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from adapters.bottleneck import Bottleneck, RoutedBottleneck
from adapters.lora import Lora, RoutedLora


def merge(sites: Iterable[nn.Module]) -> nn.ModuleList:
    """One adapter per layer, a `Bottleneck` or a `ModuleDict` of `Lora`: the mean of its experts'
    weights and biases, computed in float64 and rounded once (so that equal experts merge to exactly
    themselves). LoRA's A and B are averaged each for itself, as the released code does it
    (`adapters.lora.RoutedLora`).

    What is a single adapter already is copied. The experts are left as they are, so training can go
    on. Raises TypeError for a module that is no adapter.
    """
    return nn.ModuleList(_merge_site(site) for site in sites)


def average(experts: Sequence[Tensor], shares: Tensor | None = None) -> Tensor:
    """The mean of the experts' tensors, or their sum weighted by `shares` [M]; in float64, for the
    caller to round."""
    stacked = torch.stack([expert.double() for expert in experts])
    return (
        stacked.mean(dim=0) if shares is None else torch.tensordot(shares.double(), stacked, dims=1)
    )


@torch.no_grad()
def _merge_site(site: nn.Module) -> nn.Module:
    if isinstance(site, nn.ModuleDict):
        return nn.ModuleDict({name: _merge_lora(part) for name, part in site.items()})
    return _merge_bottleneck(site)


def _merge_bottleneck(site: nn.Module) -> Bottleneck:
    if isinstance(site, RoutedBottleneck):
        downs, ups = (cast(list[nn.Linear], [*experts]) for experts in (site.downs, site.ups))
    elif isinstance(site, Bottleneck):
        downs, ups = [site.down], [site.up]
    else:
        raise TypeError(
            f"a site is a {type(site).__name__}; expected Bottleneck or RoutedBottleneck"
        )
    bottleneck, hidden_size = downs[0].weight.shape
    merged = Bottleneck(hidden_size, bottleneck).to(downs[0].weight.device)
    for projection, experts in ((merged.down, downs), (merged.up, ups)):
        projection.weight.copy_(average([expert.weight for expert in experts]))
        projection.bias.copy_(average([expert.bias for expert in experts]))
    return merged


def _merge_lora(site: nn.Module) -> Lora:
    if isinstance(site, RoutedLora):
        downs, ups = [*site.a], [*site.b]
    elif isinstance(site, Lora):
        downs, ups = [site.a], [site.b]
    else:
        raise TypeError(f"a site is a {type(site).__name__}; expected Lora or RoutedLora")
    return Lora.of(average(downs), average(ups), site.scale).to(downs[0].device)
