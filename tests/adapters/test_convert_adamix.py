"""AdaMix's released checkpoints → adapter files: against the paper's formulas, and what is
refused."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.file import load
from adapters.text import encode
from tests import formula
from tests.adapters.test_adapters_cli import assert_refused, invoke
from tests.service.conftest import running
from tests.tiny import POSITIONS, tiny_backbone

TEXTS = ["it is a good film", "the plot was awful and not very good", "red"]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbones.load(str(tiny_backbone(tmp_path_factory.mktemp("roberta"), "roberta")))


def checkpoint(
    backbone: Backbone,
    *,
    rows: int = 3,
    r: int = 4,
    downs: int = 4,
    ups: int = 1,
    scores: float = 0.0,
) -> dict[str, Tensor]:
    """What `save_partial_model(keys=["ExpertSoup", "classifier"])` of the authors' trainer
    saves."""
    config, generator = backbone.config, torch.Generator().manual_seed(0)
    d, prefix = config.hidden_size, backbone.encoder.base_model_prefix

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    weights = {}
    for i in range(config.num_hidden_layers):
        for side, experts, (out, into) in (("A", downs, (r, d)), ("B", ups, (d, r))):
            soup = f"{prefix}.encoder.layer.{i}.output.ExpertSoup.MoA_{side}"
            weights[f"{soup}.expert_score_weight"] = scores * draw(experts)
            for m in range(experts):
                weights[f"{soup}.deepspeed_experts.{m}.weight"] = draw(out, into)
                weights[f"{soup}.deepspeed_experts.{m}.bias"] = draw(out)
    head = (
        {"classifier": rows}
        if prefix == "bert"
        else {"classifier.dense": d, "classifier.out_proj": rows}
    )
    for name, out in head.items():
        weights |= {f"{name}.weight": draw(out, d), f"{name}.bias": draw(out)}
    return weights


def merged_logits(backbone: Backbone, weights: dict[str, Tensor], text: str) -> Tensor:
    """The merged mixture's logits by the formulas: each expert's share is the softmax of its
    score."""
    prefix = backbone.encoder.base_model_prefix

    def mean(layer: int, side: str, kind: str) -> Tensor:
        soup = f"{prefix}.encoder.layer.{layer}.output.ExpertSoup.MoA_{side}"
        shares = torch.exp(weights[f"{soup}.expert_score_weight"].double())
        experts = [
            weights[f"{soup}.deepspeed_experts.{m}.{kind}"].double() for m in range(len(shares))
        ]
        return sum(
            share * expert for share, expert in zip(shares / shares.sum(), experts, strict=True)
        )

    def site(layer: int, x: Tensor) -> Tensor:
        parts = [mean(layer, side, kind) for side in "AB" for kind in ("weight", "bias")]
        return formula.bottleneck(*parts, x)

    (row,) = encode(backbone.tokenizer, [(text,)], POSITIONS)
    states = formula.hidden(backbone.encoder, row.ids, row.types, site)
    w = {name: tensor.double() for name, tensor in weights.items()}
    if prefix == "bert":
        return (
            formula.pooler(backbone.encoder, states) @ w["classifier.weight"].T
            + w["classifier.bias"]
        )
    dense = torch.tanh(states[0] @ w["classifier.dense.weight"].T + w["classifier.dense.bias"])
    return dense @ w["classifier.out_proj.weight"].T + w["classifier.out_proj.bias"]


def whole(backbone: Backbone, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same within the whole model, with the counter that old versions of transformers store."""
    prefix = backbone.encoder.base_model_prefix
    encoder = {
        f"{prefix}.{name}": tensor.clone() for name, tensor in backbone.encoder.named_parameters()
    }
    return {
        **weights,
        **encoder,
        f"{prefix}.embeddings.position_ids": torch.arange(POSITIONS).unsqueeze(0),
    }


def convert(source: Path, backbone: Backbone, *options: str, labels: str = "a,b,c") -> Any:
    """`adapters convert` with what it always needs; the file goes beside the source."""
    fixed = [
        "--backbone",
        backbone.name,
        "--task",
        "t",
        "--max-length",
        "64",
        "--out",
        source.parent / "out.safetensors",
    ]
    return invoke("convert", source, *fixed, *(["--labels", labels] if labels else []), *options)


