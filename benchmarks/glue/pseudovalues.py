"""What each dev row contributes to a score: jackknife pseudo-values (Miller 1974), one a row.

A cell keeps these, not its predictions: they hold neither texts nor labels, and the bootstrap over
dev rows needs no more. A row has n·θ − (n − 1)·θ₋ᵢ, where θ₋ᵢ is the score without it. For accuracy
that is 1 where the row is right and 0 where it is not. The mean is the score, exactly for accuracy
and up to terms of order 1/n for the correlations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from training.data import Dataset

Floats = NDArray[np.float64]
DIGITS = 4


def pseudo_values(metric: str, dataset: Dataset, logits: Tensor) -> list[float]:
    """Of the metrics that the table's tasks are judged by: accuracy, matthews or pearson."""
    wanted = np.array(dataset.targets, dtype=np.float64)
    if metric == "pearson":
        found = _pearson(logits.squeeze(-1).double().numpy(), wanted)
    else:
        predicted = logits.argmax(dim=-1).numpy().astype(np.float64)
        found = (predicted == wanted) * 1.0 if metric == "accuracy" else _pearson(predicted, wanted)
    return [round(float(value), DIGITS) for value in found]


def _pearson(x: Floats, y: Floats) -> Floats:
    """Of Pearson's correlation; Matthews' is that of two binary columns. 0 where there is none."""
    n = len(x)
    sums = [np.sum(part) for part in (x, y, x * x, y * y, x * y)]
    without = [total - part for total, part in zip(sums, (x, y, x * x, y * y, x * y), strict=True)]
    whole = _correlation(n, *(np.asarray(total) for total in sums))
    return np.asarray(n * whole - (n - 1) * _correlation(n - 1, *without))


def _correlation(n: int, x: Floats, y: Floats, xx: Floats, yy: Floats, xy: Floats) -> Floats:
    spread = np.maximum((xx - x * x / n) * (yy - y * y / n), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(spread > 1e-12, (xy - x * y / n) / np.sqrt(spread), 0.0))
