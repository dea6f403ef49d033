"""The comparison, through its door: cells are run once, whole, by one recipe; the page is made from
them alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, matthews_corrcoef
from typer.testing import CliRunner, Result

from benchmarks.glue import cells
from benchmarks.glue.__main__ import Place, app, load, run_cell
from benchmarks.glue.contrasts import contrast, over_seeds, sign_flip
from benchmarks.glue.data import sets_of
from benchmarks.glue.protocol import METHODS, RATES, SEARCH_TASKS, STAGES, TASKS, Cell
from benchmarks.glue.pseudovalues import pseudo_values
from tests.training.test_training_cli import ROWS, jsonl
from training.data import Dataset
from training.tasks import TASKS as KNOWN

FLOATS = [
    {"text": f"it is {'good' if i % 2 else 'bad'}", "text_pair": "it", "label": i % 5 + 0.5}
    for i in range(16)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The protocol's tasks, sixteen rows each; stsb with a control character, as its file has."""
    folder = tmp_path_factory.mktemp("glue")
    for task in TASKS:
        (folder / task).mkdir()
        rows = [dict(row) for row in (FLOATS if task == "stsb" else [*ROWS, *ROWS])]
        if task == "stsb":
            rows[3]["text"] = "it\x12s good"
        if task == "mrpc":
            names = {"positive": "equivalent", "negative": "not_equivalent"}
            rows = [row | {"text_pair": "it", "label": names[row["label"]]} for row in rows]
        for part in ("train", "dev"):
            jsonl(folder / task / f"{part}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, data: Path, bert_folder: Path) -> Path:
    """The cells of the first comparison on one task."""
    folder = tmp_path_factory.mktemp("results")
    done = invoke(data, folder, bert_folder, "--stages", "search-first,1000-first-stsb")
    assert done.exit_code == 0, done.output
    return folder


def invoke(data: Path, results: Path, backbone: Path, *more: str) -> Result:
    where = ["--glue-dir", str(data), "--results", str(results), "--backbone", str(backbone)]
    return CliRunner().invoke(app, ["run", *where, *more])


def render(results: Path, out: Path) -> Result:
    return CliRunner().invoke(app, ["render", "--results", str(results), "--out", str(out)])


def found(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (results / "cells.jsonl").read_text().splitlines()]


def made_up(method: str, gains: dict[str, list[float]]) -> cells.Cells:
    """Cells of a method, a score a seed; a dev row's value is the score itself."""
    return [
        {"method": method, "task": task, "seed": seed, "score": score, "pseudo_values": [score] * 4}
        for task, scores in gains.items()
        for seed, score in enumerate(scores)
    ]


def test_a_search_comes_first(data: Path, tmp_path: Path, bert_folder: Path) -> None:
    """A stage whose learning rates have not been searched is refused, and nothing is run."""
    refused = invoke(data, tmp_path, bert_folder, "--stages", "1000-first-stsb")
    assert refused.exit_code == 2
    assert "the search for adamix lacks the rate 0.001; expected it whole" in refused.stderr
    assert not (tmp_path / "cells.jsonl").exists()


def test_the_search_decides(results: Path) -> None:
    """Each rate is tried on rows held out from train; the best mean over the tasks is taken, and a
    method with two passes has half the epochs of one with one."""
    lines = found(results)
    searched = [cell for cell in lines if cell["search"] is not None]
    assert len(searched) == 3 * 3 * len(SEARCH_TASKS)
    assert {(cell["rows"], cell["dev_rows"]) for cell in searched} == {(11, 5)}
    for method in ("adamix", "adapter-rdrop", "adapter"):
        means = cells.rates(searched, lines[0]["backbone"], method)
        best = max(RATES[method], key=lambda rate: sum(means[rate].values()))
        own = [c for c in lines if c["search"] is None and c["method"] == method]
        assert {cell["recipe"]["learning_rate"] for cell in own} == {best}
        assert {cell["recipe"]["epochs"] for cell in own} == {6 if method == "adapter" else 3}
        assert len(own) == 6


def test_cells_are_run_once(data: Path, results: Path, bert_folder: Path) -> None:
    """What is there is not run again; what a kill left half-written is, to the same digits."""
    path = results / "cells.jsonl"
    before = path.read_bytes()
    stages = ("--stages", "1000-first-stsb")
    assert invoke(data, results, bert_folder, *stages).stdout == ""
    assert path.read_bytes() == before
    path.write_bytes(before[:-300])
    again = invoke(data, results, bert_folder, *stages)
    assert (again.exit_code, len(again.stdout.splitlines())) == (0, 1), again.output
    last, was = cells.read(path)[-1], json.loads(before.splitlines()[-1])
    assert {**last, "seconds": 0} == {**was, "seconds": 0}
    path.write_bytes(before)


def test_workers(data: Path, results: Path, tmp_path: Path, bert_folder: Path) -> None:
    """Cells that are run side by side in processes are those that one process runs, in order."""
    lines = found(results)
    jsonl(tmp_path / "cells.jsonl", lines[:-3])
    stage = ("--stages", "1000-first-stsb", "--workers", "2")
    done = invoke(data, tmp_path, bert_folder, *stage)
    assert done.exit_code == 0, done.output
    assert [line | {"seconds": 0, "hardware": ""} for line in found(tmp_path)] == [
        line | {"seconds": 0, "hardware": ""} for line in lines
    ]


def test_another_recipe(data: Path, results: Path, tmp_path: Path, bert_folder: Path) -> None:
    """A cell that is there by another recipe ends the program: one table does not mix two."""
    lines = found(results)
    lines[-1]["recipe"]["epochs"] = 99
    jsonl(tmp_path / "cells.jsonl", lines)
    refused = invoke(data, tmp_path, bert_folder, "--stages", "1000-first-stsb")
    assert refused.exit_code == 2
    assert "the cell stsb/adapter/5 has epochs 99, not 6; expected the same" in refused.stderr


def test_the_page(results: Path, tmp_path: Path) -> None:
    """The same cells give the same page: protocol, state, table, contrasts and every cell."""
    pages = []
    for name in ("one", "two"):
        assert render(results, tmp_path / name / "results.md").exit_code == 0
        pages.append((tmp_path / name / "results.md").read_text())
    assert pages[0] == pages[1]
    page = pages[0]
    assert "| 1000-first-stsb | 18 | 18 |" in page
    assert "| 1000-first | 0 | 54 |" in page
    assert re.search(r"^\| adamix \| [0-9,]+ \| -?[0-9.]+ ± [0-9.]+ \(6\) \|$", page, re.M)
    assert re.search(
        r"^\| adamix − adapter-rdrop \| [+-][0-9.]+ \| .* \| stsb [+-].* \| 6 \|$", page, re.M
    )
    assert re.search(r"^- `adapter`: \*\*[0-9.]+\*\* of 0.001: ", page, re.M)
    own = [
        cell["score"]
        for cell in found(results)
        if cell["method"] == "adapter" and cell["search"] is None
    ]
    assert f"| 1,000 | stsb | adapter | {' '.join(f'{100 * score:.1f}' for score in own)} |" in page


def test_the_last_epoch_is_the_cell_s(
    data: Path, results: Path, bert_folder: Path, tmp_path: Path
) -> None:
    """Reading dev after every epoch changes nothing of a run: after the last one it has the score
    of the run that reads it once; the page tells the best beside it."""
    lines = [cell for cell in found(results) if cell["search"] is not None]
    jsonl(tmp_path / "cells.jsonl", lines)
    where = ["--glue-dir", str(data), "--results", str(tmp_path), "--backbone", str(bert_folder)]
    done = CliRunner().invoke(app, ["best-epoch", *where])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(app, ["best-epoch", *where]).stdout == ""
    place = Place(data, str(bert_folder), None)
    backbone = load(place)
    read = cells.read(tmp_path / "best_epoch.jsonl")
    assert len(read) == 9
    for line in read[:3]:
        cell = Cell(line["task"], line["method"], 1000, 0)
        once = run_cell(cell, line["recipe"]["learning_rate"], place, backbone)
        assert len(line["by_epoch"]) == cell.recipe(1e-3).epochs
        assert line["by_epoch"][-1] == once["score"]
    assert render(tmp_path, tmp_path / "results.md").exit_code == 0
    assert "| sst2 | adamix | " in (tmp_path / "results.md").read_text()


def test_cells_again(data: Path, results: Path, bert_folder: Path, tmp_path: Path) -> None:
    """Cells that are run again have the same digits; where one has not, the exit code says so."""
    where = ["--glue-dir", str(data), "--backbone", str(bert_folder), "--count", "2"]
    same = CliRunner().invoke(app, ["again", *where, "--results", str(results)])
    assert (same.exit_code, same.stdout.count(": the same\n")) == (0, 2), same.output
    lines = [line | {"metrics": {}} for line in found(results)]
    jsonl(tmp_path / "cells.jsonl", lines)
    other = CliRunner().invoke(app, ["again", *where, "--results", str(tmp_path)])
    assert (other.exit_code, other.stdout.count(": another\n")) == (1, 2), other.output


def test_no_cells(tmp_path: Path) -> None:
    """Without cells there is no page."""
    refused = render(tmp_path, tmp_path / "results.md")
    assert (refused.exit_code, (tmp_path / "results.md").exists()) == (2, False)
    assert "there are no cells yet" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "last"], "stage 'last' is unknown; expected one of search-first, "),
        (["--glue-dir", "nowhere"], "nowhere/sst2 is no folder, and nyu-mll/glue sst2 (train) "),
        (["--device", "cudax"], "device is 'cudax'; expected cpu or cuda"),
    ],
)
def test_refused(
    data: Path, tmp_path: Path, bert_folder: Path, options: list[str], message: str
) -> None:
    """What is not there ends the program with one sentence and exit code 2."""
    refused = invoke(data, tmp_path, bert_folder, *options)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_rows_of_a_cell(data: Path) -> None:
    """A seed draws the same rows for every method, other seeds draw others, and a search never
    learns from a row that it chooses by."""
    drawn = [
        sets_of(Cell("sst2", method, 6, seed), data)[0].targets
        for method in ("adamix", "full")
        for seed in range(4)
    ]
    assert drawn[:4] == drawn[4:]
    assert len({str(targets) for targets in drawn}) > 1
    train, held = sets_of(Cell("stsb", "full", 1000, 0, rate=1e-3), data)
    assert (len(train.texts), len(held.texts)) == (11, 5)