def saved(folder: Path, weights: Any) -> Path:
    torch.save(weights, folder / "pytorch_model_t_expert_soup.bin")
    return folder / "pytorch_model_t_expert_soup.bin"


@pytest.mark.parametrize(("downs", "ups"), [(4, 1), (1, 4), (3, 3), (1, 1)])
@pytest.mark.parametrize("scores", [0.0, 1.0])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_against_the_formulas(
    family: str, scores: float, downs: int, ups: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A checkpoint, whichever projection its experts share, computes what the formulas do with the
    experts merged."""
    backbone: Backbone = request.getfixturevalue(family)
    weights = checkpoint(backbone, downs=downs, ups=ups, scores=scores)
    result = convert(saved(tmp_path, weights), backbone)
    assert result.exit_code == 0, result.output
    adapter = load(tmp_path / "out.safetensors")
    found = from_adapter(backbone, adapter)(
        collate(encode(backbone.tokenizer, [(text,) for text in TEXTS], POSITIONS))
    )
    expected = torch.stack([merged_logits(backbone, weights, text) for text in TEXTS])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.1  # the texts are told apart, so the comparison says something


def test_what_the_file_says(bert: Backbone, bert_folder: Path, tmp_path: Path) -> None:
    """The converted file has the options' task, labels and lengths, BERT's pooler, and a probe that
    replays."""
    result = convert(saved(tmp_path, checkpoint(bert)), bert, "--text-pair", "--dtype", "float16")
    spec = load(tmp_path / "out.safetensors").spec
    assert result.stdout.startswith(
        f"{tmp_path / 'out.safetensors'}: an adapter for task t, version "
    )
    assert (spec.labels, spec.problem_type, spec.text_pair) == (
        ("a", "b", "c"),
        "single_label_classification",
        True,
    )
    assert (spec.pooling, spec.bottleneck, spec.max_length, spec.backbone) == (
        "pooler",
        4,
        64,
        bert.reference,
    )
    assert spec.training["experts"] == {"down": 4, "up": 1}
    assert (
        invoke("validate", tmp_path / "out.safetensors", "--backbone", bert_folder).exit_code == 0
    )


def test_regression_and_labels_as_json(bert: Backbone, tmp_path: Path) -> None:
    """A head of one row is a regression, and labels may be a JSON list, for names with commas."""
    convert(saved(tmp_path, checkpoint(bert, rows=1)), bert, labels='["how alike, 0 to 5"]')
    spec = load(tmp_path / "out.safetensors").spec
    assert (spec.problem_type, spec.labels) == ("regression", ("how alike, 0 to 5",))


def test_the_user_s_own_probe(bert: Backbone, tmp_path: Path) -> None:
    """The probe takes the first eight texts of a file of training data."""
    rows = [{"text": f"film {i}", "label": "a"} for i in range(9)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    convert(saved(tmp_path, checkpoint(bert)), bert, "--probe", str(tmp_path / "train.jsonl"))
    assert load(tmp_path / "out.safetensors").spec.probe.inputs == tuple(
        (row["text"],) for row in rows[:8]
    )


def test_the_format_of_old_versions(bert: Backbone, tmp_path: Path) -> None:
    """What PyTorch wrote before 1.6, a run of pickles, converts to the very same file as what it
    writes now."""
    weights = checkpoint(bert)
    convert(saved(tmp_path, weights), bert)
    expected = (tmp_path / "out.safetensors").read_bytes()
    torch.save(weights, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert convert(tmp_path / "old.bin", bert).exit_code == 0
    assert (tmp_path / "out.safetensors").read_bytes() == expected


def test_safetensors_of_any_length(bert: Backbone, tmp_path: Path) -> None:
    """A safetensors file whose header has a length that begins as a pickle does is still a
    safetensors file."""
    like_a_pickle = b"\x80"
    padded = (safetensors.torch.save(checkpoint(bert), {"pad": "x" * n}) for n in range(256))
    source = tmp_path / "soup.bin"
    source.write_bytes(next(data for data in padded if data.startswith(like_a_pickle)))
    assert convert(source, bert).exit_code == 0


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_safetensors_and_whole_models(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A safetensors file, and a checkpoint that carries the unchanged backbone, convert to the very
    same file."""
    backbone: Backbone = request.getfixturevalue(family)
    weights = checkpoint(backbone)
    convert(saved(tmp_path, weights), backbone)
    expected = (tmp_path / "out.safetensors").read_bytes()
    for source in (weights, whole(backbone, weights)):
        safetensors.torch.save_file(source, tmp_path / "soup.bin")
        assert convert(tmp_path / "soup.bin", backbone).exit_code == 0
        assert (tmp_path / "out.safetensors").read_bytes() == expected


def test_a_fine_tuned_backbone(bert: Backbone, tmp_path: Path) -> None:
    """A checkpoint whose backbone was trained as well is refused: the frozen one would answer
    otherwise."""
    weights = whole(bert, checkpoint(bert))
    weights["bert.encoder.layer.1.attention.self.query.weight"][0, 0] += 1e-3
    result = convert(saved(tmp_path, weights), bert)
    assert_refused(
        result, "the backbone tensor 'encoder.layer.1.attention.self.query.weight' is not what"
    )
    assert "it was fine-tuned" in result.stderr


class Payload:
    """Unpickled, it makes a folder: what a hostile checkpoint would do, and worse."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_is_never_run(bert: Backbone, tmp_path: Path) -> None:
    """A checkpoint that holds code is refused without running it, in PyTorch's format and as a
    plain pickle."""
    hostile = {**checkpoint(bert), "classifier.bias": Payload(tmp_path / "made")}
    source = saved(tmp_path, hostile)
    assert_refused(
        convert(source, bert), f"{source.name} holds code (posix.mkdir), which was not run"
    )
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        source.write_bytes(pickle.dumps({"a": Payload(tmp_path / "made")}, protocol=protocol))
        found = (
            "is a plain pickle"
            if protocol >= 2
            else "holds code"
            if protocol
            else "is no readable pickle of tensors"
        )
        assert_refused(convert(source, bert), f"{source.name} {found}")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    pickle.loads(pickle.dumps(Payload(tmp_path / "made")))
    assert (tmp_path / "made").exists()  # the payload is a real one


SOUP = "bert.encoder.layer.1.output.ExpertSoup.MoA_A"
EXPERT = f"{SOUP}.deepspeed_experts.2"


def without(name: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in weights.items() if not key.startswith(name)}


def having(name: str, value: Any, weights: dict[str, Any]) -> dict[str, Any]:
    return {**weights, name: value}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (partial(without, "bert.encoder.layer.0."), "layer 0 has no ExpertSoup, layer 1 has one"),
        (partial(without, "bert.encoder.layer.1."), "the file has 1 layers of 32; expected 2 of 32"),
        (partial(without, "bert."), "holds no tensors named as AdaMix has them"),
        (partial(without, EXPERT), "layer 1's MoA_A lacks 'deepspeed_experts.2.weight'"),
        (partial(without, f"{SOUP}.deepspeed_experts.3"), "has expert_score_weight of shape [4] for 3 experts"),
        (partial(without, SOUP), "layer 1's MoA_A lacks 'deepspeed_experts'"),
        (partial(without, "classifier.bias"), "the tensor 'classifier.bias' is missing"),
        (partial(having, "classifier.dense.weight", torch.ones(32, 32)), "'classifier.dense.weight' is not understood"),
        (partial(having, f"{EXPERT}.weight", torch.ones(5, 32)), "whose weights have the shapes [(4, 32), (5, 32)]"),
        (partial(having, f"{EXPERT}.weight", torch.ones(4)), "is torch.float32 of shape [4]; expected floating point of 2"),
        (partial(having, f"{EXPERT}.bias", torch.ones(4).long()), "is torch.int64 of shape [4]; expected floating point"),
        (partial(having, f"{EXPERT}.scale", torch.ones(4)), "holds 'deepspeed_experts.2.scale'; expected deepspeed_experts"),
        (partial(having, f"{EXPERT}.bias", torch.full((4,), torch.nan)), "down.bias holds NaN, infinity or what"),
        (partial(having, "classifier.weight", torch.ones(3, 16)), "head.out.weight has shape [3, 16]; expected [3, 32]"),
        (partial(having, "bert.x.weight", torch.ones(1)), "the tensor 'x.weight' is not understood"),
        (partial(having, "lm_head.bias", torch.ones(1)), "the tensor 'lm_head.bias' is not understood"),
        (partial(having, "model", {"a": torch.ones(1)}), "holds a dict under 'model'; expected dense tensors by name"),
        (partial(having, SOUP.replace("bert", "roberta") + ".x", torch.ones(1)), "holds bert and roberta tensors"),
        (partial(having, "bert.x", torch.ones(1).expand(10**6, 10**6)), "holds a Tensor under 'bert.x'; expected dense"),
        (partial(having, "bert.x", torch.ones(1, device="meta")), "holds a Tensor under 'bert.x'; expected dense"),
        (lambda _: [torch.ones(1)], "holds a list; expected tensors by name"),
        (lambda _: {}, "holds no tensors named as AdaMix has them"),
    ],
)  # fmt: skip
def test_broken_checkpoints(
    damage: Callable[[dict[str, Any]], Any], reason: str, bert: Backbone, tmp_path: Path
) -> None:
    """What lacks, is ragged, or is not known in a checkpoint is named in one sentence, and nothing
    is written."""
    assert_refused(convert(saved(tmp_path, damage(checkpoint(bert))), bert), reason)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_compressed_archive(bert: Backbone, tmp_path: Path) -> None:
    """A checkpoint that was compressed is refused before it is expanded: it could become a thousand
    times its size."""
    source = saved(tmp_path, {**checkpoint(bert), "bert.x": torch.zeros(1 << 20)})
    packed = tmp_path / "packed.bin"
    with (
        zipfile.ZipFile(source) as whole,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for entry in whole.infolist():
            out.writestr(entry.filename, whole.read(entry))
    assert packed.stat().st_size < 1 << 20
    assert_refused(convert(packed, bert), "packed.bin is a compressed archive, which could become")


def test_more_tensors_than_a_model_has(bert: Backbone, tmp_path: Path) -> None:
    """A checkpoint of very many tensors is refused before they are read, and so is one of very many
    views of a few."""
    many = {f"bert.{i}": torch.zeros(1) for i in range(10_100)}
    assert_refused(
        convert(saved(tmp_path, {**checkpoint(bert), **many}), bert),
        "records; expected at most 10100",
    )
    view = torch.zeros(1)
    views = {f"bert.{i}": view for i in range(10_001)}
    assert_refused(
        convert(saved(tmp_path, {**checkpoint(bert), **views}), bert),
        "tensors; expected at most 10000",
    )


def test_layers_that_differ(bert: Backbone, tmp_path: Path) -> None:
    """Layers with another bottleneck or another number of experts than the first are refused."""
    second = {key: value for key, value in checkpoint(bert, r=5).items() if ".1.output." in key}
    result = convert(saved(tmp_path, {**checkpoint(bert), **second}), bert)
    assert_refused(result, "layer 1 has down.weight of shape [5, 32]; expected layer 0's [4, 32]")
    first = without(f"{SOUP}.", checkpoint(bert))
    third = {
        key: value for key, value in checkpoint(bert, downs=3).items() if key.startswith(f"{SOUP}.")
    }
    assert_refused(
        convert(saved(tmp_path, {**first, **third}), bert),
        "layer 1 has 3 experts in MoA_A; expected 4",
    )


def test_options_that_do_not_fit(bert: Backbone, roberta: Backbone, tmp_path: Path) -> None:
    """Labels, task, length and backbone that do not fit the checkpoint are refused before anything
    is written."""
    source = saved(tmp_path, checkpoint(bert))
    assert_refused(
        convert(source, bert, labels=""),
        "does not name the 3 rows of its head; expected --labels with 3 names",
    )
    assert_refused(
        convert(source, bert, labels="a,b"), "the head has 3 rows, but there are 2 labels"
    )
    assert_refused(convert(source, bert, labels="a,b,b"), "expected distinct names")
    assert_refused(convert(source, bert, labels='["a'), "--labels is no JSON list")
    assert_refused(convert(source, bert, labels="[1]"), "--labels is [1]; expected strings")
    assert_refused(
        convert(source, bert, "--problem-type", "regression"), "a regression task has 3 labels"
    )
    assert_refused(convert(source, bert, "--task", "Big"), "task is 'Big'")
    assert_refused(
        convert(source, bert, "--max-length", "65"), "max_length is 65; expected at most 64"
    )
    assert_refused(
        convert(source, roberta), "the file is for a 'bert' backbone; expected 'roberta'"
    )
    wide = backbones.load(str(tiny_backbone(tmp_path / "wide", "bert", hidden=48)))
    assert_refused(convert(source, wide), "the file has 2 layers of 32; expected 2 of 48")
    assert_refused(convert(source, bert, "--backbone", str(tmp_path / "none")), "is no folder")
    poolerless = backbones.load(str(tiny_backbone(tmp_path / "poolerless", "bert", pooler=False)))
    assert_refused(convert(source, poolerless), "pooling is 'pooler', but the checkpoint of")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty; expected JSON lines with text and text_pair"),
        ("no json", "probe.jsonl:1 is not JSON"),
        (
            '\n{"text": "a"}',
            "probe.jsonl:2 is {'text': 'a'}; expected an object with text and text_pair",
        ),
        ("\n" + " " * (1 << 20) + "{}", "probe.jsonl:2 has more than 1048576 bytes"),
        ('{"text": "a", "text_pair": " "}', "probe.jsonl:1: text_pair is only white space"),
    ],
)
def test_probes_that_are_none(content: str, reason: str, bert: Backbone, tmp_path: Path) -> None:
    """A probe file without whole rows of text is refused with its line."""
    (tmp_path / "probe.jsonl").write_text(content)
    source = saved(tmp_path, checkpoint(bert))
    assert_refused(
        convert(source, bert, "--text-pair", "--probe", str(tmp_path / "probe.jsonl")), reason
    )


def test_files_that_are_none(bert: Backbone, tmp_path: Path) -> None:
    """A file that is absent, empty, cut short or something else is refused by its name."""
    source = saved(tmp_path, checkpoint(bert))
    data = source.read_bytes()
    for content in (
        b"",
        b"no weights at all",
        data[:-200],
        data[: len(data) // 2],
        b"\x10" + b"\0" * 7 + b"{" + b" " * 15,
    ):
        source.write_bytes(content)
        assert_refused(convert(source, bert), source.name)
    assert_refused(
        convert(tmp_path / "absent.bin", bert),
        "absent.bin cannot be converted: [Errno 2] No such file or directory",
    )
    source.write_bytes(data)
    assert_refused(
        convert(source, bert, "--out", str(tmp_path / "none" / "x")),
        "cannot be converted: [Errno 2] No such file",
    )


def test_from_checkpoint_to_prediction(embedded: Backbone, tmp_path: Path) -> None:
    """A converted checkpoint is uploaded to a running server, which then answers what the formulas
    say."""
    weights = checkpoint(embedded, r=8)
    assert convert(saved(tmp_path, weights), embedded).exit_code == 0
    with running(tmp_path / "store") as server, server.client() as client:
        assert invoke("push", tmp_path / "out.safetensors", "--url", server.url).exit_code == 0
        question = {"inputs": TEXTS, "parameters": {"function_to_apply": "none", "top_k": 3}}
        answers = client.post("/predict", params={"task": "t"}, json=question).json()
    for text, answer in zip(TEXTS, answers, strict=True):
        expected = merged_logits(embedded, weights, text)
        found = torch.tensor(
            [next(entry["score"] for entry in answer if entry["label"] == label) for label in "abc"]
        )
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
