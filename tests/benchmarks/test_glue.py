"""The benchmark's table, through its door: cells are run once, whole, by one recipe; the page is
made from them alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from benchmarks.glue import cells
from benchmarks.glue.__main__ import METHODS, RATES, app
from benchmarks.glue.data import BUDGETS, read
from tests.training.test_training_cli import ROWS, jsonl
from training.tasks import TASKS

PAIRS = [
    {"text": f"it is {'good' if i % 2 else 'bad'}", "text_pair": "it", "label": float(i % 2)}
    for i in range(12)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks of twelve rows, one of them with a control character as STS-B's file has."""
    PAIRS[3]["text"] = "it\x12s good"
    for task, rows in (("subj", [*ROWS, *ROWS[:4]]), ("stsb", PAIRS)):
        (tmp_path / "glue" / task).mkdir(parents=True)
        for part in ("train", "dev"):
            jsonl(tmp_path / "glue" / task / f"{part}.jsonl", rows)
    return tmp_path / "glue"


def invoke(command: str, data: Path, backbone: Path, *more: str) -> Result:
    where = [
        "--glue-dir",
        str(data),
        "--results",
        str(data.parent / "results"),
        "--backbone",
        str(backbone),
    ]
    return CliRunner().invoke(
        app,
        [command, *where, "--tasks", "subj,stsb", "--epochs", "1", "--precision", "float32", *more],
    )


def found(data: Path, name: str = "glue.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data.parent / "results" / name).read_text().splitlines()]


def test_the_table(data: Path, bert_folder: Path) -> None:
    """Cells that are there are skipped, a half-written one is run again, and the same cells give
    the same page and plots."""
    methods = ("--methods", "full,adamix,adamix-2-experts", "--seeds", "0,1")
    result = invoke("run", data, bert_folder, *methods)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 12
    path = data.parent / "results" / "glue.jsonl"
    before = path.read_text()
    first = found(data)[0]
    assert {
        "task",
        "method",
        "seed",
        "score",
        "metric",
        "rows",
        "shots",
        "parameters",
        "seconds",
        "hardware",
        "recipe",
    } < set(first)
    path.write_text(before[:-40])
    result = invoke("run", data, bert_folder, *methods)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1), result.output
    assert len(cells.read(path.parent)) == 12
    again = cells.read(path.parent)[-1]
    assert again["metrics"] == json.loads(before.splitlines()[-1])["metrics"]

    pages = []
    for folder in ("one", "two"):
        out = data.parent / folder / "results.md"
        assert (
            CliRunner()
            .invoke(app, ["render", "--results", str(path.parent), "--out", str(out)])
            .exit_code
            == 0
        )
        pages.append({file.name: file.read_bytes() for file in out.parent.iterdir()})
    assert pages[0] == pages[1]
    assert {name.rpartition("-")[2] for name in pages[0]} == {
        "results.md",
        "methods.svg",
        "routing.svg",
        "experts.svg",
    }
    page = pages[0]["results.md"].decode()
    assert "stsb† pearson (train 12, dev 12)" in page
    assert (
        "† stsb: train is 12 of the official 5,749 rows and dev is 12 of the official 1,500 rows,"
        " so its scores" in page
    )
    assert "(2)" in page
    assert again["hardware"] in page
    assert "average of 2" in page
    assert re.search(r"^- full: [+-][0-9.]+ points, better in [0-4] of 4 cells$", page, re.M)
    of, variant = page.split("| variant |")[1].splitlines()[2:4]
    assert of.startswith("| adamix |")
    assert variant.startswith("| adamix-2-experts |")


def test_longer(data: Path, bert_folder: Path) -> None:
    """A `-long` row is its method with four times the epochs, at that method's learning rate."""
    assert invoke("run", data, bert_folder, "--methods", "full-long", "--seeds", "0").exit_code == 0
    recipe = found(data)[-1]["recipe"]
    assert (recipe["method"], recipe["epochs"]) == ("full", 4)


def test_few_examples(data: Path, bert_folder: Path) -> None:
    """Runs on a few examples are cells of their own, in a part of the page of their own."""
    methods = ("--methods", "full,adamix", "--seeds", "0,1")
    assert invoke("run", data, bert_folder, *methods).exit_code == 0
    result = invoke("run", data, bert_folder, *methods, "--shots", "6")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 8), result.output
    few = [cell for cell in found(data) if cell["shots"] == 6]
    assert {cell["rows"] for cell in few} == {6}
    assert len(found(data)) == 8 + len(few)
    out = data.parent / "results.md"
    where = ["--results", str(data.parent / "results"), "--out", str(out)]
    assert CliRunner().invoke(app, ["render", *where]).exit_code == 0
    whole, part = out.read_text().split(f"## Backbone {bert_folder}, 6 training examples\n")
    assert "subj accuracy (train 12, dev 12)" in whole.replace("†", "")
    assert "subj accuracy (train 6, dev 12)" in part.replace("†", "")
    assert "train is" not in part
    assert "Learning rates" not in part


