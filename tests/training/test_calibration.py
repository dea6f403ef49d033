"""Temperatures and the table by which a task abstains: fitted, written into a file, told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from adapters.backbone import Backbone
from adapters.calibration import threshold_for
from adapters.file import load, save
from tests.tiny import random_adapter
from tests.training.test_training import NUMBERS, SEVERAL, SINGLE, TEXTS
from tests.training.test_training_cli import LABELS, ROWS, assert_refused, invoke, jsonl
from training.__main__ import app
from training.calibration import (
    calibration,
    calibration_error,
    coverage_told,
    fit_temperatures,
    probabilities,
    risk_coverage,
)
from training.config import Recipe
from training.data import Dataset
from training.one_run import measure, train

QUICK = Recipe(bottleneck=4, epochs=2, batch_size=8, learning_rate=1e-2)
NOUNS = ("film", "plot", "man", "eating")


def drawn(rows: int, heat: tuple[float, ...], seed: int, several: bool = False) -> Any:
    """A set whose labels are drawn by the probabilities of logits over `heat`, and the logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, 3, generator=generator)
    cooled = logits / torch.tensor(heat)
    if several:
        has = torch.rand(rows, 3, generator=generator) < cooled.sigmoid()
        targets: list[Any] = [[i for i in range(3) if row[i]] for row in has.tolist()]
    else:
        targets = torch.multinomial(cooled.softmax(-1), 1, generator=generator)[:, 0].tolist()
    kind = "multi_label_classification" if several else "single_label_classification"
    return Dataset(kind, ("a", "b", "c"), [("t",)] * rows, targets), logits  # type: ignore[arg-type]


def by_lbfgs(data: Dataset, logits: torch.Tensor) -> float:
    """The temperature as Guo et al.'s code fits it, but with a line search: without one it leaves
    for negative temperatures where the best is below 1."""
    temperature = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.LBFGS([temperature], max_iter=100, line_search_fn="strong_wolfe")
    loss = torch.nn.CrossEntropyLoss()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = loss(logits / temperature, torch.tensor(data.targets))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return temperature.item()


@pytest.mark.parametrize("heat", [0.5, 1.0, 2.5])
def test_the_temperature(heat: float) -> None:
    """Of labels that were drawn at a temperature, it is found; and it is that of the paper's
    code."""
    data, logits = drawn(20_000, (heat,), seed=1)
    (found,) = fit_temperatures(data, logits)
    assert found == pytest.approx(heat, rel=0.05)
    assert found == pytest.approx(by_lbfgs(data, logits), rel=2e-3)


def test_a_temperature_for_each_label() -> None:
    """Each label of a multi-label task gets its own; one that says nothing keeps 1."""
    data, logits = drawn(20_000, (0.5, 1.0, 3.0), seed=2, several=True)
    assert fit_temperatures(data, logits) == pytest.approx((0.5, 1.0, 3.0), rel=0.08)
    right = dataclasses.replace(
        data, targets=[[i for i in range(3) if row[i] > 0] for row in logits.tolist()]
    )
    assert fit_temperatures(right, logits) == (1.0, 1.0, 1.0)


def test_rows_without_an_error_say_nothing() -> None:
    """Where every held-out row is right, the temperature stays 1: no score becomes exactly 1."""
    data, logits = drawn(200, (1.0,), seed=3)
    right = dataclasses.replace(data, targets=logits.argmax(-1).tolist())
    assert fit_temperatures(right, logits) == (1.0,)


def test_the_calibration_error() -> None:
    """It is the mean distance of probability and share over the rows, by bins of a tenth."""
    logits = torch.tensor([[0.0, value] for value in (1.2, 1.3, 1.25, 3.0)])
    data = Dataset("single_label_classification", ("a", "b"), [("t",)] * 4, [1, 0, 0, 1])
    sure = logits.double().softmax(-1)[:, 1].tolist()  # 0.77, 0.79, 0.78 and 0.95
    expected = (abs(sum(sure[:3]) - 1) + abs(sure[3] - 1)) / 4
    assert calibration_error(data, logits) == pytest.approx(expected, abs=1e-6)


def test_calibrated_scores_are_calibrated() -> None:
    """On rows that nothing was fitted on, the error falls, and no answer changes."""
    fitted, other = drawn(4000, (2.5,), seed=4), drawn(4000, (2.5,), seed=5)
    found = calibration(*fitted, "a test")
    assert found is not None
    before, after = found.errors
    assert after < 0.02 < before
    data, logits = other
    heated = logits / found.temperatures[0]
    assert calibration_error(data, heated) < 0.02 < calibration_error(data, logits)
    assert torch.equal(heated.argmax(-1), logits.argmax(-1))
    assert calibration(NUMBERS, torch.zeros(len(NUMBERS.texts), 1), "a test") is None


