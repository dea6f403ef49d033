"""`python -m training evaluate`: an adapter file on labelled rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adapters.file import load
from tests.training.test_training_cli import ROWS, assert_refused, invoke, jsonl
from training.__main__ import app

SEVERAL = [{**row, "label": [row["label"]] if i % 3 else []} for i, row in enumerate(ROWS)]
NUMBERS = [{**row, "label": i + 0.5} for i, row in enumerate(ROWS)]


def trained(folder: Path, rows: list[dict[str, Any]], backbone: Path) -> tuple[Path, Path]:
    """An adapter, and the file of rows that it was scored on."""
    data, out = jsonl(folder / "data.jsonl", rows), folder / "toy.safetensors"
    result = invoke(data, out, backbone)
    assert result.exit_code == 0, result.output
    return out, data


def evaluate(adapter: Path, dev: Path, backbone: Path, *more: Any) -> Result:
    given = ["evaluate", adapter, "--dev", dev, "--backbone", backbone, *more]
    return CliRunner().invoke(app, [str(part) for part in given])


@pytest.mark.parametrize("rows", [ROWS, SEVERAL, NUMBERS], ids=["one", "several", "numbers"])
def test_the_scores_of_training(
    tmp_path: Path, bert_folder: Path, rows: list[dict[str, Any]]
) -> None:
    """On the rows that a training was scored on, the file has the same scores."""
    adapter, data = trained(tmp_path, rows, bert_folder)
    result = evaluate(adapter, data, bert_folder, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["scores"] == load(adapter).spec.training["dev_scores"]
    assert (found["rows"], found["version"]) == (len(rows), load(adapter).digest)


def test_what_is_found_of_labels(tmp_path: Path, bert_folder: Path) -> None:
    """Each label's scores, the confusion matrix and the calibration agree with each other and with
    the table of predictions."""
    adapter, data = trained(tmp_path, ROWS, bert_folder)
    table = tmp_path / "predictions.csv"
    result = evaluate(adapter, data, bert_folder, "--json", "--predictions", table)
    found = json.loads(result.stdout)
    assert [each["rows"] for each in found["labels"]] == [4, 4]
    assert [sum(line) for line in found["confusion"]] == [4, 4]
    assert sum(each["rows"] for each in found["bins"]) == 8
    answers = list(csv.DictReader(table.open()))
    assert [row["text"] for row in answers] == [row["text"] for row in ROWS]
    wrong = [i for i, row in enumerate(answers) if row["label"] != row["predicted"]]
    assert {error["row"] - 1 for error in found["worst"]} == set(wrong)
    assert 1 - len(wrong) / 8 == pytest.approx(found["scores"]["accuracy"])
    for row in answers:
        shown = {label: float(row[f"probability of {label}"]) for label in ("negative", "positive")}
        assert sum(shown.values()) == pytest.approx(1, abs=2e-6)
        assert max(shown, key=shown.__getitem__) == row["predicted"]


@pytest.mark.parametrize("rows", [ROWS, SEVERAL, NUMBERS], ids=["one", "several", "numbers"])
def test_a_report(tmp_path: Path, bert_folder: Path, rows: list[dict[str, Any]]) -> None:
    """The report is one page that loads nothing, with the scores; what a text holds stays text."""
    hostile = [{**row, "text": f"<script>alert(1)</script> {row['text']}"} for row in rows]
    adapter, data = trained(tmp_path, hostile, bert_folder)
    report = tmp_path / "report.html"
    result = evaluate(adapter, data, bert_folder, "--report", report)
    assert result.exit_code == 0, result.output
    page = report.read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    for score in load(adapter).spec.training["dev_scores"].values():
        assert f"{score:.4f}" in page


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([{"text": "a", "label": "neutral"}], [], "row 1, has the label 'neutral', which the"),
        ([{"text": "a", "text_pair": "b", "label": "positive"}], [], "holds pairs of texts; exp"),
        ([], [], "holds no examples"),
        (ROWS, ["--positive", "good"], "positive is 'good'; expected one of negative, positive"),
        (ROWS, ["--report", "no/such/folder.html"], "the folder of --report no/such/folder.html"),
        (ROWS, ["--device", "tpu"], "device is 'tpu'; expected cpu or cuda"),
    ],
)
def test_bad_input(
    tmp_path: Path, bert_folder: Path, rows: list[dict[str, Any]], more: list[str], message: str
) -> None:
    """Rows that do not go with the adapter, and options that nothing can be done with, are refused
    in a sentence."""
    adapter, _ = trained(tmp_path, ROWS, bert_folder)
    data, table = jsonl(tmp_path / "other.jsonl", rows), tmp_path / "predictions.csv"
    result = evaluate(adapter, data, bert_folder, "--predictions", table, *more)
    assert_refused(result, message, table)


def test_the_inputs_are_not_written_over(tmp_path: Path, bert_folder: Path) -> None:
    """A table that would take the place of the data or of the adapter is refused."""
    adapter, data = trained(tmp_path, ROWS, bert_folder)
    for path in (adapter, data):
        before = path.read_bytes()
        result = evaluate(adapter, data, bert_folder, "--predictions", path)
        assert result.exit_code == 2
        assert "which this command needs for something else" in result.stderr
        assert path.read_bytes() == before


def test_another_backbone(tmp_path: Path, bert_folder: Path) -> None:
    """An adapter of another backbone, and a file that is no adapter, are refused."""
    adapter, data = trained(tmp_path, ROWS, bert_folder)
    result = CliRunner().invoke(app, ["evaluate", str(adapter), "--dev", str(data)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for path, message in ((data, "safetensors"), (tmp_path / "none", "cannot be read")):
        result = evaluate(path, data, bert_folder)
        assert result.exit_code == 2
        assert message in result.stderr
