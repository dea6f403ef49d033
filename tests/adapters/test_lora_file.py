"""LoRA in an adapter file: what goes in comes out and computes the formula, and whatever breaks
docs/adapter-format.md is refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters.attach import attached
from adapters.backbone import Backbone
from adapters.classifier import Head, collate, from_adapter, from_tensors, to_tensors
from adapters.errors import BackboneMismatch, InvalidAdapter
from adapters.file import Adapter, load, parse, read_summary, save, serialize
from adapters.lora import MODULES, Lora, layer_of
from adapters.parity import check_backbone
from adapters.replay import replay
from adapters.spec import LoraSite
from adapters.text import encode
from tests.adapters.test_adapters_cli import assert_refused, invoke
from tests.adapters.test_file import LIMITS, join, split
from tests.tiny import random_adapter

ALL: Mapping[LoraSite, int] = {
    "query": 4,
    "key": 1,
    "value": 3,
    "attention_out": 2,
    "up": 5,
    "down": 16,
}
SOME: Mapping[LoraSite, int] = {"query": 2, "value": 2}


@pytest.fixture(scope="module")
def valid(bert: Backbone) -> bytes:
    return random_adapter(bert, "t", ["a", "b"], ranks=ALL)[2]


@pytest.mark.parametrize("ranks", [ALL, SOME, {"down": 256}], ids=["all", "some", "one"])
def test_round_trip(bert: Backbone, tmp_path: Path, ranks: Mapping[LoraSite, int]) -> None:
    """A saved LoRA adapter loads with the same spec, tensors and probe."""
    spec, tensors, data = random_adapter(bert, "t", ["a", "b"], ranks=ranks, first_layer=1)
    path = tmp_path / "t.safetensors"
    saved, loaded = save(path, spec, tensors), load(path)
    assert saved.spec == loaded.spec == read_summary(path).spec == spec
    assert (spec.kind, spec.ranks, spec.bottleneck) == ("lora", dict(ranks), None)
    assert loaded.bytes == len(data)
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensors[name]) for name in tensors)
    replay(loaded, bert)


def test_bottlenecks_are_as_they_were(bert: Backbone) -> None:
    """A bottleneck's file names neither its kind nor anything of LoRA's."""
    header = split(random_adapter(bert, "t", ["a", "b"])[2])[0]
    spec = json.loads(header["__metadata__"]["spec"])
    assert not {"kind", "ranks", "scale", "intermediate_size"} & spec.keys()
    assert {"bottleneck", "activation"} < spec.keys()


def _merged(adapter: Adapter, encoder: nn.Module) -> dict[str, Tensor]:
    """The encoder's weights with `scale · B·A` added to them."""
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    first = adapter.spec.first_layer
    for site, module in MODULES.items():
        if f"lora.{site}.a" in adapter.tensors:
            a, b = (adapter.tensors[f"lora.{site}.{side}"].float() for side in ("a", "b"))
            for i in range(len(a)):
                state[f"encoder.layer.{first + i}.{module}.weight"] += (
                    adapter.spec.scale * b[i] @ a[i]
                )
    return state


@pytest.mark.parametrize("first_layer", [0, 1])
def test_the_reference_is_the_formula(bert: Backbone, first_layer: int) -> None:
    """The reference model computes what the encoder computes whose weights are W + scale · B·A
    (Hu et al. 2022)."""
    adapter = parse(
        random_adapter(bert, "t", ["a", "b"], ranks=ALL, scale=0.5, first_layer=first_layer)[2]
    )
    batch = collate(encode(bert.tokenizer, adapter.spec.probe.inputs, 64))
    with torch.no_grad():
        found = from_adapter(bert, adapter)(batch)
        hidden = torch.func.functional_call(
            bert.encoder,
            _merged(adapter, bert.encoder),
            (),
            {"input_ids": batch.ids, "token_type_ids": batch.types, "attention_mask": batch.mask},
        ).last_hidden_state
    weights = batch.mask.unsqueeze(-1)
    pooled = (hidden * weights).sum(1) / weights.sum(1)
    head = {name: adapter.tensors[f"head.out.{name}"].float() for name in ("weight", "bias")}
    torch.testing.assert_close(
        found, nn.functional.linear(pooled, head["weight"], head["bias"]), rtol=1e-5, atol=1e-5
    )


