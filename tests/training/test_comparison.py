"""`python -m training compare`: runs side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.training.test_training_cli import ROWS, invoke, jsonl
from training.__main__ import app
from training.comparison import Run, compared
from training.errors import TrainingError


def compare(*given: Any) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, given)])


def run(score: float, *, rows: int = 100, **settings: Any) -> Run:
    return Run(f"run {score}", "toy", settings, {"accuracy": score, "f1": 1 - score}, rows, 50)


def test_folders_and_files(tmp_path: Path, bert_folder: Path) -> None:
    """Folders of runs, an adapter file and a file of scores are compared by their settings that
    differ, the best first, as a table, JSON and a page."""
    data, out = jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "toy.safetensors"
    scores = tmp_path / "scores.jsonl"
    quick = ["--task", "toy", "--train", data, "--dev", data, "--backbone", bert_folder]
    quick += ["--bottleneck", 4, "--batch-size", 4, "--epochs", 1]
    seeds = [*quick, "--seeds", "0,1", "--run-dir", tmp_path / "runs/slow"]
    assert CliRunner().invoke(app, [str(part) for part in seeds]).exit_code == 0
    fast = [*quick, "--learning-rate", "0.02", "--run-dir", tmp_path / "runs/fast"]
    assert CliRunner().invoke(app, [str(part) for part in fast]).exit_code == 0
    result = invoke(data, out, bert_folder, "--epochs", "2", "--scores", str(scores))
    assert result.exit_code == 0, result.output
    places = [*sorted((tmp_path / "runs").iterdir()), out]
    shown = compare(*places)
    assert shown.exit_code == 0, shown.output
    header, *lines = shown.stdout.splitlines()
    assert header.split("  ")[0] == "accuracy"
    assert {"epochs", "learning_rate"} <= set(header.split())
    assert "bottleneck" not in header
    assert len([line for line in lines if not line.startswith("hint: ")]) == 3
    page = tmp_path / "compared.html"
    told = compare(*places[:2], scores, "--json", "--report", page)
    assert told.exit_code == 0, told.output
    groups = json.loads(told.stdout)["groups"]
    assert sorted(len(group["seeds"]) for group in groups) == [1, 1, 2]
    assert [group["mean"] for group in groups] == sorted(
        (group["mean"] for group in groups), reverse=True
    )
    text = page.read_text()
    assert text.count("<circle") == 4
    assert "<script" not in text
    assert "http" not in text


def test_the_interval() -> None:
    """The interval of a mean over seeds is Student's: of 0.8, 0.9 and 1.0, 4.303 · 0.1 / √3 to
    each side."""
    runs = [run(0.8, seed=0), run(0.9, seed=1), run(1.0, seed=2)]
    (group,) = compared(runs, None).groups
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert group.interval == pytest.approx((0.9 - half, 0.9 + half), abs=1e-6)
    assert group.mean == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([run(0.8, epochs=3), run(0.9, epochs=4)], "a difference of single runs may be chance"),
        ([run(0.8, seed=0), run(0.9, seed=0)], "hold a seed twice: is a run named twice?"),
        ([run(0.8, rows=10), run(0.9, rows=20)], "the runs have 10, 20 train rows: they differ"),
        (
            [
                run(0.80, seed=0),
                run(0.90, seed=1),
                run(0.81, epochs=3),
                run(0.91, epochs=3, seed=1),
            ],
            "the intervals of the first two overlap",
        ),
    ],
)
def test_what_may_mislead(runs: list[Run], said: str) -> None:
    """What makes a difference doubtful is said."""
    assert any(said in warning for warning in compared(runs, None).warnings)


def test_settings_that_an_older_file_lacks() -> None:
    """A setting that a file does not know is its default, and no difference."""
    assert compared([run(0.8, seed=0, select="last"), run(0.9, seed=1)], None).settings == []


def test_another_metric() -> None:
    """Another metric orders by itself."""
    runs = [run(0.8, epochs=3), run(0.9, epochs=4)]
    assert compared(runs, None).groups[0].mean == 0.9
    assert compared(runs, "f1").groups[0].settings == {"epochs": 3}


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    """What is no run, and runs that have nothing in common, are refused in a sentence."""
    with pytest.raises(TrainingError, match="no 'pearson'; expected accuracy, f1 in common"):
        compared([run(0.8), run(0.9)], "pearson")
    other = Run("other", "tickets", {}, {"accuracy": 0.5}, 1, 1)
    with pytest.raises(TrainingError, match="of the tasks tickets, toy; expected one task"):
        compared([run(0.8), other], None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_text('{"task": "toy"}')
    (tmp_path / "half/metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (tmp_path / "scores.jsonl").write_text("{}\n")
    (tmp_path / "torn.jsonl").write_text("{")
    for name, message in {
        "empty": "holds no run; expected a folder of --run-dir",
        "half": "holds a run that is not finished; expected --resume first",
        "scores.jsonl": "line 1, is no run: Object missing required field",
        "torn.jsonl": "is not JSON",
        "nothing": "cannot be read: No such file",
    }.items():
        result = compare(tmp_path / name)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        b'{"task": "toy", "recipe": {"seed": [1]}, "metrics": {"accuracy": 1}}',
        b'{"task": "toy", "recipe": 5, "metrics": {"accuracy": 1}}',
        b'{"task": ["toy"], "recipe": {}, "metrics": {"accuracy": 1}}',
        b'{"task": "toy", "recipe": {}, "metrics": {"accuracy": "x"}}',
        b'{"task": "toy", "recipe": {}, "metrics": {"accuracy": 1}, "rows": {}}',
        b'{"task": "toy", "recipe": {}, "metrics": {"accuracy": 1' + b"0" * 400 + b"}}",
        b"5",
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_no_run_wrote(line: bytes, tmp_path: Path) -> None:
    """Lines of scores and folders that hold something else are refused in a sentence."""
    scores, folder = tmp_path / "scores.jsonl", tmp_path / "run"
    scores.write_bytes(line + b"\n" + line + b"\n")
    folder.mkdir()
    (folder / "config.json").write_bytes(line)
    (folder / "metrics.jsonl").write_bytes(line)
    for place in (scores, folder):
        result = compare(place, place)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: ")
