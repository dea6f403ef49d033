"""Logits of a trained classifier or mixture, and the scores its task is judged by (scikit-learn's
and SciPy's)."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

from adapters.classifier import Classifier, collate
from adapters.mixture import draw_routes, layers_of
from adapters.spec import ProblemType
from adapters.text import Tokens
from training.config import Evaluation
from training.data import Dataset
from training.errors import TrainingError

MAX_BATCH_TOKENS = 8192


@torch.no_grad()
def predict(
    model: Classifier, rows: Sequence[Tokens], before_batch: Callable[[], None] = lambda: None
) -> Tensor:
    """Logits `[N, C]` in float32 on the CPU, in the rows' order; rows of like length share a
    batch."""
    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    logits: list[Tensor] = []
    for batch in _batches(order, rows):
        before_batch()
        logits.append(model(collate([rows[i] for i in batch], device)).float().cpu())
    result = torch.empty(len(rows), logits[0].shape[1])
    result[torch.tensor(order)] = torch.cat(logits)
    return result


def predict_unmerged(
    model: Classifier, rows: Sequence[Tokens], evaluation: Evaluation, seed: int
) -> Tensor:
    """Logits of a mixture that is not merged (the paper's ablations).

    `random`: a fresh draw of routes for every batch, by `seed`. `fixed`: expert 0 in every layer.
    `ensemble`: the mean of the logits that each expert gives in all layers.
    """
    if evaluation == "random":
        rng = random.Random(seed)
        return predict(model, rows, lambda: draw_routes(model.sites, rng))
    mixtures = [mixture for layer in layers_of(model.sites) for mixture in layer]
    downs, ups = mixtures[0].counts
    experts = 1 if evaluation == "fixed" else max(downs, ups)
    total = torch.zeros(())
    for expert in range(experts):
        for mixture in mixtures:
            mixture.route = (expert % downs, expert % ups)
        total = total + predict(model, rows)
    return total / experts


def main_metric(problem_type: ProblemType, positive: str | None, chosen: str | None) -> str:
    """The metric that a run is told by: the one chosen, by default accuracy, micro F1 or Pearson
    correlation."""
    metrics = {
        "single_label_classification": [
            "accuracy",
            "matthews",
            "f1_macro",
            *(["f1"] if positive is not None else []),
        ],
        "multi_label_classification": ["f1_micro", "f1_macro", "accuracy"],
        "regression": ["pearson", "spearman"],
    }[problem_type]
    if chosen is not None and chosen not in metrics:
        raise TrainingError(f"metric is {chosen!r}; expected one of {', '.join(metrics)}")
    return chosen or metrics[0]


def scores(dataset: Dataset, logits: Tensor, positive: str | None = None) -> dict[str, float]:
    """Metrics by name, rounded to six places.

    Single label: accuracy, Matthews correlation, macro F1, and the F1 of the label `positive` if
    one is named (GLUE judges MRPC by that of "equivalent"). Multi-label: exact-match accuracy and
    micro and macro F1 at probability ½. Regression: Pearson and Spearman correlation.
    """
    result: dict[str, Any]
    if dataset.problem_type == "regression" and len(dataset.targets) < 2:
        result = {"pearson": 0.0, "spearman": 0.0}  # one point has no correlation: SciPy raises
    elif dataset.problem_type == "regression":
        found, wanted = logits.squeeze(-1).numpy(), np.array(dataset.targets)
        with warnings.catch_warnings():
            # a constant column has no correlation: SciPy warns and answers NaN
            warnings.simplefilter("ignore")
            result = {
                "pearson": pearsonr(found, wanted)[0],
                "spearman": spearmanr(found, wanted)[0],
            }
    elif dataset.problem_type == "multi_label_classification":
        result = _multi_label_scores(dataset, logits)
    else:
        predicted, wanted = logits.argmax(dim=-1).numpy(), np.array(dataset.targets)
        with warnings.catch_warnings():
            # one label alone, predicted everywhere, has no correlation: scikit-learn warns
            warnings.simplefilter("ignore")
            matthews = matthews_corrcoef(wanted, predicted)
        result = {
            "accuracy": accuracy_score(wanted, predicted),
            "f1_macro": f1_score(wanted, predicted, average="macro", zero_division=0),
            "matthews": matthews,
        }
        if positive is not None:
            label = dataset.labels.index(positive)
            result["f1"] = f1_score(wanted == label, predicted == label, zero_division=0)
    return {name: round(float(np.nan_to_num(value)), 6) for name, value in result.items()}


def _multi_label_scores(dataset: Dataset, logits: Tensor) -> dict[str, Any]:
    predicted = (logits > 0).numpy()
    wanted = np.zeros_like(predicted)
    for i, indices in enumerate(dataset.targets):
        wanted[i, indices] = True
    return {
        "accuracy": accuracy_score(wanted, predicted),
        "f1_micro": f1_score(wanted, predicted, average="micro", zero_division=0),
        "f1_macro": f1_score(wanted, predicted, average="macro", zero_division=0),
    }


def _batches(order: list[int], rows: Sequence[Tokens]) -> list[list[int]]:
    """Cut ascending lengths into batches of at most MAX_BATCH_TOKENS with padding."""
    batches: list[list[int]] = [[]]
    for i in order:
        if batches[-1] and (len(batches[-1]) + 1) * len(rows[i].ids) > MAX_BATCH_TOKENS:
            batches.append([])
        batches[-1].append(i)
    return batches
