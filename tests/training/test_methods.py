"""The methods to compare AdaMix with, through the program's door: what each trains, scores, leaves
alone and refuses."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from typer.testing import CliRunner, Result

from adapters import backbone as backbones
from adapters.backbone import Backbone, fingerprint
from adapters.file import load
from adapters.mixture import draw_routes
from adapters.text import encode
from tests.tiny import tiny_backbone
from tests.training.test_training import QUICK, SINGLE
from tests.training.test_training_cli import ROWS, assert_refused, jsonl, run_lines
from training.__main__ import app
from training.config import Method, Recipe
from training.fit import fit
from training.methods import build
from training.one_run import measure
from training.scoring import predict, predict_unmerged

D, R, LAYERS = 32, 4, 2  # the tiny backbone's; the bottleneck and the rank of `run`
ADAPTER = 2 * R * D + R + D
# query, key, value; output, norm; feed-forward, output, norm
BIASES = 3 * D + D + D + 2 * D + D + D
PARAMETERS = {
    "adamix": LAYERS * ADAPTER,
    "adapter": LAYERS * ADAPTER,
    "adapter-rdrop": LAYERS * ADAPTER,
    "houlsby": 2 * LAYERS * ADAPTER,
    "lora": LAYERS * 4 * R * D,
    "bitfit": LAYERS * BIASES + D + D,  # and the embeddings' norm, and the pooler
    "head": 0,
}


def run(folder: Path, backbone: Path | str, *more: str) -> Result:
    data = jsonl(folder / "data.jsonl", ROWS)
    options = [
        "--task",
        "toy",
        "--train",
        str(data),
        "--dev",
        str(data),
        "--backbone",
        str(backbone),
    ]
    size = "--rank" if "lora" in more else "--bottleneck"
    return CliRunner().invoke(
        app, [*options, "--epochs", "1", size, str(R), "--batch-size", "4", *more]
    )


def recipe_of(method: Method, **changes: Any) -> Recipe:
    """A quick recipe; LoRA has no bottleneck."""
    sizes = {"bottleneck": Recipe.bottleneck, "rank": R} if method == "lora" else {}
    return dataclasses.replace(QUICK, method=method, **sizes, **changes)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("method", get_args(Method))
def test_a_method(tmp_path: Path, bert_folder: Path, method: str) -> None:
    """Each method is trained and scored without a file, and appends one line with its size, rows
    and recipe."""
    out = tmp_path / "scores.jsonl"
    result = run(
        tmp_path,
        bert_folder,
        "--method",
        method,
        "--scores",
        str(out),
        "--seed",
        "3",
        "--metric",
        "matthews",
    )
    assert result.exit_code == 0, result.output
    (line,) = lines(out)
    assert line["parameters"] == PARAMETERS.get(method, sum_of_full(bert_folder))
    assert (line["task"], line["method"], line["evaluate"], line["seed"]) == (
        "toy",
        method,
        "merged",
        3,
    )
    assert (line["rows"], line["dev_rows"], line["few_shot"], line["metric"]) == (
        8,
        8,
        None,
        "matthews",
    )
    assert line["score"] == line["metrics"]["matthews"]
    assert f"matthews {line['score']:.4f}" in run_lines(result.stdout)[-1]
    assert line["recipe"]["rank" if method == "lora" else "bottleneck"] == R
    assert line["seconds"] > 0
    assert "thread" in line["hardware"]


def sum_of_full(folder: Path) -> int:
    return sum(p.numel() for p in backbones.load(str(folder)).encoder.parameters())


LEARNS = {
    "houlsby": [
        "encoder.encoder.layer.0.attention.output.dense.1.down.weight",
        "sites.0.down.weight",
    ],
    "lora": ["sites.0.query.a", "sites.1.value.b"],
    "bitfit": [
        "encoder.encoder.layer.0.attention.self.query.bias",
        "encoder.embeddings.LayerNorm.bias",
    ],
    "head": [],
    "full": [
        "encoder.embeddings.word_embeddings.weight",
        "encoder.encoder.layer.1.output.dense.weight",
    ],
}


@pytest.mark.parametrize("method", LEARNS)
def test_what_a_method_trains(tmp_path: Path, method: Method) -> None:
    """A method moves what it is named for and nothing else, and leaves the shared backbone as it
    was, to the bit."""
    backbone = backbones.load(str(tiny_backbone(tmp_path, "bert")))
    recipe = recipe_of(method, pooling="mean", epochs=2, weight_decay=1.0)
    model = build(backbone, 2, recipe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, SINGLE, encode(backbone.tokenizer, SINGLE.texts, 32), recipe, lambda _: None)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {*LEARNS[method], "head.out.weight"} <= moved
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad} - still(moved)
    assert not [name for name in moved if "pooler" in name]
    assert fingerprint(backbone.encoder, backbone.tokenizer) == backbone.fingerprint
    assert not backbone.encoder.training
    assert not any(p.requires_grad or p.grad is not None for p in backbone.encoder.parameters())
    assert not any(module._forward_hooks for module in backbone.encoder.modules())


@pytest.mark.parametrize("family", ["roberta", "electra"])
@pytest.mark.parametrize("method", LEARNS)
def test_families(tmp_path: Path, family: str, method: Method) -> None:
    """Each method fits encoders of other families than BERT."""
    backbone = backbones.load(str(tiny_backbone(tmp_path, family)))
    recipe = recipe_of(method)
    assert set(measure(backbone, SINGLE, SINGLE, recipe).scores) == {
        "accuracy",
        "f1_macro",
        "matthews",
    }
    model = build(backbone, 2, recipe)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in LEARNS[method] if "pooler" not in name} <= names


def still(moved: set[str]) -> set[str]:
    """What may learn without moving: a key's bias, which no attention sees."""
    return {f"encoder.encoder.layer.{i}.attention.self.key.bias" for i in range(LAYERS)} - moved


