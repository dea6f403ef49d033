"""Tasks known by their names: from files, from the hub (a dataset repository on disk stands for
it), or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.training.test_methods import lines
from tests.training.test_training_cli import assert_refused, jsonl
from training import tasks
from training.__main__ import app
from training.data import Columns
from training.tasks import GLUE, TASKS

WORDS = ("good", "bad", "great", "awful")


def rows(task: str, split: str) -> list[dict[str, Any]]:
    """Twelve rows in the hub's form; of those of a split without public labels, all are -1."""
    known = TASKS[task]
    found = []
    for i in range(12):
        texts = {column: f"{split} {i}: the {column} is {WORDS[i % 4]}" for column in known.columns}
        label = i % len(known.labels) if known.labels else i / 4
        found.append({**texts, "label": label if split in ("train", known.dev) else -1, "idx": i})
    return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `nyu-mll/glue` and the others lie as they do on the hub: parquet, named
    labels, unlabelled tests."""
    import datasets  # here, where HF_HOME is the tests' own: it is read on import
    from datasets import ClassLabel, Features, Value

    monkeypatch.chdir(tmp_path)
    card: dict[str, list[dict[str, Any]]] = {}
    for task, known in TASKS.items():
        glue = known.repository == GLUE
        numbered = ClassLabel(names=list(known.labels)) if glue else Value("int64")
        features = Features(
            {**dict.fromkeys((*known.columns,), Value("string")), "idx": Value("int32")}
        )
        features["label"] = numbered if known.labels else Value("float32")
        folder = task if glue else "data"
        splits = {"train", known.dev, "test", "validation_mismatched"}
        for split in splits:
            part = datasets.Dataset.from_list(rows(task, split), features=features)
            part.to_parquet(
                tmp_path / known.repository / folder / f"{split}-00000-of-00001.parquet"
            )
        where = [{"split": split, "path": f"{folder}/{split}-*"} for split in splits]
        card.setdefault(known.repository, []).append(
            {"config_name": task if glue else "default", "data_files": where}
        )
    for repository, configs in card.items():
        (tmp_path / repository / "README.md").write_text(
            f"---\n{json.dumps({'configs': configs})}\n---\n"
        )
    return tmp_path


def files(folder: Path, task: str) -> Path:
    """The same rows as files."""
    known = TASKS[task]
    (folder / task).mkdir(parents=True)
    for name, split in (("train", "train"), ("dev", known.dev)):
        written = []
        for row in rows(task, split):
            texts = dict(
                zip(("text", "text_pair"), (row[column] for column in known.columns), strict=False)
            )
            written.append(
                {**texts, "label": known.labels[row["label"]] if known.labels else row["label"]}
            )
        jsonl(folder / task / f"{name}.jsonl", written)
    return folder


def invoke(*options: str) -> Result:
    return CliRunner().invoke(app, ["--epochs", "1", "--bottleneck", "4", *options])


@pytest.mark.parametrize("task", TASKS)
def test_the_hub_s_rows_are_the_files_rows(hub: Path, task: str) -> None:
    """Whether from the hub or from files, a task has the same texts, labels and numbers, and no row
    of a test split."""
    found, source = tasks.read(task, hub / "nowhere", Columns(), None)
    expected, folder = tasks.read(task, files(hub / "files", task), Columns(), None)
    assert found == expected
    assert [len(part.texts) for part in found] == [12, 12]
    assert source.startswith(TASKS[task].repository)
    assert folder == str(hub / "files" / task)


def test_a_run_by_name(tmp_path: Path, bert_folder: Path) -> None:
    """A known task needs no files to be named, is scored as published, and says what its rows lack,
    as does its record."""
    scores = tmp_path / "scores.jsonl"
    where = ["--glue-dir", str(files(tmp_path / "glue", "mrpc")), "--backbone", str(bert_folder)]
    result = invoke("--task", "mrpc", *where, "--scores", str(scores))
    assert result.exit_code == 0, result.output
    subset = "train is 12 of the official 3,668 rows and dev is 12 of the official 408 rows"
    assert result.stdout.startswith(f"mrpc: from {tmp_path / 'glue' / 'mrpc'}; {subset}\n")
    (line,) = lines(scores)
    assert (line["metric"], line["subset"], line["recipe"]["positive"]) == (
        "accuracy",
        subset,
        "equivalent",
    )
    assert "f1" in line["metrics"]
    assert (
        invoke("--task", "mrpc", *where, "--scores", str(scores), "--metric", "f1").exit_code == 0
    )
    assert lines(scores)[1]["metric"] == "f1"


def test_a_whole_set_lacks_nothing() -> None:
    """Of a set with all its published rows nothing is said."""
    assert tasks.lacking("sst2", 67_349, 872) == ""
    assert tasks.lacking("mnli", 3_000, 9_815) == "train is 3,000 of the official 392,702 rows"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--task", "sst3"],
            (
                "task 'sst3' is not known by its name; expected --train and --dev, or one of cola,"
                " sst2, "
            ),
        ),
        (
            ["--task", "sst2", "--dev", "d.csv"],
            "--dev stands without --train; expected both, or neither for a task known",
        ),
        (
            ["--task", "sst2", "--train", "d.csv"],
            "--train stands without --dev; expected both, or neither",
        ),
        (["--task", "stsb", "--metric", "f1"], "metric is 'f1'; expected one of pearson, spearman"),
    ],
)
def test_refused(tmp_path: Path, bert_folder: Path, options: list[str], message: str) -> None:
    """A name that is not known, half of the files, or a metric that the task does not have ends in
    one sentence."""
    where = ["--glue-dir", str(files(tmp_path / "glue", "stsb")), "--backbone", str(bert_folder)]
    assert_refused(invoke(*options, *where), message, tmp_path / "none")


def test_no_files_and_no_hub(tmp_path: Path) -> None:
    """Where there are neither files nor a hub, one sentence says where both were looked for."""
    command = [sys.executable, "-m", "training", "--task", "sst2", "--glue-dir", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=150, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    asked = f"{tmp_path}/sst2 is no folder"
    assert done.stdout == f"sst2: {asked}, so the Hugging Face hub is asked for nyu-mll/glue sst2\n"
    assert done.stderr.startswith(
        f"error: {asked}, and nyu-mll/glue sst2 (train) cannot be had from the Hugging Face hub: "
    )
    assert done.stderr.count("\n") == 1


def test_no_files_and_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library for the hub is not installed, the sentence names the extra that brings
    it."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    result = invoke("--task", "sst2", "--glue-dir", str(tmp_path))
    assert_refused(
        result, f"{tmp_path}/sst2 is no folder, and the library `datasets`", tmp_path / "none"
    )
    assert "or the extra `hub`" in result.stderr
