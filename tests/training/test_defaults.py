"""What a run does where its user chooses nothing, and what it says of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.backbone import Backbone
from tests.training.test_training import SINGLE
from tests.training.test_training_cli import jsonl
from training import train
from training.__main__ import app
from training.config import PAPER, Method
from training.defaults import LEAST_STEPS, choose, rate
from training.errors import TrainingError


@pytest.mark.parametrize("rows", [1, 30, 100, 300, 1_000, 10_000, 300_000])
def test_steps_are_enough_and_not_endless(rows: int) -> None:
    """Any set but the smallest gets as many steps as the advice asks for, and no more epochs than
    forty."""
    recipe = choose({}, rows, 384).recipe
    steps = recipe.epochs * -(-rows // recipe.batch_size)
    assert 3 <= recipe.epochs <= 40
    assert steps >= LEAST_STEPS or recipe.epochs == 40


def test_epochs_go_by_a_chosen_mini_batch() -> None:
    """Who chooses larger mini-batches gets more epochs, for as many steps."""
    assert choose({"batch_size": 32}, 1_000, 384).recipe.epochs == 8


@pytest.mark.parametrize(
    ("method", "hidden_size", "expected"),
    [("adamix", 1024, 3e-4), ("adamix", 4096, 3e-4), ("lora", 1024, 3e-4), ("full", 1024, 2e-5)],
)
def test_rates_of_large_encoders(method: Method, hidden_size: int, expected: float) -> None:
    """A large encoder gets the published rate of its method."""
    assert rate(method, hidden_size) == expected


def test_rates_fall_with_the_size() -> None:
    """A larger encoder never gets a higher rate than a smaller one."""
    found = [rate("adamix", size) for size in (128, 384, 512, 768, 1024)]
    assert found == sorted(found, reverse=True)
    assert found[0] == found[1] > found[3] > found[4]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("rows", "mean", "both")),
        ({"experts": 1}, ("rows", "random", "both")),
        ({"consistency_weight": 0.0}, ("rows", "mean", "both")),
        ({"consistency_weight": 0.0, "task_loss": "first"}, ("rows", "random", "first")),
        ({"routing": "batch"}, ("batch", "mean", "both")),
        ({"method": "adapter"}, ("batch", "random", "first")),
        ({"method": "adapter-rdrop"}, ("batch", "random", "both")),
        (PAPER, ("batch", "random", "first")),
    ],
)
def test_routing(given: dict[str, Any], expected: tuple[str, str, str]) -> None:
    """What the method can have of the corrected routing it has, and what is chosen stays."""
    recipe = choose(given, 300, 384).recipe
    assert (recipe.routing, recipe.second_pass, recipe.task_loss) == expected


def test_a_run_says_what_it_chose(tmp_path: Path, bert_folder: Path) -> None:
    """A command names each choice that was left open, with its reason, and none that was made."""
    rows = [{"text": f"word {i}", "label": "even" if i % 2 == 0 else "odd"} for i in range(12)]
    data = jsonl(tmp_path / "rows.jsonl", rows)
    options = ["--task", "toy", "--train", data, "--dev", data, "--backbone", bert_folder]
    result = CliRunner().invoke(app, [*map(str, options), "--epochs", "1", "--routing", "batch"])
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if line.startswith("chose ")] == [
        "chose --batch-size 4: for 12 training rows",
        "chose --learning-rate 0.003: for adamix in an encoder of hidden size 32",
        "chose --task-loss both --second-pass mean: of AdaMix's variants the best in our tests",
    ]


def test_from_python(bert: Backbone) -> None:
    """Choices go by name; a name that is none is refused, and so is one beside a whole recipe."""
    rows = (SINGLE.texts, [SINGLE.labels[target] for target in SINGLE.targets])
    said: list[str] = []
    trained = train("toy", rows, rows, backbone=bert, epochs=1, bottleneck=4, say=said.append)
    recipe = trained.adapter.spec.training["recipe"]
    assert (recipe["epochs"], recipe["bottleneck"], recipe["batch_size"]) == (1, 4, 4)
    assert "chose --batch-size 4" in said[0]
    for size in (0, "four"):
        with pytest.raises(TrainingError, match=f"batch_size is {size!r}; expected 1 to 65536"):
            train("toy", rows, rows, backbone=bert, batch_size=size)
    with pytest.raises(TrainingError, match="epoch is no choice of a recipe; expected some of"):
        train("toy", rows, rows, backbone=bert, epoch=1)
