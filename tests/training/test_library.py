"""Training from Python: rows in memory in, an adapter that predicts out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from adapters.backbone import Backbone
from adapters.errors import AdaMixError
from tests.conftest import ROOT
from tests.training.test_training_cli import ROWS, jsonl
from training import Columns, Recipe, TrainingError, evaluate, load, train

QUICK = Recipe(bottleneck=4, epochs=2, batch_size=4, learning_rate=1e-3)
TEXTS = [row["text"] for row in ROWS]
LABELS = [row["label"] for row in ROWS]


def classes(rows: list[dict[str, Any]]) -> datasets.Dataset:
    """A data set as the hub has them: labels are numbers with names."""
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
        }
    )
    return datasets.Dataset.from_list(rows, features=features)


FORMS = {
    "mappings": lambda _: ROWS,
    "two lists": lambda _: (TEXTS, LABELS),
    "pandas": lambda _: pd.DataFrame(ROWS),
    "datasets": lambda _: classes(ROWS),
    "a path": lambda folder: str(jsonl(folder / "data.jsonl", ROWS)),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_data(bert: Backbone, tmp_path: Path, form: str) -> None:
    """The same rows in any form give the same adapter."""
    data = FORMS[form](tmp_path)
    adapter = train("toy", data, data, recipe=QUICK, backbone=bert)
    assert adapter.adapter.spec.labels == ("negative", "positive")
    expected = train("toy", ROWS, ROWS, recipe=QUICK, backbone=bert)
    assert np.array_equal(adapter.predict_proba(TEXTS), expected.predict_proba(TEXTS))
    assert evaluate(adapter, data).scores == adapter.scores


def test_numbers_of_numpy(bert: Backbone) -> None:
    """Labels that are NumPy's numbers are classes, and fractions are values."""
    data = (TEXTS, list(np.arange(len(TEXTS)) % 2))
    adapter = train("toy", data, data, recipe=QUICK, backbone=bert)
    assert set(adapter.predict(TEXTS)) <= {"0", "1"}
    values = (TEXTS, list(np.linspace(0, 1, len(TEXTS))))
    found = train("toy", values, values, recipe=QUICK, backbone=bert).predict(TEXTS[:2])
    assert [type(value) for value in found] == [float, float]


def test_predictions(bert: Backbone) -> None:
    """Predictions are the labels of the largest probabilities, which add up to 1; several labels
    are lists; pairs are tuples."""
    adapter = train("toy", ROWS, ROWS, recipe=QUICK, backbone=bert)
    values = adapter.predict_proba(TEXTS)
    assert values.shape == (len(TEXTS), 2)
    assert values.sum(axis=1) == pytest.approx(np.ones(len(TEXTS)))
    labels = adapter.adapter.spec.labels
    assert adapter.predict(TEXTS) == [labels[i] for i in values.argmax(axis=1)]
    assert adapter.predict([]) == []
    several = (TEXTS, [[label, "any"] for label in LABELS])
    lists = train("toy", several, several, recipe=QUICK, backbone=bert).predict(TEXTS)
    assert all(set(found) <= {"any", "negative", "positive"} for found in lists)
    pairs = ([(text, "it is good") for text in TEXTS], LABELS)
    found = train("toy", pairs, pairs, recipe=QUICK, backbone=bert)
    assert len(found.predict(pairs[0])) == len(TEXTS)
    with pytest.raises(TrainingError, match="an input is 'a'; expected a pair of texts"):
        found.predict(["a"])
    with pytest.raises(TrainingError, match=r"an input is .*; expected a pair of texts"):
        found.predict([{"text": "a", "text_pair": "b"}])  # type: ignore[list-item]


def test_what_is_said(bert: Backbone) -> None:
    """Columns that are not read and the hints are said; an adapter and what it scored are shown in
    a line."""
    said: list[str] = []
    rows = [{**row, "id": i} for i, row in enumerate(ROWS)]
    adapter = train("t", rows, rows, backbone=bert, recipe=QUICK, say=said.append)
    assert said[0] == "columns not read: 'id'"
    assert any(line.startswith("hint: 4 steps are few") for line in said)
    assert repr(adapter).startswith("TrainedAdapter('t', accuracy ")
    assert repr(evaluate(adapter, ROWS)).startswith("Evaluated(8 rows, accuracy ")


def test_inputs_that_are_no_list_of_texts(bert: Backbone) -> None:
    """One text is not taken for its letters, a data frame not for its names of columns, a mapping
    not for its keys."""
    adapter = train("t", ROWS, ROWS, backbone=bert, recipe=QUICK)
    frame = pd.DataFrame(ROWS)
    for inputs, found in (
        (frame, "a DataFrame"),
        ("a dull film", "a text"),
        ({"text": "a"}, "a di"),
    ):
        with pytest.raises(TrainingError, match=f"the inputs are {found}.*; expected a list of"):
            adapter.predict(inputs)  # type: ignore[arg-type]  # what users give
    assert len(adapter.predict(frame["text"])) == len(ROWS)


def test_a_saved_adapter(bert: Backbone, tmp_path: Path) -> None:
    """A saved adapter that is loaded again predicts the same; its report has the learning curve."""
    adapter = train("toy", ROWS, ROWS, recipe=QUICK, backbone=bert)
    adapter.save(tmp_path / "toy.safetensors")
    again = load(tmp_path / "toy.safetensors", bert)
    assert np.array_equal(again.predict_proba(TEXTS), adapter.predict_proba(TEXTS))
    assert again.scores == adapter.scores
    assert adapter.dev is not None
    adapter.dev.report(tmp_path / "report.html")
    assert "Training loss" in (tmp_path / "report.html").read_text()
    assert any("steps are few" in hint for hint in adapter.dev.hints)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["a text"], "the training set, row 1, is a str; expected a mapping such as"),
        ((["a"], ["x", "y"]), "is a tuple of 1 and 2 values; expected as many texts as labels"),
        ([{"text": "a"}], "the training set, line 1, has no column 'label'; it has 'text'"),
        ([], "the training set holds no examples; expected at least one"),
        ("nothing.csv", "nothing.csv cannot be read: No such file"),
    ],
)
def test_bad_data(bert: Backbone, data: Any, message: str) -> None:
    """Data that cannot be used raise an error of one sentence."""
    with pytest.raises(AdaMixError, match=message):
        train("toy", data, ROWS, recipe=QUICK, backbone=bert)


def test_other_columns(bert: Backbone) -> None:
    """Columns of other names are named."""
    frame = pd.DataFrame(ROWS).rename(columns={"text": "review", "label": "mood"})
    columns = Columns(text="review", label="mood")
    adapter = train("toy", frame, frame, recipe=QUICK, backbone=bert, columns=columns)
    assert evaluate(adapter, frame, columns=columns).scores == adapter.scores


@pytest.mark.timeout(300)
def test_the_notebook(tmp_path: Path) -> None:
    """The notebook's cells run as they stand, one after the other."""
    cells = json.loads((ROOT / "docs/train.ipynb").read_text())["cells"]
    script = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "tickets.safetensors").is_file()


def test_importing_does_not_wait() -> None:
    """The package alone imports no torch, and says what it does not have."""
    script = "import sys, training; sys.exit('torch' in sys.modules or hasattr(training, 'fly'))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
