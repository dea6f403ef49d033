"""`--select best`: the best epoch by rows that are held out of the training rows."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adapters.backbone import Backbone
from adapters.file import load
from tests.training.test_training import NUMBERS, SEVERAL, SINGLE
from tests.training.test_training_cli import ROWS, assert_refused, invoke, jsonl
from training.checkpoint import Checkpoints
from training.config import Recipe
from training.data import Dataset
from training.errors import TrainingError
from training.one_run import Measured, measure
from training.progress import Progress
from training.selection import Selection, split

QUICK = Recipe(bottleneck=4, epochs=4, batch_size=8, learning_rate=1e-2, select="best")


class Killed(Exception):
    pass


def run(backbone: Backbone, data: Dataset = SINGLE, **changes: Any) -> Measured:
    return measure(backbone, data, data, dataclasses.replace(QUICK, **changes))


def scripted(values: list[float], patience: int | None = None) -> tuple[Selection, nn.Module]:
    """A selection whose epochs score these values, over a model whose weight is their number."""
    model, left = nn.Linear(1, 1, bias=False), list(values)
    selection = Selection(lambda: {"accuracy": left.pop(0)}, "accuracy", patience, lambda _: None)
    for epoch in range(1, len(values) + 1):
        nn.init.constant_(model.weight, float(epoch))
        selection.judge(model, epoch, 10 * epoch)
        if selection.exhausted:
            break
    return selection, model


@pytest.mark.parametrize(
    ("values", "best"), [([0.5, 0.7, 0.6], 2), ([0.5, 0.7, 0.7], 2), ([0.5, 0.6, 0.7], 3)]
)
def test_the_best_epoch(values: list[float], best: int) -> None:
    """The weights of the best epoch come back; of equal ones, the first's."""
    selection, model = scripted(values)
    selection.restore(model)
    assert selection.best is not None
    assert (selection.best.epoch, float(model.weight.detach())) == (best, best)


def test_patience() -> None:
    """The training ends after as many epochs without a better one as the patience says."""
    selection, _ = scripted([0.5, 0.7, 0.7, 0.6, 0.9], patience=2)
    assert selection.exhausted
    assert [epoch.epoch for epoch in selection.history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("rows", "held"), [(9, 3), (32, 10), (400, 100), (5000, 500), (50000, 2000)]
)
def test_held_out_rows(rows: int, held: int) -> None:
    """The held-out rows are no training rows, as many as documented, with each class's share."""
    data = Dataset(
        "single_label_classification",
        ("no", "yes"),
        [(str(i),) for i in range(rows)],
        [int(i % 3 == 0) for i in range(rows)],
    )
    rest, out = split(data, seed=0)
    assert len(out.texts) == held
    assert sorted(rest.texts + out.texts) == sorted(data.texts)
    assert Counter(out.targets)[1] == pytest.approx(held / 3, abs=1)
    assert split(data, seed=0)[1].texts == out.texts != split(data, seed=1)[1].texts


def test_too_few_rows() -> None:
    """Fewer rows than can be split are refused in a sentence."""
    few = dataclasses.replace(SINGLE, texts=SINGLE.texts[:8], targets=SINGLE.targets[:8])
    with pytest.raises(TrainingError, match="there are 8 training rows; expected 9 or more"):
        split(few, 0)


@pytest.mark.parametrize("data", [SINGLE, SEVERAL, NUMBERS], ids=["one", "several", "numbers"])
def test_a_run(bert: Backbone, data: Dataset) -> None:
    """A run of each kind of task judges every epoch; what it returns scores on the held-out rows
    what its best epoch did."""
    measured = run(bert, data)
    selection = measured.selection
    assert selection is not None
    assert selection.best is not None
    assert [epoch.epoch for epoch in selection.history] == [1, 2, 3, 4]
    held = split(data, QUICK.seed)[1]
    assert measured.rows == len(data.texts) - len(held.texts)
    selection.judge(measured.model, 5, measured.done.steps)
    assert selection.history[-1].scores == selection.best.scores


def test_selecting_changes_no_step(bert: Backbone) -> None:
    """Judging the epochs leaves the steps as they are: where the last epoch is the best, the
    weights are those of a run that judges none."""
    rest = split(SINGLE, QUICK.seed)[0]
    plain = measure(bert, rest, SINGLE, dataclasses.replace(QUICK, epochs=1, select="last"))
    chosen = run(bert, epochs=1)
    assert torch.equal(plain.logits, chosen.logits)


def test_going_on(bert: Backbone, tmp_path: Path) -> None:
    """A run that was killed between epochs and goes on has the same history and the same result."""
    whole = run(bert, patience=4)
    checkpoints = Checkpoints(tmp_path / "checkpoint", 1)

    def kill(at: Progress) -> None:
        if at.step == 8:
            raise Killed

    recipe = dataclasses.replace(QUICK, patience=4)
    with pytest.raises(Killed):
        measure(bert, SINGLE, SINGLE, recipe, kill, checkpoints)
    resumed = measure(bert, SINGLE, SINGLE, recipe, checkpoints=checkpoints)
    assert whole.selection is not None
    assert resumed.selection is not None
    assert resumed.selection.history == whole.selection.history
    assert torch.equal(resumed.logits, whole.logits)


def test_on_the_command_line(tmp_path: Path, bert_folder: Path) -> None:
    """A run says which epoch it selected, its file and its folder hold that, and its patience makes
    it no unfinished run."""
    rows = [{**row, "text": f"{row['text']} {i}"} for i in range(3) for row in ROWS]
    data, out = jsonl(tmp_path / "data.jsonl", rows), tmp_path / "toy.safetensors"
    more = ["--epochs", "30", "--select", "best", "--patience", "2", "--json"]
    folder, page = tmp_path / "run", tmp_path / "report.html"
    places = ["--run-dir", str(folder), "--report", str(page)]
    result = invoke(data, out, bert_folder, *more, *places)
    assert result.exit_code == 0, result.output
    said = load(out).spec.training
    found = re.search(r"selected epoch (\d+): accuracy (\S+) on the held-out", result.stderr)
    assert found is not None
    assert said["selected_epoch"] == int(found[1])
    assert f"{said['held_out_scores']['accuracy']:.4f}" == found[2]
    assert len(result.stdout.splitlines()) == 1  # the run counts as finished
    assert "--resume goes on" not in result.stderr
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["held_out/accuracy"] for line in lines if "held_out/accuracy" in line]
    assert "accuracy on the held-out rows" in page.read_text()


def test_patience_alone(tmp_path: Path, bert_folder: Path) -> None:
    """Patience without a selection is refused."""
    data, out = jsonl(tmp_path / "data.jsonl", ROWS), tmp_path / "toy.safetensors"
    result = invoke(data, out, bert_folder, "--patience", "2")
    assert_refused(result, "patience is 2, but select is 'last'; expected best with it", out)