def test_methods_learn(embedded: Backbone) -> None:
    """A separable task is learnt by full fine-tuning and by biases alone."""
    for method, rate in (("full", 3e-4), ("bitfit", 1e-2)):
        recipe = dataclasses.replace(QUICK, method=method, learning_rate=rate, epochs=4)
        assert measure(embedded, SINGLE, SINGLE, recipe).scores["accuracy"] >= 0.97, method


def test_lora_costs_what_an_adapter_costs() -> None:
    """By default LoRA on query and value has the parameters of a bottleneck, within half a
    rank's."""
    for d in (384, 768, 1024):
        bottleneck = 2 * Recipe.bottleneck * d + Recipe.bottleneck + d
        assert abs(4 * Recipe.rank * d - bottleneck) <= 2 * d


@pytest.mark.parametrize("method", ["houlsby", "bitfit", "head", "full"])
def test_what_no_server_can_apply(tmp_path: Path, bert_folder: Path, method: str) -> None:
    """A method that a server cannot apply writes no file: it is refused before any training."""
    out = tmp_path / "out.safetensors"
    result = run(tmp_path, bert_folder, "--method", method, "--out", str(out))
    assert_refused(
        result, f"method is {method!r}, which no server can apply; expected adamix, adapter", out
    )
    assert result.stdout == ""


