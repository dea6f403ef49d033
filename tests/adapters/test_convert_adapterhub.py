"""AdapterHub's folders → adapter files and back: against the formulas, and what is refused. Its own
library is asked by benchmarks/engine/adapterhub_parity.py, since it is imported by the name of
ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.file import Adapter, load
from adapters.spec import Pooling
from adapters.text import encode
from tests import formula
from tests.adapters.test_adapters_cli import assert_refused, invoke
from tests.adapters.test_convert_adamix import TEXTS, Payload
from tests.tiny import POSITIONS, random_adapter, tiny_backbone

# As `adapters` 1.3.0 writes it: BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=8,
# non_linearity="gelu").
CONFIG = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "init_weights_seed": None,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "learn_phm": True,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "non_linearity": "gelu",
    "original_ln_after": True,
    "original_ln_before": False,
    "output_adapter": True,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "reduction_factor": 8,
    "residual_before_ln": True,
    "scaling": 1.0,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}
HEAD = {
    "activation_function": "tanh",
    "bias": True,
    "dropout_prob": None,
    "head_type": "classification",
    "label2id": {"no": 1, "yes": 0, "perhaps": 2},
    "layers": 2,
    "num_labels": 3,
    "use_pooler": False,
}
MODELS = {
    "bert": "Bert",
    "electra": "Electra",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
}


@pytest.fixture(scope="module", params=["bert", "electra", "roberta", "xlm-roberta"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbones.load(str(tiny_backbone(tmp_path_factory.mktemp(request.param), request.param)))


def write(
    folder: Path,
    backbone: Backbone,
    *,
    config: Any = CONFIG,
    head: Any = HEAD,
    static: bool = False,
    r: int = 4,
) -> Path:
    """A folder as `save_adapter("t")` writes it, with random weights; `static` has the head of
    transformers' own classes."""
    d, layers = backbone.config.hidden_size, backbone.config.num_hidden_layers
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    site = f"{backbone.encoder.base_model_prefix}.encoder.layer.{{}}.output.adapters.t"
    weights = {}
    for i in range(layers):
        weights[f"{site.format(i)}.adapter_down.0.weight"] = draw(r, d)
        weights[f"{site.format(i)}.adapter_down.0.bias"] = draw(r)
        weights[f"{site.format(i)}.adapter_up.weight"] = draw(d, r)
        weights[f"{site.format(i)}.adapter_up.bias"] = draw(d)
    dense, out = (
        ("classifier.dense", "classifier.out_proj") if static else ("heads.t.1", "heads.t.4")
    )
    head_weights = {f"{dense}.weight": draw(d, d), f"{dense}.bias": draw(d)}
    head_weights |= {f"{out}.weight": draw(3, d), f"{out}.bias": draw(3)}
    if (static and backbone.config.model_type == "bert") or (not static and head["layers"] == 1):
        only = "classifier" if static else "heads.t.1"
        head_weights = {f"{only}.weight": draw(3, d), f"{only}.bias": draw(3)}
    kind = "ForSequenceClassification" if static else "AdapterModel"
    about = {
        "hidden_size": d,
        "model_class": MODELS[backbone.config.model_type] + kind,
        "model_name": "",
        "model_type": backbone.config.model_type,
        "name": "t",
        "version": "adapters.1.3.0",
    }
    static_head = {
        **about,
        "config": None,
        "name": None,
        "label2id": HEAD["label2id"],
        "num_labels": 3,
    }
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**about, "config": config}))
    (folder / "head_config.json").write_text(
        json.dumps(static_head if static else {**about, "config": head})
    )
    torch.save(weights, folder / "pytorch_adapter.bin")
    torch.save(head_weights, folder / "pytorch_model_head.bin")
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def convert(folder: Path, backbone: Backbone, *options: str) -> Any:
    fixed = [
        "--backbone",
        backbone.name,
        "--task",
        "t",
        "--max-length",
        "64",
        "--out",
        folder.parent / "out.safetensors",
    ]
    return invoke("convert", folder, *fixed, *options)


