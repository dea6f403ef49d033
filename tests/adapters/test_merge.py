"""Merging a mixture into one adapter, and an adapter's way through its file's tensors."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from adapters.backbone import Backbone
from adapters.bottleneck import Bottleneck, RoutedBottleneck
from adapters.classifier import Classifier, Head, collate, from_tensors, to_tensors
from adapters.merge import merge
from adapters.mixture import draw_routes
from adapters.text import encode

SHARING = [(False, True), (True, False), (False, False), (True, True)]


def _mixtures(experts: int, share_down: bool = False, share_up: bool = True) -> nn.ModuleList:
    sites = nn.ModuleList(
        RoutedBottleneck(32, 4, experts, share_down=share_down, share_up=share_up) for _ in range(2)
    )
    for parameter in sites.parameters():
        nn.init.normal_(parameter)
    return sites


@pytest.mark.parametrize(("share_down", "share_up"), SHARING)
@pytest.mark.parametrize("experts", [1, 3, 4])
def test_merged_is_the_mean(experts: int, share_down: bool, share_up: bool) -> None:
    """The merged adapter's weights and biases are the means of the experts'."""
    sites = _mixtures(experts, share_down, share_up)
    for merged, site in zip(merge(sites), sites, strict=True):
        for projection, mixture in ((merged.down, site.downs), (merged.up, site.ups)):
            for kind in ("weight", "bias"):
                mean = sum(getattr(expert, kind).double() for expert in mixture) / len(mixture)
                torch.testing.assert_close(
                    getattr(projection, kind), mean.float(), rtol=1e-6, atol=1e-7
                )


@pytest.mark.parametrize("experts", [2, 3, 5, 7])
def test_merging_copies_changes_nothing(experts: int) -> None:
    """The merger of M copies of one expert is that expert, to the bit."""
    sites = _mixtures(experts, share_up=False)
    for site in sites:
        for mixture in (site.downs, site.ups):
            for expert in mixture:
                expert.load_state_dict(mixture[0].state_dict())
    for merged, site in zip(merge(sites), sites, strict=True):
        assert torch.equal(merged.down.weight, site.downs[0].weight)
        assert torch.equal(merged.down.bias, site.downs[0].bias)
        assert torch.equal(merged.up.weight, site.ups[0].weight)
        assert torch.equal(merged.up.bias, site.ups[0].bias)


def test_training_can_go_on_after_a_merge() -> None:
    """Merging leaves the experts as they are, and the merged adapter shares no storage with
    them."""
    sites = _mixtures(3)
    before = [p.clone() for p in sites.parameters()]
    merged = merge(sites)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, sites.parameters(), strict=True))


def test_a_single_adapter_is_copied() -> None:
    """A site that is no mixture comes out of a merge as it went in."""
    site = Bottleneck(8, 2)
    (merged,) = merge([site])
    assert merged is not site
    assert all(
        torch.equal(a, b) for a, b in zip(site.parameters(), merged.parameters(), strict=True)
    )


def test_only_adapters_are_merged() -> None:
    """A module that is no adapter cannot be merged."""
    with pytest.raises(TypeError, match="a site is a Linear"):
        merge([nn.Linear(2, 2)])


@pytest.mark.parametrize("dense", [False, True])
def test_tensors_and_back(bert: Backbone, dense: bool) -> None:
    """A model that went through its file's tensors in float32 gives the same logits, to the bit."""
    head = Head(32, 3, dense=dense)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    sites = merge(_mixtures(4))
    before = Classifier(bert, sites, head, "cls").eval()
    after = from_tensors(bert, to_tensors(sites, head, torch.float32), "cls")
    batch = collate(encode(bert.tokenizer, [("a good film",), ("not",)], 16))
    assert torch.equal(before(batch), after(batch))


def test_merged_is_not_a_route(bert: Backbone) -> None:
    """The merged adapter answers otherwise than each single route of its mixture."""
    sites = _mixtures(2)
    head = Head(32, 2, dense=False)
    batch = collate(encode(bert.tokenizer, [("a good film",)], 16))
    merged = Classifier(bert, merge(sites), head, "cls").eval()(batch)
    routed = Classifier(bert, sites, head, "cls").eval()
    rng = random.Random(0)
    for _ in range(4):
        draw_routes(sites, rng)
        assert not torch.allclose(routed(batch), merged, atol=1e-4)
