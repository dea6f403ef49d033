"""Calibrated scores and abstention: what a file's temperatures and its risk-coverage table do with
logits (docs/adapter-format.md, section 3).

A temperature divides logits before softmax or sigmoid (Guo et al. 2017, "On Calibration of Modern
Neural Networks", section 4.2). It is positive, so no label gets past another, or past ½. To abstain
is selective classification by the largest softmax probability (Geifman and El-Yaniv 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def calibrated(logits: Sequence[float], temperatures: Sequence[float]) -> list[float]:
    """One row's logits `[C]`, divided by its task's temperatures: none, one for all labels, or one
    for each."""
    if not temperatures:
        return list(logits)
    if len(temperatures) == 1:
        return [value / temperatures[0] for value in logits]
    return [value / each for value, each in zip(logits, temperatures, strict=True)]


def softmax(logits: Sequence[float]) -> list[float]:
    """One row's probabilities `[C]`."""
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    total = sum(powers)
    return [power / total for power in powers]


def sigmoid(logit: float) -> float:
    """A label's own probability."""
    # never exp of a large number
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


def confidence(logits: Sequence[float], temperatures: Sequence[float]) -> float:
    """The calibrated probability of a row's best label, of a task whose labels exclude each
    other."""
    return max(softmax(calibrated(logits, temperatures)))


def threshold_for(points: Sequence[tuple[float, float]], accuracy: float) -> float | None:
    """The least confidence of an answer, so that answers are right as often as `accuracy` says;
    None if no point of the table reaches that. `points` are (accuracy, threshold), ascending."""
    return next((least for reached, least in points if reached >= accuracy), None)
