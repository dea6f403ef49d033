"""`--report` and `--predictions` of a training: what a run leaves to look into."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest

from adapters import backbone as backbones
from adapters.file import load
from tests.training.test_training_cli import ROWS, assert_refused, invoke, jsonl
from training.config import Recipe
from training.curves import MOST_POINTS, curve
from training.data import Columns, read
from training.errors import TrainingError
from training.runs import Runs

QUICK = Recipe(bottleneck=4, epochs=1, batch_size=4, learning_rate=1e-3)


def test_a_run_explains_itself(tmp_path: Path, bert_folder: Path) -> None:
    """A run's page has the learning curve, the scores of the file, and its settings, and loads
    nothing; its table has an answer to each dev row."""
    data, out = jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "toy.safetensors"
    report, table = tmp_path / "report.html", tmp_path / "answers.csv"
    more = ["--report", str(report), "--predictions", str(table), "--epochs", "3"]
    result = invoke(data, out, bert_folder, *more)
    assert result.exit_code == 0, result.output
    page = report.read_text()
    assert "Training loss" in page
    assert page.count("<circle") == 6  # a step each
    assert f"version {load(out).version}" in page
    for score in load(out).spec.training["dev_scores"].values():
        assert f"{score:.4f}" in page
    assert '<th scope="row">epochs</th><td class="text"><strong>3</strong>' in page
    assert "<script" not in page
    assert "http" not in page
    assert [row["text"] for row in csv.DictReader(table.open())] == [row["text"] for row in ROWS]


def test_the_report_of_a_resumed_run(tmp_path: Path, bert_folder: Path) -> None:
    """A run that goes on has the steps of before in its learning curve too."""
    data, report = jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "report.html"
    folder = ["--run-dir", str(tmp_path / "run")]
    out = tmp_path / "toy.safetensors"
    assert invoke(data, out, bert_folder, *folder).exit_code == 0
    result = invoke(data, out, bert_folder, *folder, "--resume", "--report", str(report))
    assert result.exit_code == 0, result.output
    assert report.read_text().count("<circle") == 2


def test_a_method_without_a_file(tmp_path: Path, bert_folder: Path) -> None:
    """A run that writes no adapter has a report too."""
    data, report = jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "report.html"
    runs = Runs("toy", None, None, None, None, report=report)
    recipe = dataclasses.replace(QUICK, method="head", epochs=2)
    runs.run(backbones.load(str(bert_folder)), read(data, data, Columns()), [recipe])
    assert "Confusion matrix" in report.read_text()
    assert "The adapter" not in report.read_text()


def test_a_report_that_cannot_be_written(tmp_path: Path, bert_folder: Path) -> None:
    """A report whose place is taken during the training ends in a sentence; adapter and scores are
    written."""
    data, out = jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "toy.safetensors"
    report, scores = tmp_path / "report.html", tmp_path / "scores.jsonl"
    runs = Runs("toy", out, scores, None, None, report=report)
    recipe = QUICK
    runs.check(recipe, [0])
    report.mkdir()
    with pytest.raises(TrainingError, match=r"report\.html cannot be written: "):
        runs.run(backbones.load(str(bert_folder)), read(data, data, Columns()), [recipe])
    assert load(out).spec.task == "toy"
    assert scores.read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--report", "no/such/page.html"], "the folder of --report no/such/page.html"),
        (["--predictions", "DATA"], "which this command needs for something else"),
        (["--report", "OUT"], "which this command needs for something else"),
    ],
)
def test_bad_places(tmp_path: Path, bert_folder: Path, more: list[str], message: str) -> None:
    """A report that would take the place of data or adapter, or has none, is refused before the
    training."""
    data, out = jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "toy.safetensors"
    places = {"DATA": str(data), "OUT": str(out)}
    before = data.read_bytes()
    result = invoke(data, out, bert_folder, *(places.get(each, each) for each in more))
    assert_refused(result, message, out)
    assert data.read_bytes() == before


def test_several_seeds_have_no_one_report(tmp_path: Path) -> None:
    """A report of several seeds is refused: it is of one run."""
    with pytest.raises(TrainingError, match="2 seeds, but --report takes one run; expected one"):
        Runs("toy", None, None, None, None, report=tmp_path / "r.html").check(QUICK, [0, 1])


def test_a_long_curve() -> None:
    """A long run's curve has a bounded number of points, each a mean; a constant one is a line."""
    found = curve("loss", [(step, float(step % 2)) for step in range(1, 1001)])
    assert found is not None
    assert len(found.path.split()) <= MOST_POINTS
    assert (found.averaged, found.last) == (7, 1000)
    flat = curve("loss", [(1, 0.5), (2, 0.5)])
    assert flat is not None
    assert flat.low == flat.high == 0.5
    assert curve("loss", [(1, 0.5)]) is None
