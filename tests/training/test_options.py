"""The command line's options are the recipe's declarations, and `--paper` is the paper's recipe."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from tests.training.test_methods import lines, run
from tests.training.test_training_cli import assert_refused
from training.__main__ import app
from training.config import OPTIONS, PAPER, Recipe


def test_every_choice_is_an_option() -> None:
    """Each field of a recipe is declared once and stands on the command line with its default and
    its help."""
    command = typer.main.get_group(app).commands["train"]
    shown = {parameter.name: parameter for parameter in command.params}
    assert set(OPTIONS) == {field.name for field in fields(Recipe)}
    for field in fields(Recipe):
        left_open = OPTIONS[field.name].left_open
        assert shown[field.name].default == (None if left_open else field.default), field.name
        assert shown[field.name].help == OPTIONS[field.name].help, field.name


CHOSEN = ["--routing", "rows", "--second-pass", "mean", "--task-loss", "both", "--head-first"]


def test_choices_reach_the_recipe(tmp_path: Path, bert_folder: Path) -> None:
    """What is chosen on the command line stands in the line of the run."""
    out = tmp_path / "scores.jsonl"
    result = run(tmp_path, bert_folder, *CHOSEN, "--no-share-up", "--scores", str(out))
    assert result.exit_code == 0, result.output
    recipe = lines(out)[0]["recipe"]
    chosen = {"routing": "rows", "second_pass": "mean", "task_loss": "both", "head_first": True}
    assert chosen.items() <= recipe.items()
    assert (recipe["share_up"], recipe["consistency_weight"]) == (False, 1.0)


def test_the_paper_s_recipe(tmp_path: Path, bert_folder: Path) -> None:
    """`--paper` trains by the recipe of the paper, beside choices that agree with it."""
    out = tmp_path / "scores.jsonl"
    more = ("--paper", "--experts", "4", "--learning-rate", "0.002", "--scores", str(out))
    assert run(tmp_path, bert_folder, *more).exit_code == 0
    recipe = lines(out)[0]["recipe"]
    assert PAPER.items() <= recipe.items()
    assert recipe["learning_rate"] == 0.002


def test_what_is_left_open(
    tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice that is left open becomes the paper's, even where its default is another."""
    monkeypatch.setitem(PAPER, "experts", 3)
    out = tmp_path / "scores.jsonl"
    assert run(tmp_path, bert_folder, "--paper", "--scores", str(out)).exit_code == 0
    assert lines(out)[0]["recipe"]["experts"] == 3
    refused = run(tmp_path, bert_folder, "--paper", "--experts", "4")
    assert_refused(refused, "--paper stands beside experts 4; expected 3", tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--routing", "rows"], "--paper stands beside routing 'rows'; expected 'batch', which is"),
        (["--experts", "2"], "--paper stands beside experts 2; expected 4, which is the paper's"),
        (["--no-share-up"], "--paper stands beside share_up False; expected True"),
        (["--method", "adapter"], "--paper stands beside method 'adapter'; expected 'adamix'"),
    ],
)
def test_what_the_paper_contradicts(
    tmp_path: Path, bert_folder: Path, options: list[str], message: str
) -> None:
    """A choice that contradicts `--paper` ends the program with one sentence."""
    refused = run(tmp_path, bert_folder, "--paper", *options)
    assert_refused(refused, message, tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "3"], "a mini-batch has 3 rows for 4 experts: some get no row there"),
        (["--batch-size", "2"], "a mini-batch has 2 rows for 4 experts: some get no row there"),
        (["--batch-size", "4"], None),
    ],
)
def test_fewer_rows_than_experts(
    tmp_path: Path, bert_folder: Path, options: list[str], said: str | None
) -> None:
    """Rows that are too few for the experts are trained on all the same, and it is said once."""
    result = run(tmp_path, bert_folder, *options, "--seeds", "0,1", "--json")
    assert result.exit_code == 0, result.output
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == 2
    told = [line for line in result.stderr.splitlines() if "rows for 4 experts" in line]
    assert len(told) == (said is not None)
    assert said is None or told[0].startswith(said)