def test_another_recipe(data: Path, bert_folder: Path) -> None:
    """A cell that is there by another recipe ends the program: one table does not mix two."""
    assert invoke("run", data, bert_folder, "--methods", "head", "--seeds", "0").exit_code == 0
    result = invoke("run", data, bert_folder, "--methods", "head", "--seeds", "0", "--epochs", "2")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: the cell subj/head/0 in ")
    assert "has epochs 1, not 2; expected the same, or another --results" in result.stderr
    assert len(found(data)) == 2


def test_the_search(data: Path, bert_folder: Path) -> None:
    """Each learning rate is tried on rows held out from train, and the best mean is what a run
    takes."""
    result = invoke("search", data, bert_folder, "--methods", "head")
    assert result.exit_code == 0, result.output
    tried = found(data, "glue_search.jsonl")
    assert [cell["recipe"]["learning_rate"] for cell in tried] == 2 * list(RATES["head"])
    assert {(cell["rows"], cell["dev_rows"]) for cell in tried} == {(10, 2)}
    means = {
        rate: sum(cell["score"] for cell in tried if cell["search"] == rate)
        for rate in RATES["head"]
    }
    assert invoke("run", data, bert_folder, "--methods", "head", "--seeds", "0").exit_code == 0
    assert found(data)[0]["recipe"]["learning_rate"] == max(means, key=means.__getitem__)


def test_half_a_search(data: Path, bert_folder: Path) -> None:
    """Half a search chooses nothing: a run says what lacks."""
    assert invoke("search", data, bert_folder, "--methods", "head").exit_code == 0
    path = data.parent / "results" / "glue_search.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:-1]))
    result = invoke("run", data, bert_folder, "--methods", "head", "--seeds", "0")
    assert result.exit_code == 2
    assert "the search for head lacks 0.01 on stsb; expected it whole" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "prefix"], "'prefix' is unknown; expected one of full, adamix"),
        (["--tasks", "sst3"], "'sst3' is unknown; expected one of rte"),
        (
            ["--glue-dir", "nowhere"],
            "nowhere/subj is no folder, and SetFit/subj (train) cannot be had from the Hugging",
        ),
        (["--device", "cudax"], "device is 'cudax'; expected cpu or cuda"),
        (["--seeds", "one"], "seeds has 'one'; expected whole numbers with commas between"),
    ],
)
def test_refused(data: Path, bert_folder: Path, options: list[str], message: str) -> None:
    """What is not there ends the program with one sentence and exit code 2."""
    result = invoke("run", data, bert_folder, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_cells_that_stand_alone(data: Path, bert_folder: Path) -> None:
    """A method with some of the tasks takes no average from the others, and of the experts' numbers
    only the tasks and seeds that all have are drawn: one cell more or less never keeps the page
    from being made."""
    assert (
        invoke("run", data, bert_folder, "--methods", "full,adamix", "--seeds", "0,1").exit_code
        == 0
    )
    assert (
        invoke(
            "run", data, bert_folder, "--methods", "head", "--seeds", "0", "--tasks", "subj"
        ).exit_code
        == 0
    )
    assert (
        invoke(
            "run",
            data,
            bert_folder,
            "--methods",
            "adamix-2-experts",
            "--seeds",
            "0",
            "--tasks",
            "subj",
        ).exit_code
        == 0
    )
    out = data.parent / "results.md"
    where = ["--results", str(data.parent / "results"), "--out", str(out)]
    assert CliRunner().invoke(app, ["render", *where]).exit_code == 0
    page = out.read_text()
    assert "average of 2" in page
    assert re.search(r"^\| head \|.*\| – \|$", page, re.M)
    assert "AdaMix by its number of experts, mean and standard deviation over 1 seed." in page
    assert (
        invoke(
            "run",
            data,
            bert_folder,
            "--methods",
            "adamix-8-experts",
            "--seeds",
            "1",
            "--tasks",
            "stsb",
        ).exit_code
        == 0
    )
    assert CliRunner().invoke(app, ["render", *where]).exit_code == 0
    assert "number of experts" not in out.read_text()


def test_no_cells(tmp_path: Path) -> None:
    """Without cells there is no page."""
    out = tmp_path / "results.md"
    result = CliRunner().invoke(app, ["render", "--results", str(tmp_path), "--out", str(out)])
    assert (result.exit_code, out.exists()) == (2, False)
    assert "there are no cells yet" in result.stderr


def test_a_cap_keeps_the_same_rows(data: Path) -> None:
    """A cap keeps so many rows, the same ones each time, and labels are those of the whole file."""
    one, two = (read(data, "subj", 10) for _ in range(2))
    assert one == two
    assert [len(part.texts) for part in one] == [10, 10]
    assert set(BUDGETS) == set(TASKS)
    assert {recipe["method"] for recipe in METHODS.values()} == set(RATES)
