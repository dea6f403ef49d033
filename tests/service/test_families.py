"""An encoder is described by its family, and the engine computes what the description says or
refuses it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.errors import BackboneError
from service.engine.activations import ACTIVATIONS
from service.engine.architecture import (
    Architecture,
    Embeddings,
    Layer,
    LearnedPositions,
    Numbering,
    RelativePositions,
)
from service.engine.encoder import PackedEncoder
from service.engine.families import registry
from tests import forks
from tests.service.test_encoder import check_hidden, rows_of

CPU = torch.device("cpu")
LENGTHS = [2, 17, 5, 5, 33, 64]


@pytest.fixture
def described(bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change what the engine is told of BERT's layers, or of the whole."""
    true = registry.describe(bert)

    def change(layer: dict[str, Any], **whole: Any) -> None:
        layers = (true.layers[0], replace(true.layers[1], **layer))
        changed = replace(true, layers=layers, **whole)
        monkeypatch.setattr(registry, "FAMILIES", {"bert": lambda _backbone: changed})

    return change


def test_every_backbone_that_loads_has_a_family() -> None:
    """The model types that can be loaded are those that the engine describes."""
    assert set(registry.FAMILIES) == set(backbones.FAMILIES)


def test_a_model_type_without_a_family(bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone of another family is refused, with the families that there are."""
    monkeypatch.setattr(registry, "FAMILIES", {"roberta": registry.FAMILIES["roberta"]})
    with pytest.raises(BackboneError, match=r"is a 'bert'; expected one of roberta$"):
        PackedEncoder(bert, CPU, torch.float32)


@pytest.mark.parametrize(
    ("layer", "whole", "said"),
    [
        ({"activation": "prelu"}, {}, r"layer 1: the activation is 'prelu'; expected one of gelu,"),
        ({"attention_norm": None}, {}, r"layer 1: there is no norm after attention; expected one"),
        ({"feed_forward_norm": nn.RMSNorm(32)}, {}, r"layer 1: a norm is a RMSNorm; expected a L"),
        ({"window": 0}, {}, r"layer 1: attention has a window of 0 tokens; expected 1 or more"),
        (
            {"window": 64, "positions": RelativePositions(torch.zeros(4, 127))},
            {},
            r"layer 1: attention has a window of 64 tokens and relative positions; expected one",
        ),
    ],
)
def test_what_the_engine_lacks(
    layer: dict[str, Any],
    whole: dict[str, Any],
    said: str,
    bert: Backbone,
    described: Callable[..., None],
) -> None:
    """A description that the engine cannot compute is refused in a sentence that names what it
    is."""
    described(layer, **whole)
    with pytest.raises(BackboneError, match=said):
        PackedEncoder(bert, CPU, torch.float32)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, bert: Backbone, bert_folder: Path, tmp_path: Path) -> None:
    """With each activation that it has, the engine gives transformers' hidden states."""
    check_hidden(_changed(bert_folder, tmp_path, hidden_act=name), rows_of(bert, LENGTHS))


def test_a_service_on_it_does_not_start(bert_folder: Path, tmp_path: Path) -> None:
    """A backbone that the engine refuses ends the start with one sentence and exit code 2."""
    _changed(bert_folder, tmp_path, hidden_act="sqrtsoftplus")
    done = forks.run(
        ["service", "--backbone", str(tmp_path), "--port", "0"],
        {**os.environ, "ADAMIX_STORE": str(tmp_path / "store")},
    )
    assert done.returncode == 2, done.stderr
    assert "the activation is 'sqrtsoftplus'; expected one of gelu," in done.stderr
    assert "Traceback" not in done.stderr


def test_layers_without_biases(bert: Backbone, described: Callable[..., None]) -> None:
    """A linear module or a norm without a bias counts as one whose bias is zero."""
    true = registry.describe(bert).layers[1]
    names = ("query", "key", "value", "attention_out", "attention_norm", "up", "down")
    bare: dict[str, nn.Module] = {}
    before: dict[str, torch.Tensor] = {}
    for name in names:
        module = getattr(true, name)
        bare[name] = type(module).__new__(type(module))
        bare[name].__dict__ = {**module.__dict__, "_parameters": {**module._parameters}}
        bare[name].register_parameter("bias", None)
        before[name] = module.bias.detach().clone()
    described(bare)
    try:
        for name in names:
            getattr(true, name).bias.data.zero_()
        check_hidden(bert, rows_of(bert, LENGTHS))
    finally:
        for name in names:
            getattr(true, name).bias.data.copy_(before[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_further_family_is_one_description(
    dtype: torch.dtype, bert: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DistilBERT, which names its modules otherwise and has no token types, needs a description
    and nothing else."""
    config = transformers.DistilBertConfig(
        vocab_size=bert.config.vocab_size,
        dim=32,
        n_layers=3,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    encoder = transformers.DistilBertModel(config).eval()
    backbone = Backbone("tiny", encoder, bert.tokenizer, "0" * 64, False, None)
    monkeypatch.setattr(registry, "FAMILIES", {"distilbert": _distilbert})
    rows = rows_of(bert, LENGTHS)
    packed = PackedEncoder(backbone, CPU, dtype)
    with torch.inference_mode():
        batch = packed.pack([(row.ids, row.types) for row in rows])
        found = packed.forward(batch).split([len(row.ids) for row in rows])
        for states, row in zip(found, rows, strict=True):
            wanted = encoder(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
            near = 1e-5 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(states.float(), wanted, rtol=near, atol=near)


def _distilbert(backbone: Backbone) -> Architecture:
    encoder: Any = backbone.encoder
    config, embeddings = backbone.config, encoder.embeddings
    return Architecture(
        name=backbone.name,
        width=config.dim,
        heads=config.n_heads,
        norm_eps=1e-12,
        positions=LearnedPositions(embeddings.position_embeddings),
        numbering=Numbering(),
        embeddings=Embeddings(embeddings.word_embeddings, None, embeddings.LayerNorm),
        layers=tuple(
            Layer(
                query=layer.attention.q_lin,
                key=layer.attention.k_lin,
                value=layer.attention.v_lin,
                attention_out=layer.attention.out_lin,
                attention_norm=layer.sa_layer_norm,
                up=layer.ffn.lin1,
                down=layer.ffn.lin2,
                feed_forward_norm=layer.output_layer_norm,
                activation=config.activation,
            )
            for layer in encoder.transformer.layer
        ),
        pooler=None,
    )


def _changed(source: Path, folder: Path, **changes: Any) -> Backbone:
    """The same weights in another folder, with another config."""
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return backbones.load(str(folder))