def holds(accuracy: float, seed: int) -> bool:
    """Whether answers above the threshold of a table of 1,000 rows are right as often as it says,
    within one standard error, on rows that it was not made of."""
    (data, logits), (fresh, others) = drawn(1000, (1.0,), seed), drawn(5000, (1.0,), seed + 100)
    found = calibration(data, logits, "a test")
    assert found is not None
    least = threshold_for([(each.accuracy, each.threshold) for each in found.points], accuracy)
    assert least is not None
    sure = probabilities(fresh.problem_type, others, found.temperatures).amax(-1).numpy()
    right = others.argmax(-1).numpy() == np.array(fresh.targets)
    kept = sure >= least
    coverage = next(each.coverage for each in found.points if each.accuracy >= accuracy)
    assert kept.mean() == pytest.approx(coverage, abs=0.06)
    error = (accuracy * (1 - accuracy) / (coverage * len(data.texts))) ** 0.5
    return bool(right[kept].mean() >= accuracy - error)


@pytest.mark.parametrize("accuracy", [0.8, 0.9, 0.95])
def test_abstention_keeps_its_word(accuracy: float) -> None:
    """In five of six draws or more, the accuracy that was asked for is reached on fresh rows."""
    assert sum(holds(accuracy, seed) for seed in range(24)) >= 20


def test_what_few_rows_reach() -> None:
    """Ten rows that are all right do not promise 95 %; where the surest answers are wrong, nothing
    is promised."""
    sure = np.linspace(0.96, 0.999, 10)
    points = risk_coverage(sure, np.ones(10, dtype=bool))
    assert [(point.accuracy, point.coverage, point.threshold) for point in points] == [(0.9, 1, 0)]
    assert coverage_told(points) == (
        "90 % right: 100 % of the rows; 95 % right: not reached; 99 % right: not reached"
    )
    assert risk_coverage(sure, np.zeros(10, dtype=bool)) == ()


def test_rows_of_one_confidence_stay_together() -> None:
    """A threshold is never put between rows of the same confidence."""
    sure = np.array([0.9] * 200 + [0.6] * 100)
    right = np.array([True] * 199 + [False] + [False] * 100)
    points = risk_coverage(sure, right)
    assert (points[-1].coverage, points[-1].threshold) == (pytest.approx(2 / 3, abs=1e-4), 0.75)


def test_confidences_near_one_are_told_apart() -> None:
    """Where the rows that are right are surer only in the eighth digit, the threshold is between
    them and the rest still."""
    sure = np.array([1 - 1e-8] * 300 + [1 - 1e-7] * 300)
    right = np.array([True] * 300 + [False] * 300)
    (*_, last) = risk_coverage(sure, right)
    assert last.coverage == 0.5
    assert sure[300] < last.threshold <= sure[0]


def run(backbone: Backbone, data: Dataset, **choices: Any) -> Any:
    quick = dataclasses.replace(QUICK, **choices)
    return train("toy", backbone, data, data, quick)


@pytest.mark.parametrize("data", [SINGLE, SEVERAL], ids=["one", "several"])
def test_calibration_by_folds(bert: Backbone, data: Dataset) -> None:
    """Five more trainings calibrate an adapter that is trained on all rows: its weights, and so its
    answers, are those of a training without calibration."""
    plain, found = run(bert, data, calibrate="none"), run(bert, data, calibrate="folds")
    assert plain.spec.temperatures is None
    assert len(found.spec.temperatures) == (1 if data is SINGLE else 2)
    assert found.spec.training["calibration"]["rows"] == found.spec.training["train_rows"] == 32
    assert found.spec.training["calibration"]["bins"] == 10
    assert all(torch.equal(found.tensors[name], plain.tensors[name]) for name in plain.tensors)
    assert found.scores == plain.scores


def test_regression_has_no_temperature(bert: Backbone) -> None:
    """A training of numbers asks for no rows to be held out, and writes no temperature."""
    found = run(bert, NUMBERS, calibrate="folds")
    assert (found.spec.temperatures, found.spec.risk_coverage) == (None, None)
    assert "calibration" not in found.spec.training


