"""What a run's numbers say about it: signs of a training that was too short or learnt nothing, each
with what to try."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from training.config import Recipe
from training.data import Dataset
from training.defaults import LEAST_STEPS

JUDGED_STEPS = 20  # of fewer, the loss says nothing
FELL = 0.9  # the loss of the last fifth, in parts of that of the first
JUDGED_ROWS = 10  # of fewer dev rows, the predictions say nothing
NO_CORRELATION = 0.1
REMEDY = (
    "try more epochs, then another --learning-rate (--search small tries some), and look whether"
    " the labels are right"
)


def of_training(recipe: Recipe, steps: int, losses: Sequence[float]) -> list[str]:
    """Sentences on a training that has made all its steps. `losses` are those of the steps; a run
    that was resumed lacks the first ones, and its loss is not judged."""
    said = []
    if steps < LEAST_STEPS:
        epochs = -(-recipe.epochs * LEAST_STEPS // steps)
        experts = (
            f", and each of the {recipe.experts} experts learns from a part of them"
            if recipe.method == "adamix" and recipe.routing == "batch"
            else ""
        )
        counted = "1 step is" if steps == 1 else f"{steps} steps are"
        said.append(
            f"{counted} few{experts}: --epochs {epochs} makes {LEAST_STEPS} of them, and so does a"
            " smaller --batch-size"
        )
    if steps == len(losses) >= JUDGED_STEPS:
        first, last = (statistics.mean(part) for part in _ends(losses))
        if last > FELL * first:
            said.append(
                f"the training loss hardly fell, from {first:.3f} to {last:.3f}: try a higher"
                f" --learning-rate, such as {3 * recipe.learning_rate:g}, or more epochs"
            )
    return said


def of_predictions(dataset: Dataset, logits: Tensor, scores: dict[str, float]) -> list[str]:
    """Sentences on what was predicted for a set: its logits `[N, C]`, and its scores by name."""
    if len(dataset.texts) < JUDGED_ROWS:
        return []
    if dataset.problem_type == "regression":
        if abs(scores["pearson"]) < NO_CORRELATION:
            return [
                f"the predicted numbers hardly follow the true ones (Pearson correlation"
                f" {scores['pearson']:.4f}): {REMEDY}"
            ]
        return []
    if dataset.problem_type == "multi_label_classification":
        if not (logits > 0).any():
            return [f"no dev row got any label: {REMEDY}"]
        return []
    return _of_classes(dataset, logits, scores["accuracy"])


def _of_classes(dataset: Dataset, logits: Tensor, accuracy: float) -> list[str]:
    answered = np.unique(logits.argmax(dim=-1).numpy())
    if len(answered) == 1 and len(set(dataset.targets)) > 1:
        return [f"every dev row got the label {dataset.labels[answered[0]]!r}: {REMEDY}"]
    most, rows = Counter(dataset.targets).most_common(1)[0]
    always = rows / len(dataset.targets)
    if accuracy <= always < 1:
        return [
            f"the accuracy {accuracy:.4f} is no better than that of always answering"
            f" {dataset.labels[most]!r}, {always:.4f}: {REMEDY}"
        ]
    return []


def _ends(losses: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    fifth = len(losses) // 5
    return losses[:fifth], losses[-fifth:]
