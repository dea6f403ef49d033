"""Hints: what a run's numbers say about it, in a sentence each with what to try."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from adapters.spec import ProblemType
from tests.training.test_training_cli import invoke, jsonl
from training.__main__ import app
from training.advice import of_predictions, of_training
from training.config import Recipe
from training.data import Dataset
from training.scoring import scores

ROWS = [{"text": f"word {i % 3}", "label": ("no", "yes", "no")[i % 3]} for i in range(12)]


def hints(stdout: str) -> list[str]:
    return [line for line in stdout.splitlines() if line.startswith("hint: ")]


def test_few_steps(tmp_path: Path, bert_folder: Path) -> None:
    """A run of few steps ends with a hint that names a number of epochs; that number makes none."""
    data, out = jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "toy.safetensors"
    result = invoke(data, out, bert_folder, "--routing", "batch")
    assert result.exit_code == 0, result.output
    assert hints(result.stdout)[0].startswith(
        "hint: 3 steps are few, and each of the 4 experts learns from a part of them: --epochs 84"
    )
    assert "steps are few" not in invoke(data, out, bert_folder, "--epochs", "84").stdout


def test_hints_of_several_seeds(tmp_path: Path, bert_folder: Path) -> None:
    """What is true of the runs of all seeds is said once, at the end."""
    data = jsonl(tmp_path / "data.jsonl", ROWS)
    given = ["--task", "toy", "--train", data, "--dev", data, "--backbone", bert_folder]
    quick = ["--epochs", "1", "--batch-size", "4", "--seeds", "0,1", "--method", "head"]
    result = CliRunner().invoke(app, [*map(str, given), *quick])
    assert result.exit_code == 0, result.output
    assert sum("3 steps are few:" in hint for hint in hints(result.stdout)) == 1
    assert result.stdout.splitlines()[-1].startswith("hint: ")


RECIPE = Recipe(epochs=10, batch_size=32, learning_rate=1e-3)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([0.7] * 400, ["from 0.700 to 0.700: try a higher --learning-rate, such as 0.003"]),
        ([0.7 - 0.001 * i for i in range(400)], []),
        ([0.7] * 19, ["19 steps are few"]),  # too short to judge its loss
        ([0.7], ["1 step is few"]),
    ],
)
def test_a_loss_that_does_not_fall(losses: list[float], said: list[str]) -> None:
    """A loss that ends where it began is told with both values."""
    found = of_training(RECIPE, len(losses), losses)
    assert [part in sentence for part, sentence in zip(said, found, strict=True)] == [True] * len(
        said
    )


def test_the_loss_of_a_resumed_run() -> None:
    """Of a run that was resumed, whose first steps are not known, the loss is not judged."""
    assert of_training(RECIPE, 400, [0.7] * 100) == []


def dataset(problem_type: ProblemType, labels: tuple[str, ...], targets: list[Any]) -> Dataset:
    return Dataset(problem_type, labels, [("a text",)] * len(targets), targets)


SEVEN_OF_TWELVE = [0] * 7 + [1] * 5


@pytest.mark.parametrize(
    ("predicted", "said"),
    [
        ([0] * 12, "every dev row got the label 'no': try"),
        (
            [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1],
            "the accuracy 0.5833 is no better than that of always answering 'no', 0.5833: try",
        ),
        (SEVEN_OF_TWELVE, None),
    ],
)
def test_predictions_that_say_nothing(predicted: list[int], said: str | None) -> None:
    """One label for all rows, or a score at that of the most frequent label, is told."""
    found = dataset("single_label_classification", ("no", "yes"), SEVEN_OF_TWELVE)
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), 2).float()
    sentences = of_predictions(found, logits, scores(found, logits))
    assert len(sentences) == (said is not None)
    assert said is None or sentences[0].startswith(said)


def test_predictions_of_one_class() -> None:
    """A set whose rows all have one label is no reason for a hint."""
    found = dataset("single_label_classification", ("no", "yes"), [0] * 12)
    logits = torch.tensor([[1.0, 0.0]] * 12)
    assert of_predictions(found, logits, scores(found, logits)) == []


def test_predictions_of_several_labels() -> None:
    """No label for any row is told; one label for one row is not."""
    found = dataset("multi_label_classification", ("a", "b"), [[0]] * 12)
    logits = torch.full((12, 2), -1.0)
    assert of_predictions(found, logits, {})[0].startswith("no dev row got any label: try")
    logits[0, 0] = 1.0
    assert of_predictions(found, logits, {}) == []


def test_predictions_of_numbers() -> None:
    """Numbers that do not follow the true ones are told with their correlation."""
    found = dataset("regression", ("value",), [float(i % 2) for i in range(12)])
    flat = torch.ones(12, 1)
    assert "(Pearson correlation 0.0000)" in of_predictions(found, flat, scores(found, flat))[0]
    true = torch.tensor(found.targets)[:, None]
    assert of_predictions(found, true, scores(found, true)) == []
