"""Rows held out of a run's training rows, and the best of its epochs by them.

AdaMix's released code evaluates after every epoch and keeps the best model
(`roberta_large_mnli_expert_soup.sh`: `--evaluation_strategy epoch --load_best_model_at_end
--metric_for_best_model accuracy`). It chooses by the dev set whose score it then reports, which is
too high for that reason. Here the rows are split from the training set, and dev chooses nothing.
As in transformers' `Trainer`, a later epoch must be better, not only as good; `patience` is that of
its `EarlyStoppingCallback`.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.data import Dataset
from training.errors import TrainingError

LEAST_ROWS = 9  # of fewer training rows, less than three would be held out
USUAL, MOST = 100, 2000  # rows held out


def split(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train on, and rows held out: a tenth, but 100 where that is less, at most a third and
    at most 2,000. Of single labels, each has its share of them. Raises TrainingError."""
    rows = len(dataset.texts)
    if rows < LEAST_ROWS:
        raise TrainingError(
            f"there are {rows} training rows; expected {LEAST_ROWS} or more, from which some can be"
            " held out"
        )
    count = min(max(rows // 10, USUAL), rows // 3, MOST)
    order = _shuffled(dataset, seed)
    return _taken(dataset, sorted(order[count:])), _taken(dataset, sorted(order[:count]))


def folds(dataset: Dataset, seed: int, count: int) -> list[tuple[Dataset, Dataset]]:
    """`count` times rows to train on, and rows held out; each row is held out once. Of single
    labels, each fold has its share. Raises TrainingError."""
    rows = len(dataset.texts)
    if rows < 2 * count:
        raise TrainingError(
            f"there are {rows} training rows; expected {2 * count} or more for {count} folds"
        )
    order = _shuffled(dataset, seed)
    parts = [set(order[fold::count]) for fold in range(count)]
    return [
        (_taken(dataset, [i for i in range(rows) if i not in part]), _taken(dataset, sorted(part)))
        for part in parts
    ]


def joined(parts: list[Dataset]) -> Dataset:
    """The rows of several parts of a set, one part after the other."""
    return dataclasses.replace(
        parts[0],
        texts=[text for part in parts for text in part.texts],
        targets=[target for part in parts for target in part.targets],
    )


@dataclass(frozen=True)
class Epoch:
    """What the model scored on the held-out rows after an epoch."""

    epoch: int
    step: int
    scores: dict[str, float]


class Selection:
    """Keeps the weights of the best epoch so far. A checkpoint keeps its state."""

    def __init__(
        self,
        judge: Callable[[], dict[str, float]],
        metric: str,
        patience: int | None,
        say: Callable[[str], None],
    ) -> None:
        """`judge` scores the model as it is on the held-out rows."""
        self._judge = judge
        self._patience = patience
        self._say = say
        self._weights: dict[str, Tensor] = {}
        self.metric = metric
        self.history: list[Epoch] = []

    @property
    def best(self) -> Epoch | None:
        """The first of the best epochs."""
        return max(self.history, key=lambda each: each.scores[self.metric], default=None)

    @property
    def exhausted(self) -> bool:
        """Whether `patience` epochs were no better than the best before them."""
        if self._patience is None or self.best is None:
            return False
        return self.history[-1].epoch - self.best.epoch >= self._patience

    def judge(self, model: nn.Module, epoch: int, step: int) -> None:
        """Score the model after an epoch, and keep its weights if they are the best."""
        self.history.append(Epoch(epoch, step, self._judge()))
        if self.best is self.history[-1]:
            self._weights = {
                name: p.detach().cpu().clone()
                for name, p in model.named_parameters()
                if p.requires_grad
            }
            score = self.history[-1].scores[self.metric]
            self._say(
                f"epoch {epoch}: {self.metric} {score:.4f} on the held-out rows, the best yet"
            )

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Give the model the weights of its best epoch; of a run without a whole epoch, its own."""
        if self._weights:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(self._weights[name])

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self._weights,
            "history": [dataclasses.asdict(epoch) for epoch in self.history],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._weights = state_dict["weights"]
        self.history = [Epoch(**epoch) for epoch in state_dict["history"]]


def _shuffled(dataset: Dataset, seed: int) -> list[int]:
    """The rows' numbers, of which any first part has about the classes' shares."""
    order = list(range(len(dataset.texts)))
    random.Random(f"held out {seed}").shuffle(order)
    if dataset.problem_type == "single_label_classification":
        return _evenly(order, dataset.targets)
    return order


def _evenly(order: list[int], targets: list[int]) -> list[int]:
    """Any first part of the result has about the classes' shares; a class's rows keep their
    order."""
    counts, seen = Counter(targets), Counter[int]()
    places = {}
    for i in order:
        places[i] = (seen[targets[i]] + 0.5) / counts[targets[i]]
        seen[targets[i]] += 1
    return sorted(order, key=places.__getitem__)


def _taken(dataset: Dataset, rows: list[int]) -> Dataset:
    return dataclasses.replace(
        dataset,
        texts=[dataset.texts[i] for i in rows],
        targets=[dataset.targets[i] for i in rows],
    )