def logits(backbone: Backbone, adapter: Adapter) -> Tensor:
    with torch.no_grad():
        rows = encode(backbone.tokenizer, [(text,) for text in TEXTS], POSITIONS)
        return from_adapter(backbone, adapter)(collate(rows)).double()


def their_logits(backbone: Backbone, folder: Path, pooling: Pooling) -> Tensor:
    """The formulas on a folder's tensors under their own names."""
    sites, head = (
        torch.load(folder / name) for name in ("pytorch_adapter.bin", "pytorch_model_head.bin")
    )
    prefix = f"{backbone.encoder.base_model_prefix}.encoder.layer"

    def site(layer: int, x: Tensor) -> Tensor:
        names = [
            f"{side}.{kind}"
            for side in ("adapter_down.0", "adapter_up")
            for kind in ("weight", "bias")
        ]
        return formula.bottleneck(
            *(sites[f"{prefix}.{layer}.output.adapters.t.{name}"] for name in names), x
        )

    answers = []
    for row in encode(backbone.tokenizer, [(text,) for text in TEXTS], POSITIONS):
        states = formula.hidden(backbone.encoder, row.ids, row.types, site)
        x = formula.pooler(backbone.encoder, states) if pooling == "pooler" else states[0]
        # the dense layer sorts first, by number and by name
        linears = sorted({name.rpartition(".")[0] for name in head})
        for i, name in enumerate(linears):
            x = x @ head[f"{name}.weight"].double().T + head[f"{name}.bias"].double()
            x = torch.tanh(x) if i < len(linears) - 1 else x
        answers.append(x)
    return torch.stack(answers)


@pytest.mark.parametrize("head", [HEAD, {**HEAD, "layers": 1, "activation_function": None}])
def test_against_the_formulas(head: dict[str, Any], backbone: Backbone, tmp_path: Path) -> None:
    """A folder computes what the formulas do with its tensors, and its labels are taken in the
    order of the head's rows."""
    folder = write(tmp_path / "t", backbone, head=head)
    assert convert(folder, backbone).exit_code == 0
    adapter = load(tmp_path / "out.safetensors")
    assert (adapter.spec.labels, adapter.spec.pooling) == (("yes", "no", "perhaps"), "cls")
    torch.testing.assert_close(
        logits(backbone, adapter), their_logits(backbone, folder, "cls"), rtol=1e-4, atol=1e-5
    )


def test_the_heads_of_transformers(backbone: Backbone, tmp_path: Path) -> None:
    """The head of a `…ForSequenceClassification` is taken, BERT's over the pooler; ELECTRA's, with
    its GELU, is refused."""
    folder = write(tmp_path / "t", backbone, static=True)
    result = convert(folder, backbone)
    if backbone.config.model_type == "electra":
        assert_refused(result, "head_config.json is of 'ElectraForSequenceClassification'")
        return
    adapter = load(tmp_path / "out.safetensors")
    assert adapter.spec.pooling == ("pooler" if backbone.config.model_type == "bert" else "cls")
    expected = their_logits(backbone, folder, adapter.spec.pooling)
    torch.testing.assert_close(logits(backbone, adapter), expected, rtol=1e-4, atol=1e-5)


def test_pooler_multi_label_and_no_labels(bert: Backbone, tmp_path: Path) -> None:
    """A head over the pooler and a multi-label head keep what they are; one that names no labels
    needs them."""
    head = {**HEAD, "head_type": "multilabel_classification", "use_pooler": True, "label2id": None}
    folder = write(tmp_path / "t", bert, head=head)
    assert_refused(
        convert(folder, bert),
        "does not name the 3 rows of its head; expected --labels with 3 names",
    )
    assert convert(folder, bert, "--labels", "a, b, c").exit_code == 0
    adapter = load(tmp_path / "out.safetensors")
    assert (adapter.spec.labels, adapter.spec.pooling) == (("a", "b", "c"), "pooler")
    assert adapter.spec.problem_type == "multi_label_classification"
    torch.testing.assert_close(
        logits(bert, adapter), their_logits(bert, folder, "pooler"), rtol=1e-4, atol=1e-5
    )


