"""How good an adapter is on labelled rows: its scores, each label's scores, the confusion matrix,
the calibration and the worst errors (scikit-learn's metrics)."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

from adapters.disk import write_atomically
from training.calibration import (
    BINS,
    bin_of,
    calibration_error,
    probabilities,
    targets,
    tempered,
)
from training.data import Dataset
from training.errors import TrainingError
from training.scoring import scores

WORST = 20


@dataclass(frozen=True)
class LabelScores:
    """Of one label; `rows` have it."""

    label: str
    precision: float
    recall: float
    f1: float
    rows: int


@dataclass(frozen=True)
class Bin:
    """The rows whose answer has a probability of `low` to `high`: their mean probability, and the
    share of them whose answer is right."""

    low: float
    high: float
    rows: int
    probability: float
    right: float


@dataclass(frozen=True)
class Error:
    """A row that was answered wrongly. `loss` orders them: cross entropy, or the distance of a
    number."""

    row: int
    text: tuple[str, ...]
    expected: str
    predicted: str
    loss: float


@dataclass(frozen=True)
class Judgement:
    """`confusion[i][j]` rows of label i were answered j; single label only, as are `bins`.
    `calibration_error` is `training.calibration.calibration_error`; None for regression."""

    rows: int
    scores: dict[str, float]
    labels: list[LabelScores]
    confusion: list[list[int]]
    bins: list[Bin]
    calibration_error: float | None
    worst: list[Error]


def judge(
    dataset: Dataset,
    logits: Tensor,
    positive: str | None = None,
    temperatures: tuple[float, ...] | None = None,
) -> Judgement:
    """Compare logits `[N, C]` with a set's labels; their probabilities are by the `temperatures`.
    Raises TrainingError if `positive` is none of the labels."""
    if positive is not None and positive not in dataset.labels:
        raise TrainingError(
            f"positive is {positive!r}; expected one of {', '.join(dataset.labels)}"
        )
    logits = tempered(logits, temperatures)
    wanted = targets(dataset)
    labels: list[LabelScores] = []
    confusion: list[list[int]] = []
    bins: list[Bin] = []
    error = None
    if dataset.problem_type != "regression":
        labels = _by_label(dataset, logits, wanted)
    if dataset.problem_type == "single_label_classification":
        numbers = list(range(len(dataset.labels)))
        predicted = logits.argmax(dim=-1).numpy()
        confusion = confusion_matrix(wanted, predicted, labels=numbers).tolist()
        bins = _bins(logits, wanted)
    if dataset.problem_type != "regression":
        error = calibration_error(dataset, logits)
    return Judgement(
        rows=len(dataset.texts),
        scores=scores(dataset, logits, positive),
        labels=labels,
        confusion=confusion,
        bins=bins,
        calibration_error=error,
        worst=_worst(dataset, logits, wanted),
    )


def write_predictions(
    path: Path, dataset: Dataset, logits: Tensor, temperatures: tuple[float, ...] | None = None
) -> None:
    """A row each: its text, its label, the answer and every label's probability. Raises
    TrainingError."""
    regression = dataset.problem_type == "regression"
    texts = ["text", "text_pair"][: len(dataset.texts[0])]
    columns = [] if regression else [f"probability of {label}" for label in dataset.labels]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow([*texts, "label", "predicted", *columns])
    values = probabilities(dataset.problem_type, logits, temperatures).tolist()
    for i, text in enumerate(dataset.texts):
        shown = [] if regression else [f"{value:.6f}" for value in values[i]]
        writer.writerow([*text, _expected(dataset, i), _answered(dataset, logits[i]), *shown])
    try:
        write_atomically(path, table.getvalue().encode())
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from None


def _by_label(dataset: Dataset, logits: Tensor, wanted: NDArray[Any]) -> list[LabelScores]:
    several = dataset.problem_type == "multi_label_classification"
    predicted = (logits > 0).numpy() if several else logits.argmax(dim=-1).numpy()
    found = precision_recall_fscore_support(
        wanted, predicted, labels=list(range(len(dataset.labels))), zero_division=0
    )
    precision, recall, f1 = (np.round(values, 6).tolist() for values in found[:3])
    counts = np.sum(wanted, axis=0) if several else np.bincount(wanted, minlength=len(precision))
    return [
        LabelScores(*each)
        for each in zip(dataset.labels, precision, recall, f1, counts.tolist(), strict=True)
    ]


def _bins(logits: Tensor, wanted: NDArray[Any]) -> list[Bin]:
    """Those that have rows."""
    best, predicted = logits.softmax(dim=-1).max(dim=-1)
    probability, right = best.numpy(), predicted.numpy() == wanted
    places = bin_of(probability)
    return [
        Bin(
            place / BINS,
            (place + 1) / BINS,
            int(chosen.sum()),
            round(float(probability[chosen].mean()), 6),
            round(float(right[chosen].mean()), 6),
        )
        for place in range(BINS)
        if (chosen := places == place).any()
    ]


def _worst(dataset: Dataset, logits: Tensor, wanted: NDArray[Any]) -> list[Error]:
    losses = _losses(dataset, logits, wanted)
    errors = [
        Error(i + 1, tuple(dataset.texts[i]), expected, predicted, round(float(losses[i]), 4))
        for i in np.argsort(-losses.numpy(), kind="stable").tolist()
        if (expected := _expected(dataset, i)) != (predicted := _answered(dataset, logits[i]))
    ]
    return errors[:WORST]


def _losses(dataset: Dataset, logits: Tensor, wanted: NDArray[Any]) -> Tensor:
    target = torch.from_numpy(wanted)
    if dataset.problem_type == "regression":
        return (logits.squeeze(-1) - target).abs()
    if dataset.problem_type == "multi_label_classification":
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        return loss(logits, target.float(), reduction="none").amax(dim=-1)
    return torch.nn.functional.cross_entropy(logits, target, reduction="none")


def _expected(dataset: Dataset, row: int) -> str:
    target = dataset.targets[row]
    if dataset.problem_type == "regression":
        return f"{target:g}"
    indices = target if isinstance(target, list) else [target]
    return "|".join(dataset.labels[index] for index in sorted(indices))


def _answered(dataset: Dataset, logits: Tensor) -> str:
    if dataset.problem_type == "regression":
        return f"{logits.item():.4g}"
    if dataset.problem_type == "multi_label_classification":
        return "|".join(label for label, on in zip(dataset.labels, logits > 0, strict=True) if on)
    return dataset.labels[int(logits.argmax())]