REFUSED: list[tuple[list[str], str]] = [
    (
        ["--evaluate", "random", "--out", "TMP/out"],
        "evaluate is 'random', but an adapter file holds what is merged",
    ),
    (
        ["--evaluate", "fixed", "--method", "lora"],
        "evaluate is 'fixed', which needs a mixture, but method is 'lora'",
    ),
    (["--metric", "pearson"], "metric is 'pearson'; expected one of accuracy, matthews, f1_macro"),
    (["--metric", "f1"], "metric is 'f1'; expected one of accuracy"),
    (
        ["--scores", "TMP"],
        "--scores TMP cannot be written; expected a file's path in a folder that exists",
    ),
    (["--scores", "TMP/nowhere/s.jsonl"], "--scores TMP/nowhere/s.jsonl cannot be written"),
    (
        ["--few-shot", "9"],
        "few_shot is 9, but there are 8 training examples; expected at most that",
    ),
    (["--few-shot", "0"], "few_shot is 0; expected 1 to"),
    (
        ["--share-down"],
        (
            "share_down and share_up are both true, so that 4 experts would be one; expected one of"
            " them at most"
        ),
    ),
    (
        ["--method", "lora", "--experts", "8"],
        "experts is 8, but method is 'lora'; expected adamix with it",
    ),
    (["--seeds", "0;1"], "--seeds is '0;1'; expected whole numbers with commas between"),
    (["--seeds", "1,0,1"], "--seeds is '1,0,1', which names a seed twice"),
    (
        ["--seeds", "0,1", "--out", "TMP/out"],
        "there are 2 seeds, but --out takes one adapter; expected one seed",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused(tmp_path: Path, bert_folder: Path, options: list[str], message: str) -> None:
    """What cannot be done ends the program with one sentence before any training."""
    result = run(
        tmp_path, bert_folder, *(option.replace("TMP", str(tmp_path)) for option in options)
    )
    assert_refused(result, message.replace("TMP", str(tmp_path)), tmp_path / "out")
    assert "step" not in result.stdout


def test_evaluations(tmp_path: Path, bert_folder: Path) -> None:
    """A mixture can be judged merged, by random or fixed routes and as an ensemble; the line says
    which, and its size."""
    out = tmp_path / "scores.jsonl"
    for evaluation in ("merged", "random", "fixed", "ensemble"):
        result = run(tmp_path, bert_folder, "--evaluate", evaluation, "--scores", str(out))
        assert result.exit_code == 0, result.output
    found = lines(out)
    assert [line["evaluate"] for line in found] == ["merged", "random", "fixed", "ensemble"]
    mixture = LAYERS * (4 * (R * D + R) + R * D + D)
    assert [line["parameters"] for line in found] == [LAYERS * ADAPTER] + 3 * [mixture]


def test_routes_of_an_evaluation(bert: Backbone) -> None:
    """Fixed routes are expert 0 everywhere, an ensemble averages the experts' logits, random routes
    are the seed's."""
    model = build(bert, 2, dataclasses.replace(QUICK, experts=3, share_up=False))
    for parameter in model.sites.parameters():
        torch.nn.init.normal_(parameter)
    rows = encode(bert.tokenizer, SINGLE.texts, 32)

    def by(expert: int) -> torch.Tensor:
        for site in model.sites:
            site.route = (expert, expert)  # type: ignore[assignment]  # torch types modules' attributes as tensors
        return predict(model, rows)

    alone = [by(expert) for expert in range(3)]
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    assert torch.equal(predict_unmerged(model, rows, "fixed", 0), alone[0])
    torch.testing.assert_close(
        predict_unmerged(model, rows, "ensemble", 0), torch.stack(alone).mean(dim=0)
    )
    draw_routes(model.sites, random.Random(5))
    expected = predict(model, rows)
    assert torch.equal(predict_unmerged(model, rows, "random", 5), expected)
    assert torch.equal(predict_unmerged(model, rows, "random", 5), expected)
    assert any(
        not torch.equal(predict_unmerged(model, rows, "random", seed), expected)
        for seed in range(5)
    )


def test_seeds(tmp_path: Path, bert_folder: Path) -> None:
    """Several seeds are several runs, each a line, with the mean and the standard deviation at the
    end."""
    out = tmp_path / "scores.jsonl"
    out.write_text('{"half a line of a killed r')
    result = run(tmp_path, bert_folder, "--seeds", "0, 4", "--few-shot", "5", "--scores", str(out))
    assert result.exit_code == 0, result.output
    first, second = map(json.loads, out.read_text().splitlines()[1:])
    assert (first["seed"], second["seed"], first["rows"], first["few_shot"]) == (0, 4, 5, 5)
    mean, half = (first["score"] + second["score"]) / 2, abs(first["score"] - second["score"]) / 2
    last = run_lines(result.stdout)[-1]
    assert last.startswith(
        f"mean and standard deviation of 2 seeds: accuracy {mean:.4f} ± {half * 2**0.5:.4f} "
        " f1_macro "
    )
    alone = run(
        tmp_path,
        bert_folder,
        "--seed",
        "4",
        "--few-shot",
        "5",
        "--scores",
        str(tmp_path / "alone.jsonl"),
    )
    assert alone.exit_code == 0, alone.output
    assert lines(tmp_path / "alone.jsonl")[0]["metrics"] == second["metrics"]


def test_a_few_shot_adapter(tmp_path: Path, bert_folder: Path) -> None:
    """A file made from a few examples says how many it has seen."""
    out = tmp_path / "out.safetensors"
    result = run(tmp_path, bert_folder, "--few-shot", "3", "--out", str(out))
    assert result.exit_code == 0, result.output
    said = load(out).spec.training
    assert (said["train_rows"], said["dev_rows"]) == (3, 8)