def test_safetensors(bert: Backbone, tmp_path: Path) -> None:
    """Folders saved with `use_safetensors=True` convert to the very same file."""
    folder = write(tmp_path / "t", bert)
    convert(folder, bert)
    expected = (tmp_path / "out.safetensors").read_bytes()
    for old, new in (("pytorch_adapter.bin", "adapter"), ("pytorch_model_head.bin", "model_head")):
        safetensors.torch.save_file(torch.load(folder / old), folder / f"{new}.safetensors")
        (folder / old).unlink()
    assert convert(folder, bert).exit_code == 0
    assert (tmp_path / "out.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    "field",
    [
        {"residual_before_ln": False},
        {"adapter_residual_before_ln": True},
        {"dropout": 0.5},
        {"non_linearity": "gelu_python"},
        {"leave_out": None},
        {"reduction_factor": {"default": 8}},
    ],
)
def test_fields_without_effect(field: dict[str, Any], bert: Backbone, tmp_path: Path) -> None:
    """Fields that change nothing at inference, for an adapter of our form, do not matter."""
    assert convert(write(tmp_path / "t", bert, config={**CONFIG, **field}), bert).exit_code == 0


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (
            {"non_linearity": "relu"},
            "has non_linearity 'relu', which computes something else; expected 'gelu'",
        ),
        ({"non_linearity": "gelu_new"}, "has non_linearity 'gelu_new'"),
        (
            {"original_ln_before": True},
            "has original_ln_before True, which computes something else; expected False",
        ),
        ({"original_ln_after": False}, "has original_ln_after False"),
        ({"residual_before_ln": "post_add"}, "has residual_before_ln 'post_add'"),
        ({"ln_before": True}, "has ln_before True"),
        ({"ln_after": True}, "has ln_after True"),
        ({"mh_adapter": True}, "has mh_adapter True"),
        ({"output_adapter": False}, "has output_adapter False"),
        ({"is_parallel": True}, "has is_parallel True"),
        ({"scaling": 4.0}, "has scaling 4.0, which computes something else; expected 1.0"),
        ({"scaling": "learned"}, "has scaling 'learned'"),
        ({"use_gating": True}, "has use_gating True"),
        ({"phm_layer": True}, "has phm_layer True"),
        ({"inv_adapter": "nice"}, "has inv_adapter 'nice'"),
        ({"leave_out": [0]}, "has leave_out [0]"),
        (
            {"architecture": "lora"},
            "has architecture 'lora', which computes something else; expected None",
        ),
        ({"new_in_2.0": True}, "has the field 'new_in_2.0', which is not known"),
    ],
)
def test_other_configurations(
    field: dict[str, Any], reason: str, bert: Backbone, tmp_path: Path
) -> None:
    """A configuration that computes something else, or may, is refused by its field, what it is and
    what it should be."""
    assert_refused(
        convert(write(tmp_path / "t", bert, config={**CONFIG, **field}), bert),
        f"adapter_config.json {reason}",
    )
    assert not (tmp_path / "out.safetensors").exists()


def test_folders_that_look_alike(bert: Backbone, tmp_path: Path) -> None:
    """A PEFT adapter's folder is read as one; Git LFS pointers in the place of files are called
    what they are."""
    folder = write(tmp_path / "t", bert)
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    assert_refused(convert(folder, bert), "adapter_config.json has task_type None")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13\n"
    (folder / "adapter_config.json").write_bytes(pointer)
    assert_refused(convert(folder, bert), "adapter_config.json looks like a Git LFS pointer, which")
    (folder / "adapter_config.json").write_text(config)
    (folder / "pytorch_adapter.bin").write_bytes(pointer)
    assert_refused(convert(folder, bert), "pytorch_adapter.bin looks like a Git LFS pointer, which")


