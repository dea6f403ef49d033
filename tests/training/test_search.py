"""`--search small`: a few learning rates and lengths, by rows held out of the training rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adapters.backbone import Backbone
from adapters.file import load
from tests.training.test_training import SINGLE
from tests.training.test_training_cli import ROWS, assert_refused, jsonl
from training.__main__ import app
from training.config import Recipe
from training.search import Search

MANY = [{**row, "text": f"{row['text']} {i}"} for i in range(3) for row in ROWS]


def searched(folder: Path, backbone: Path, *more: Any) -> Result:
    data = jsonl(folder / "data.jsonl", MANY)
    given = ["--task", "toy", "--train", data, "--dev", data, "--backbone", backbone]
    quick = ["--epochs", 1, "--bottleneck", 4, "--batch-size", 8, "--search", "small"]
    return CliRunner().invoke(app, [str(part) for part in [*given, *quick, *more]])


def tried(result: Result) -> list[str]:
    return [line for line in result.stdout.splitlines() if " held-out rows" in line]


class Scripted(Search):
    """A search whose trials score what a table says."""

    def _score(self, recipe: Recipe) -> float:
        return TABLE.get((recipe.learning_rate, recipe.epochs), 0.0)


RECIPE = Recipe(epochs=10, batch_size=32, learning_rate=1e-3)
TABLE = {
    (1e-3, 10): 0.70,
    (3.33e-4, 10): 0.60,
    (3e-3, 10): 0.80,
    (9e-3, 10): 0.85,
    (2.7e-2, 10): 0.40,
    (9e-3, 20): 0.85,
    (3e-3, 20): 0.90,
}


def test_where_it_goes(bert: Backbone) -> None:
    """The search goes on in the direction of better rates, then tries twice the epochs with the
    best; what is only as good does not win."""
    found = Scripted(bert, SINGLE, None, None, None).small(RECIPE)
    assert (found.learning_rate, found.epochs) == (9e-3, 10)


def test_a_search(tmp_path: Path, bert_folder: Path) -> None:
    """A search tells what it tried and chose; the adapter is trained with that, on all rows."""
    out = tmp_path / "toy.safetensors"
    result = searched(tmp_path, bert_folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert len(tried(result)) >= 4
    assert all("on 8 held-out rows" in line for line in tried(result))
    chose = re.search(r"chose --learning-rate (\S+) --epochs (\d+);", result.stdout)
    assert chose is not None
    said = load(out).spec.training
    recipe = said["recipe"]
    assert isinstance(recipe, dict)
    assert (recipe["learning_rate"], recipe["epochs"]) == (float(chose[1]), int(chose[2]))
    assert said["train_rows"] == len(MANY)


def test_going_on(tmp_path: Path, bert_folder: Path) -> None:
    """A search that was stopped goes on behind what it has tried, to the same result."""
    folder = tmp_path / "run"
    whole = searched(tmp_path, bert_folder, "--run-dir", folder)
    assert whole.exit_code == 0, whole.output
    lines = (folder / "search.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == len(tried(whole))
    recipe = json.loads((folder / "config.json").read_text())["recipe"]
    for file in folder.iterdir():
        file.unlink()
    (folder / "search.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    refused = searched(tmp_path, bert_folder, "--run-dir", folder)
    assert_refused(refused, "holds a run already; expected --resume", tmp_path / "none")
    resumed = searched(tmp_path, bert_folder, "--run-dir", folder, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert [line.endswith("(tried before)") for line in tried(resumed)][:3] == [True, True, False]
    assert [line.removesuffix(" (tried before)") for line in tried(resumed)] == tried(whole)
    assert json.loads((folder / "config.json").read_text())["recipe"] == recipe


@pytest.mark.parametrize(("rows", "message"), [(8, "there are 8 training rows; expected 9 or")])
def test_too_few_rows(tmp_path: Path, bert_folder: Path, rows: int, message: str) -> None:
    """Rows that are too few to hold some out are refused in a sentence."""
    few = jsonl(tmp_path / "few.jsonl", MANY[:rows])
    result = searched(tmp_path, bert_folder, "--train", few)
    assert_refused(result, message, tmp_path / "none")
