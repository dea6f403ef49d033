"""All methods on DistilBERT, MPNet, ModernBERT and DeBERTa."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import get_args

import pytest
import torch

from adapters import backbone as backbones
from adapters.backbone import Backbone, fingerprint
from adapters.classifier import collate
from adapters.text import encode
from tests.tiny import FURTHER, tiny_backbone
from tests.training.test_training import QUICK, SINGLE
from training.config import Method, Recipe
from training.errors import TrainingError
from training.methods import build

METHODS = get_args(Method)


@cache
def backbone_of(family: str) -> Backbone:
    return backbones.load(str(tiny_backbone(Path(mkdtemp()), family)))


def recipe_of(method: Method, **changes: object) -> Recipe:
    sizes = {"bottleneck": Recipe.bottleneck, "rank": 4} if method == "lora" else {}
    return dataclasses.replace(QUICK, method=method, **{**sizes, **changes})


@pytest.mark.parametrize("family", FURTHER)
def test_methods(family: str) -> None:
    """Each method trains what it adds or unfreezes, each part of it gets a gradient, and the shared
    encoder stays as it was; BitFit is refused where there are no biases."""
    backbone = backbone_of(family)
    batch = collate(encode(backbone.tokenizer, SINGLE.texts, 32))
    for method in METHODS:
        if (family, method) == ("modernbert", "bitfit"):
            with pytest.raises(TrainingError, match=r"trains .* biases, and .* has none"):
                build(backbone, 2, recipe_of(method))
            continue
        model = build(backbone, 2, recipe_of(method)).train()
        model(batch).square().sum().backward()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # B and the up-projection begin so that some gradients are 0, but none is missing
        unused = [name for name, p in trained.items() if p.grad is None]
        drawn = ("downs", "ups")  # an expert that was not drawn
        assert not [name for name in unused if not any(part in name for part in drawn)], method
        assert len(trained) > 2, method
    assert fingerprint(backbone.encoder, backbone.tokenizer) == backbone.fingerprint


@pytest.mark.parametrize("family", FURTHER)
def test_every_site(family: str) -> None:
    """LoRA at each of the family's sites changes the logits, and a site that layers lack is
    refused."""
    backbone = backbone_of(family)
    batch = collate(encode(backbone.tokenizer, SINGLE.texts, 32))
    plain = build(backbone, 2, recipe_of("head")).eval()
    bare = plain(batch)
    for site in backbone.family.places:
        model = build(backbone, 2, recipe_of("lora", sites=site)).eval()
        model.head = plain.head
        torch.testing.assert_close(model(batch), bare)  # B begins at 0
        for name, parameter in model.sites.named_parameters():
            if name.endswith(".b"):
                torch.nn.init.normal_(parameter)
        assert (model(batch) - bare).abs().max() > 1e-4, site
    if "gate" not in backbone.family.places:
        with pytest.raises(TrainingError, match=r"sites has 'gate', which .*expected"):
            build(backbone, 2, recipe_of("lora", sites="gate"))


def test_the_head_of_modernbert() -> None:
    """A fresh head of ModernBERT's is dense, GELU and LayerNorm, as its own classifiers have it."""
    model = build(backbone_of("modernbert"), 2, recipe_of("adamix"))
    assert sorted(name for name, _ in model.head.named_children() if name != "dropout") == [
        "dense",
        "norm",
        "out",
    ]