@pytest.mark.parametrize("damage", [(b"data.pkl", b"dat\xff.pkl"), (b"PK\x05\x06", b"PK\x00\x00")])
def test_a_damaged_archive(damage: tuple[bytes, bytes], bert: Backbone, tmp_path: Path) -> None:
    """An archive whose records cannot be listed, so that nobody knows how large it becomes, is
    refused in a sentence."""
    folder = write(tmp_path / "adapter", bert)
    weights = folder / "pytorch_adapter.bin"
    weights.write_bytes(weights.read_bytes().replace(*damage))
    result = convert(folder, bert)
    assert result.exit_code == 2, result.output
    assert "pytorch_adapter.bin is a damaged archive; expected" in result.stderr


def test_old_activations(bert: Backbone, tmp_path: Path) -> None:
    """In a folder without a version, gelu meant the approximation by tanh, and gelu_orig the exact
    one."""
    folder = write(tmp_path / "t", bert)
    about = json.loads((folder / "adapter_config.json").read_text())
    del about["version"]
    (folder / "adapter_config.json").write_text(json.dumps(about))
    assert_refused(convert(folder, bert), "has non_linearity 'gelu_new'")
    edit(folder / "adapter_config.json", config={**CONFIG, "non_linearity": "gelu_orig"})
    assert convert(folder, bert).exit_code == 0


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (
            {"head_type": "tagging"},
            "has head_type 'tagging'; expected 'classification' or 'multilabel_classification'",
        ),
        ({"layers": 3}, "has layers 3; expected 1 or 2"),
        ({"activation_function": "relu"}, "has activation_function 'relu'; expected 'tanh'"),
        ({"bias": False}, "has bias False; expected True"),
        (
            {"label2id": {"a": 0, "b": 2}},
            "has the label2id {'a': 0, 'b': 2}; expected names with the numbers from 0",
        ),
        ({"label2id": {"a": 0, "b": 1}}, "the head has 3 rows, but there are 2 labels"),
    ],
)
def test_other_heads(head: dict[str, Any], reason: str, bert: Backbone, tmp_path: Path) -> None:
    """A head of another form, or whose labels do not fit, is refused."""
    assert_refused(convert(write(tmp_path / "t", bert, head={**HEAD, **head}), bert), reason)


def test_broken_folders(bert: Backbone, tmp_path: Path) -> None:
    """A folder that lacks a file, or whose files are damaged, ragged or hostile, is refused in one
    sentence."""
    folder = write(tmp_path / "t", bert)
    adapter, config = folder / "pytorch_adapter.bin", folder / "adapter_config.json"
    weights = torch.load(adapter)
    first, last = min(weights), "bert.encoder.layer.1.output.adapters.t.adapter_up.weight"
    for broken, reason in (
        (
            {name: weights[name] for name in weights if name != last},
            "layer 1's adapter has no up.weight",
        ),
        (
            {name: weights[name] for name in weights if ".0.output." not in name},
            "layer 0 has no adapter, layer 1 has one",
        ),
        (
            {**weights, last: torch.ones(32, 5)},
            "layer 1 has up.weight of shape [32, 5]; expected layer 0's [32, 4]",
        ),
        (
            {**weights, f"{first}.scaling": torch.ones(1)},
            "adapter_down.0.bias.scaling' is not understood",
        ),
        (
            {**weights, first: Payload(tmp_path / "made")},
            "pytorch_adapter.bin holds code (posix.mkdir), which was not run",
        ),
    ):
        torch.save(broken, adapter)
        assert_refused(convert(folder, bert), reason)
    torch.save({}, adapter)
    assert_refused(convert(folder, bert), "t holds no adapter 't'; expected one in every layer")
    torch.save(weights, adapter)
    edit(config, name="other")
    assert_refused(
        convert(folder, bert),
        "is not understood; expected only adapter_down.0 and adapter_up of the adapter 'other'",
    )
    edit(config, name="t", model_type="roberta")
    assert_refused(convert(folder, bert), "the file is for a 'roberta' backbone; expected 'bert'")
    edit(config, config="pfeiffer")
    assert_refused(
        convert(folder, bert), "adapter_config.json has the config 'pfeiffer'; expected an object"
    )
    for content, reason in (("{", "is not JSON"), ("[]", "is a JSON list; expected an object")):
        config.write_text(content)
        assert_refused(convert(folder, bert), f"adapter_config.json {reason}")
    write(folder, bert)
    for name, reason in (
        ("pytorch_model_head.bin", "t has no model_head.safetensors and no pytorch_model_head.bin"),
        ("head_config.json", "t has no head_config.json"),
        ("pytorch_adapter.bin", "t has no adapter.safetensors and no pytorch_adapter.bin"),
        (
            "adapter_config.json",
            "t has no adapter_config.json; expected a folder that AdapterHub's save_adapter wrote",
        ),
    ):
        (folder / name).unlink()
        assert_refused(convert(folder, bert), reason)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]