def test_made_and_read_back(bert: Backbone) -> None:
    """Tensors of a model's LoRA layers make the same model again; a fresh one changes nothing."""
    layers = nn.ModuleList(layer_of(ALL, 2.0, 32, 64) for _ in range(2))
    batch = collate(encode(bert.tokenizer, [("it is a good film",)], 64))
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
    with torch.no_grad():
        bare = bert.encoder(**inputs).last_hidden_state
        with attached(bert.encoder, layers):
            assert torch.equal(bert.encoder(**inputs).last_hidden_state, bare)
        for parameter in layers.parameters():
            parameter.normal_(0, 0.3)
        with attached(bert.encoder, layers):
            wanted = bert.encoder(**inputs).last_hidden_state
        tensors = to_tensors(layers, Head(32, 2, dense=False), torch.float32)
        again = from_tensors(bert, tensors, "mean", 2.0)
        with attached(bert.encoder, again.sites):
            assert torch.equal(bert.encoder(**inputs).last_hidden_state, wanted)
    assert not torch.equal(bare, wanted)
    assert torch.equal(bert.encoder(**inputs).last_hidden_state, bare)


def test_how_it_begins() -> None:
    """A fresh product has a random A, as `nn.Linear` draws it, and a B of zeros."""
    lora = Lora(32, 16, 4, 2.0)
    assert (lora.a.shape, lora.b.shape) == ((4, 32), (16, 4))
    assert lora.a.abs().max() <= 32**-0.5
    assert lora.a.std() > 0
    assert not lora.b.any()


SPECS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "prefix"}, "kind is 'prefix'; expected 'bottleneck' or 'lora'"),
    ({"kind": None}, "kind is None; expected 'bottleneck' or 'lora'"),
    ({"ranks": None}, "ranks is missing; expected it to be there with kind 'lora'"),
    ({"scale": None}, "scale is missing; expected it to be there with kind 'lora'"),
    ({"ranks": {}}, r"ranks is \{\}; .*at least 1"),
    ({"ranks": [4]}, r"ranks is \[4\]; expected an object"),
    ({"ranks": {"query": 0}}, "ranks.query is 0; expected greater than or equal to 1"),
    ({"ranks": {"query": 257}}, "ranks.query is 257; expected less than or equal to 256"),
    ({"ranks": {"query": 4.5}}, "ranks.query is 4.5; expected a valid integer"),
    ({"ranks": {"pooler": 4}}, "ranks.pooler is 'pooler'; expected 'query', 'key', 'value', 'att"),
    ({"ranks": {f"{i:05x}": 0 for i in range(40_000)}}, "spec holds .* values; expected at most"),
    ({"ranks": {"x" * 9000: 4}}, "ranks.xxx.*; expected 'query', 'key'"),
    ({"scale": 0}, "scale is 0; expected greater than 0"),
    ({"scale": -1.0}, "scale is -1.0; expected greater than 0"),
    ({"scale": float("nan")}, "scale is nan; expected a finite number"),
    ({"scale": float("inf")}, "scale is inf; expected a finite number"),
    ({"scale": 1e30}, r"scale is 1e\+30; expected less than or equal to 1024"),
    ({"scale": "2"}, "scale is '2'; expected a valid number"),
    ({"intermediate_size": None}, "intermediate_size is missing; .* with a rank for 'up'"),
    ({"intermediate_size": 0}, "intermediate_size is 0; expected greater than or equal to 1"),
    ({"ranks": {"query": 4}}, "intermediate_size is there; expected it with a rank for 'up' or"),
    ({"bottleneck": 8}, "bottleneck is there; expected no such key with kind 'lora'"),
    ({"activation": "gelu"}, "activation is there; expected no such key with kind 'lora'"),
    ({"kind": "bottleneck"}, "bottleneck is missing; expected it to be there with kind 'bottlen"),
]