def test_the_protocol_is_whole() -> None:
    """Every stage's methods and tasks are known, its learning rates searched in a stage before, and
    no cell stands in two stages."""
    searched: set[str] = set()
    keys: list[tuple[Any, ...]] = []
    for stage in STAGES:
        assert set(stage.tasks) <= set(KNOWN)
        names = {METHODS[method]["method"] for method in stage.methods}
        if stage.search:
            searched |= names
        assert names <= searched
        keys += [tuple(cell.key.values()) for cell in stage.cells()]
        for cell in stage.cells():
            assert cell.recipe(1e-3).passes * cell.recipe(1e-3).epochs in (4, 6, 8, 10, 20, 60)
    assert len(keys) == len(set(keys)) or {key for key in keys if keys.count(key) > 1} <= {
        key for key in keys if key[1] == "adamix-paper"
    }


def test_pseudo_values() -> None:
    """Each is what the definition gives, leaving a row out, and their mean is near the score."""
    generator = np.random.default_rng(0)
    wanted = generator.integers(0, 2, 40).tolist()
    logits = torch.tensor(generator.normal(size=(40, 2)))
    numbers = generator.normal(size=40).tolist()
    single = Dataset("single_label_classification", ("a", "b"), [("x",)] * 40, wanted)
    scale = Dataset("regression", ("score",), [("x",)] * 40, numbers)
    predicted = logits.argmax(dim=1).numpy()
    cases = [
        ("accuracy", single, logits, accuracy_score, predicted, wanted),
        ("matthews", single, logits, matthews_corrcoef, predicted, wanted),
        ("pearson", scale, logits[:, :1], lambda x, y: pearsonr(x, y)[0], logits[:, 0], numbers),
    ]
    for metric, dataset, given, score, x, y in cases:
        x, y = np.array(x), np.array(y)
        left_out = [score(np.delete(x, i), np.delete(y, i)) for i in range(40)]
        expected = [40 * score(x, y) - 39 * without for without in left_out]
        found = pseudo_values(metric, dataset, given)
        assert found == pytest.approx(expected, abs=1e-4)
        assert np.mean(found) == pytest.approx(score(x, y), abs=0.03)