def export(backbone: Backbone, tmp_path: Path, *more: str, task: str = "t", **options: Any) -> Any:
    path = tmp_path / "ours.safetensors"
    chosen = {"pooling": "cls", "bottleneck": 5, **options}
    path.write_bytes(random_adapter(backbone, task, ["yes", "no", "perhaps"], **chosen)[2])
    return invoke("export", path, tmp_path / "exported", *more)


@pytest.mark.parametrize(("pooling", "dense"), [("cls", True), ("cls", False), ("pooler", True)])
def test_export(pooling: Pooling, dense: bool, backbone: Backbone, tmp_path: Path) -> None:
    """An exported folder computes by the formulas what our file does, and converts back to the very
    same weights."""
    if pooling == "pooler" and not backbone.has_pooler:
        pytest.skip("this family has no pooler")
    result = export(backbone, tmp_path, pooling=pooling, dense=dense, dtype=torch.float32)
    assert result.stdout == f"{tmp_path / 'exported'}: adapter 't' for AdapterHub\n"
    ours = load(tmp_path / "ours.safetensors")
    expected = their_logits(backbone, tmp_path / "exported", pooling)
    torch.testing.assert_close(logits(backbone, ours), expected, rtol=1e-4, atol=1e-5)
    assert convert(tmp_path / "exported", backbone).exit_code == 0
    back = load(tmp_path / "out.safetensors")
    assert back.spec.labels == ours.spec.labels
    assert back.tensors.keys() == ours.tensors.keys()
    assert all(torch.equal(back.tensors[name], ours.tensors[name]) for name in ours.tensors)


def test_their_bottleneck_is_ours(bert: Backbone, tmp_path: Path) -> None:
    """For every bottleneck, AdapterHub's `int(hidden // reduction_factor)` of the exported factor
    gives it."""
    for r in (*range(1, 33), 40, 256):
        export(bert, tmp_path, bottleneck=r)
        config = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())["config"]
        assert int(32 // config["reduction_factor"]) == r
        for path in (tmp_path / "exported").iterdir():
            path.unlink()


def test_export_for_programs(bert: Backbone, tmp_path: Path) -> None:
    """With `--json` an export says which version of which task it wrote, as one object and nothing
    else."""
    result = export(bert, tmp_path, "--json")
    assert json.loads(result.stdout) == {
        "task": "t",
        "version": load(tmp_path / "ours.safetensors").version,
    }
    assert (tmp_path / "exported" / "adapter_config.json").is_file()


def test_what_cannot_be_exported(bert: Backbone, tmp_path: Path) -> None:
    """What AdapterHub has no head, model or name for is refused, and so is a folder that holds
    something."""
    camembert = backbones.load(str(tiny_backbone(tmp_path / "camembert", "camembert")))
    assert_refused(
        export(bert, tmp_path, pooling="mean"),
        "pooling is 'mean', which AdapterHub's heads do not have",
    )
    assert_refused(
        export(camembert, tmp_path),
        "AdapterHub has no camembert model that this writes; expected one of bert, roberta",
    )
    assert_refused(
        export(bert, tmp_path, task="train"), "task 'train' is a word that PyTorch keeps for itself"
    )
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "mine").touch()
    assert_refused(export(bert, tmp_path), "Directory not empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "camembert",
        "exported",
        "ours.safetensors",
    ]
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["mine"]
    assert_refused(
        invoke("export", tmp_path / "ours.safetensors", tmp_path / "no" / "where"),
        "cannot be exported: [Errno 2] No such",
    )
