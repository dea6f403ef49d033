"""Adapters that leave the lowest layers bare: what their file holds, how they are trained, what
does not take them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from adapters.attach import attached
from adapters.backbone import Backbone
from adapters.bottleneck import Bottleneck
from adapters.classifier import collate, from_adapter
from adapters.convert import to_adapterhub
from adapters.errors import CannotConvert, InvalidAdapter
from adapters.file import parse, serialize
from adapters.parity import check_parity
from adapters.text import encode
from tests.tiny import random_adapter
from tests.training.test_training import QUICK, SINGLE
from training.checkpoint import check_same
from training.errors import CheckpointError, TrainingError
from training.one_run import train


def test_a_file(bert: Backbone) -> None:
    """Of two layers of which the lower is bare the file holds one; where none is bare the spec says
    nothing of it."""
    spec, tensors, data = random_adapter(bert, "t", ["a", "b"], first_layer=1)
    adapter = parse(data)
    assert (adapter.spec.first_layer, adapter.spec) == (1, spec)
    assert {
        name: len(tensors[name]) for name in ("down.weight", "down.bias", "up.weight", "up.bias")
    } == dict.fromkeys(("down.weight", "down.bias", "up.weight", "up.bias"), 1)
    assert b"first_layer" not in random_adapter(bert, "t", ["a", "b"])[2]


def test_what_a_file_may_not_say(bert: Backbone) -> None:
    """At least one layer is adapted, and the tensors are as many as the spec says."""
    spec, tensors, _ = random_adapter(bert, "t", ["a", "b"], first_layer=1)
    with pytest.raises(
        InvalidAdapter, match="first_layer is 2; expected less than 2, the backbone's layers"
    ):
        parse(serialize(spec.model_copy(update={"first_layer": 2}), tensors))
    with pytest.raises(
        InvalidAdapter, match=r"shape \[1, 8, 32\]; expected \[2, 8, 32\] by the file's spec"
    ):
        parse(serialize(spec.model_copy(update={"first_layer": 0}), tensors))


def test_sites_are_those_of_the_uppermost_layers(bert: Backbone) -> None:
    """One site is attached to the last layer: what the layer below gives is what it gives
    without."""
    batch = collate(encode(bert.tokenizer, [("it is good",)], 64))
    site = Bottleneck(bert.reference.hidden_size, 4)
    torch.nn.init.normal_(site.up.bias)

    @torch.no_grad()
    def hidden() -> tuple[torch.Tensor, ...]:
        states: tuple[torch.Tensor, ...] = bert.encoder(
            input_ids=batch.ids, token_type_ids=batch.types, output_hidden_states=True
        ).hidden_states
        return states

    bare = hidden()
    with attached(bert.encoder, torch.nn.ModuleList([site])):
        adapted = hidden()
    assert torch.equal(bare[1], adapted[1])
    assert not torch.allclose(bare[2], adapted[2])


@pytest.mark.parametrize("method", ["adamix", "adapter"])
def test_training(bert: Backbone, method: str) -> None:
    """A run from the second layer on gives a file of one layer whose probe is true."""
    trained = train(
        "toy", bert, SINGLE, SINGLE, dataclasses.replace(QUICK, method=method, first_layer=1)
    )
    adapter = parse(serialize(trained.spec, trained.tensors))
    assert adapter.spec.first_layer == 1
    assert adapter.tensors["down.weight"].shape[0] == 1
    probe = encode(bert.tokenizer, adapter.spec.probe.inputs, adapter.spec.max_length)  # type: ignore[arg-type]
    with torch.no_grad():
        check_parity(adapter, from_adapter(bert, adapter)(collate(probe)).tolist(), "float32")


def test_refused_recipes(bert: Backbone) -> None:
    """Layers that the backbone has not got, and methods without an adapter in each layer, are
    refused."""
    with pytest.raises(
        TrainingError, match="first_layer is 2; expected less than 2, the backbone's layers"
    ):
        train("toy", bert, SINGLE, SINGLE, dataclasses.replace(QUICK, first_layer=2))
    with pytest.raises(
        TrainingError,
        match="first_layer is 1, but method is 'bitfit'; expected adamix, adapter",
    ):
        dataclasses.replace(QUICK, method="bitfit", first_layer=1)


def test_runs_from_before_the_choice(tmp_path: Path) -> None:
    """What was written down when there was no such choice is a run that adapted all layers."""
    check_same(tmp_path, {"bottleneck": 4}, {"bottleneck": 4, "first_layer": 0})
    with pytest.raises(CheckpointError, match="another first_layer"):
        check_same(tmp_path, {"bottleneck": 4}, {"bottleneck": 4, "first_layer": 3})


def test_export(bert: Backbone, tmp_path: Path) -> None:
    """An adapter with bare layers is not exported as if it had none."""
    adapter = parse(random_adapter(bert, "t", ["a", "b"], pooling="cls", first_layer=1)[2])
    with pytest.raises(CannotConvert, match="first_layer is 1"):
        to_adapterhub.write(adapter, tmp_path / "t")