def test_the_sign_flip_is_exact() -> None:
    """Six differences of one sign have p = 2/64, five 2/32, and a balanced set has p = 1."""
    assert sign_flip(np.array([1.0, 2, 3, 4, 5, 6])) == pytest.approx(2 / 64)
    assert sign_flip(-np.array([1.0, 2, 3, 4, 5])) == pytest.approx(2 / 32)
    assert sign_flip(np.array([1.0, -1, 2, -2])) == 1.0
    assert sign_flip(np.array([3.0])) == 1.0


def test_a_contrast() -> None:
    """A contrast is over the largest whole table of tasks and seeds, with means, interval and
    probability of that alone."""
    one = made_up("adamix", {"sst2": [0.82, 0.84, 0.86], "cola": [0.2, 0.2, 0.2], "stsb": [0.9]})
    other = made_up("lora", {"sst2": [0.80, 0.80, 0.80], "cola": [0.1, 0.2, 0.3], "stsb": [0.1]})
    result = contrast([*one, *other], "adamix", "lora", ["sst2", "cola", "stsb"])
    assert result is not None
    assert (result.tasks, result.seeds) == (("sst2", "cola"), (0, 1, 2))
    assert result.by_task == pytest.approx({"sst2": 4.0, "cola": 0.0})
    assert result.mean == pytest.approx(2.0)
    assert result.improved == pytest.approx((1.0 + 0.5) / 2)
    low, high = result.over_seeds
    assert -2 <= low <= result.mean <= high <= 6
    assert result.over_rows == pytest.approx(over_seeds(np.array([6.0, 2.0, -2.0])), abs=0.7)
    assert contrast(one, "adamix", "lora", ["sst2"]) is None