@pytest.mark.parametrize(("change", "message"), SPECS)
def test_broken_specs(valid: bytes, change: dict[str, Any], message: str) -> None:
    """A spec that says of LoRA what the format does not allow is refused by the key, the value
    found and the value expected."""
    header, body = split(valid)
    spec = json.loads(header["__metadata__"]["spec"]) | change
    header["__metadata__"]["spec"] = json.dumps(
        {key: value for key, value in spec.items() if key == "kind" or value is not None}
    )
    with pytest.raises(InvalidAdapter, match=message) as caught:
        parse(join(header, body))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_bottleneck_with_ranks(bert: Backbone) -> None:
    """A bottleneck's spec that has ranks or a scale is refused."""
    header, body = split(random_adapter(bert, "t", ["a", "b"])[2])
    spec = json.loads(header["__metadata__"]["spec"])
    for key, value in (("ranks", {"query": 4}), ("scale", 1.0)):
        header["__metadata__"]["spec"] = json.dumps({**spec, key: value})
        with pytest.raises(InvalidAdapter, match=f"{key} is there; expected no such key with kind"):
            parse(join(header, body))


TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "A without B": (
        lambda t: t.pop("lora.query.b"),
        r"'lora.query.b' is missing; expected 'lora.query.b' of shape \[2, 32, 4\]",
    ),
    "B without A": (lambda t: t.pop("lora.up.a"), "tensor 'lora.up.a' is missing"),
    "another rank": (
        lambda t: t.update({"lora.value.a": torch.zeros(2, 4, 32)}),
        r"'lora.value.a' has shape \[2, 4, 32\]; expected \[2, 3, 32\] by the file's spec",
    ),
    "transposed": (
        lambda t: t.update({"lora.down.b": t["lora.down.b"].mT}),
        r"'lora.down.b' has shape \[2, 16, 32\]; expected \[2, 32, 16\]",
    ),
    "another width": (
        lambda t: t.update({"lora.up.b": torch.zeros(2, 96, 5)}),
        r"'lora.up.b' has shape \[2, 96, 5\]; expected \[2, 64, 5\]",
    ),
    "an unknown site": (
        lambda t: t.update({"lora.pooler.a": torch.zeros(1)}),
        "holds a tensor 'lora.pooler.a'; expected only lora.query.a, ",
    ),
    "a bottleneck's": (
        lambda t: t.update({"down.bias": torch.zeros(2, 4)}),
        "holds a tensor 'down.bias'; expected only lora.query.a, ",
    ),
    "NaN": (
        lambda t: t["lora.key.b"].fill_(float("nan")),
        "'lora.key.b' holds NaN or infinity; expected finite",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_broken_tensors(bert: Backbone, case: str) -> None:
    """A tensor of LoRA that is missing, unknown, of another shape or not finite is refused by its
    name."""
    breaking, message = TENSORS[case]
    spec, tensors, _ = random_adapter(bert, "t", ["a", "b"], ranks=ALL)
    breaking(tensors)
    with pytest.raises(InvalidAdapter, match=message):
        parse(serialize(spec, tensors))


def test_an_inner_layer_of_another_size(bert: Backbone) -> None:
    """A file with the right fingerprint and another intermediate size is refused."""
    spec, tensors, data = random_adapter(bert, "t", ["a", "b"], ranks={"up": 4})
    check_backbone(parse(data), bert.reference, **LIMITS)
    wide = {**tensors, "lora.up.b": torch.zeros(2, 96, 4)}
    adapter = parse(serialize(spec.model_copy(update={"intermediate_size": 96}), wide))
    with pytest.raises(BackboneMismatch, match="intermediate_size is 96; expected 64, as backbone"):
        check_backbone(adapter, bert.reference, **LIMITS)


def test_commands(bert: Backbone, bert_folder: Path, tmp_path: Path) -> None:
    """Inspect shows the ranks and the scale, validate replays the probe, and the export to
    AdapterHub names the kind that it cannot write."""
    path = tmp_path / "t.safetensors"
    path.write_bytes(random_adapter(bert, "t", ["a", "b"], ranks=SOME)[2])
    assert "LoRA of rank 2 at query, value; scale 2\n" in invoke("inspect", path).stdout
    assert invoke("validate", path, "--backbone", bert_folder).exit_code == 0
    assert_refused(
        invoke("export", path, tmp_path / "exported"),
        "'t' is of kind 'lora', and this writes AdapterHub's bottlenecks; expected 'bottleneck'",
    )