def many(count: int) -> list[dict[str, Any]]:
    """Rows of which one in five has the wrong label."""
    words = list(LABELS)
    return [
        {
            "text": f"the {NOUNS[i % 4]} is {words[(i // 4) % 4]} {'very ' * (i % 3)}",
            "label": LABELS[words[(i // 4) % 4]] if i % 5 else "negative",
        }
        for i in range(count)
    ]


def test_many_rows_are_calibrated(tmp_path: Path, bert_folder: Path) -> None:
    """From 1,000 rows on, a tenth is held out to calibrate by, and the run and the file say what
    came of it."""
    data, out = jsonl(tmp_path / "data.jsonl", many(1000)), tmp_path / "toy.safetensors"
    result = invoke(data, out, bert_folder, "--batch-size", "50")
    assert result.exit_code == 0, result.output
    assert "100 rows are held out of training, to calibrate the scores by" in result.stdout
    assert "calibrated on 100 rows (held out of the training rows): temperature " in result.stdout
    assert "if it may abstain: 90 % right: " in result.stdout
    spec = load(out).spec
    assert spec.training["train_rows"] == 900
    assert spec.temperatures is not None
    assert spec.training["calibration"].keys() == {
        *("rows", "source", "bins", "error_before", "error_after")
    }
    evaluated = CliRunner().invoke(
        app, ["evaluate", str(out), "--dev", str(data), "--backbone", str(bert_folder), "--json"]
    )
    assert json.loads(evaluated.stdout)["calibration_error"] < 0.15


def test_few_rows_are_all_trained_on(bert: Backbone) -> None:
    """Of fewer than 1,000 rows none is held out unless the user asks for it."""
    assert measure(bert, SINGLE, SINGLE, QUICK).rows == len(TEXTS)


@pytest.fixture
def adapter(bert: Backbone, tmp_path: Path) -> Path:
    spec, tensors, _ = random_adapter(bert, "toy", ["negative", "positive"])
    save(tmp_path / "toy.safetensors", spec, tensors)
    return tmp_path / "toy.safetensors"


def calibrate(adapter: Path, rows: Path, out: Path, backbone: Path, *more: Any) -> Result:
    given = ["calibrate", adapter, "--rows", rows, "--out", out, "--backbone", backbone, *more]
    return CliRunner().invoke(app, [str(part) for part in given])


def test_an_existing_file(adapter: Path, tmp_path: Path, bert_folder: Path) -> None:
    """`calibrate` gives a file temperatures and a table, and changes nothing else in it; again on
    the same rows, it writes the same bytes."""
    rows, out = jsonl(tmp_path / "rows.jsonl", many(200)), tmp_path / "out.safetensors"
    result = calibrate(adapter, rows, out, bert_folder)
    assert result.exit_code == 0, result.output
    before, after = load(adapter), load(out)
    assert f"{out}: version {after.version}" in result.stdout
    assert after.spec.temperatures is not None
    left = {"temperatures", "risk_coverage", "training"}
    assert after.spec.model_dump(exclude=left) == before.spec.model_dump(exclude=left)
    assert after.spec.training["recipe"] == before.spec.training["recipe"]
    assert all(torch.equal(after.tensors[name], before.tensors[name]) for name in before.tensors)
    assert calibrate(out, rows, out, bert_folder).exit_code == 0
    assert load(out).digest == after.digest


def test_a_twin(adapter: Path, bert: Backbone, tmp_path: Path, bert_folder: Path) -> None:
    """With a twin the temperature is the twin's, and the weights are the adapter's."""
    rows, out = jsonl(tmp_path / "rows.jsonl", many(200)), tmp_path / "out.safetensors"
    spec, tensors, _ = random_adapter(bert, "toy", ["negative", "positive"], seed=1)
    twin = tmp_path / "twin.safetensors"
    save(twin, spec, tensors)
    assert calibrate(adapter, rows, out, bert_folder, "--twin", twin).exit_code == 0
    assert calibrate(twin, rows, twin, bert_folder).exit_code == 0
    assert load(out).spec.temperatures == load(twin).spec.temperatures
    assert torch.equal(load(out).tensors["up.weight"], load(adapter).tensors["up.weight"])


def test_what_cannot_be_calibrated(
    adapter: Path, bert: Backbone, tmp_path: Path, bert_folder: Path
) -> None:
    """Few rows, a regression task and a twin with other labels are refused, and nothing is
    written."""
    out, rows = tmp_path / "out.safetensors", jsonl(tmp_path / "rows.jsonl", many(200))
    few = jsonl(tmp_path / "few.jsonl", ROWS)
    result = calibrate(adapter, few, out, bert_folder)
    assert_refused(result, "holds 8 rows; expected 100 or more", out)

    spec, tensors, _ = random_adapter(bert, "toy", ["score"], problem_type="regression")
    save(tmp_path / "number.safetensors", spec, tensors)
    result = calibrate(tmp_path / "number.safetensors", rows, out, bert_folder)
    assert_refused(result, "is of a regression task; expected a task with labels", out)

    spec, tensors, _ = random_adapter(bert, "toy", ["negative", "positive", "so-so"])
    save(tmp_path / "twin.safetensors", spec, tensors)
    result = calibrate(adapter, rows, out, bert_folder, "--twin", tmp_path / "twin.safetensors")
    assert_refused(result, "has labels ('negative', 'positive', 'so-so'); expected", out)
