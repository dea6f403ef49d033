"""The tasks of the table (what they are judged by stands in training.tasks), what is spent on them,
and their rows."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training import data, tasks
from training.data import Dataset


@dataclass(frozen=True)
class Budget:
    """`epochs` and `cap` (training rows at most) are chosen for two cores."""

    epochs: int
    cap: int | None = None


BUDGETS = {
    "rte": Budget(4),
    "mrpc": Budget(5),
    "stsb": Budget(5),
    "cola": Budget(5),
    "sst2": Budget(4, cap=8000),
    "subj": Budget(3),
    "mpqa": Budget(5),
    "qnli": Budget(3),
    "mnli": Budget(6),
    "qqp": Budget(2),
}


def read(folder: Path, task: str, rows: int | None) -> tuple[Dataset, Dataset]:
    """A task's files, or the hub's rows, capped; which rows a cap keeps depends on nothing else.
    Raises DataError."""
    (train, dev), _ = tasks.read(task, folder, data.Columns(), None)
    caps = [cap for cap in (rows, BUDGETS[task].cap) if cap is not None]
    return sample(train, min(caps, default=len(train.texts))), sample(dev, rows or len(dev.texts))


def held_out(train: Dataset, rows: int) -> tuple[Dataset, Dataset]:
    """Training rows to learn from, `rows` at most, and a fifth of all to choose by."""
    order = random.Random(1).sample(range(len(train.texts)), len(train.texts))
    cut = len(order) // 5
    return take(train, order[cut : cut + rows]), take(train, order[:cut])


def sample(dataset: Dataset, rows: int) -> Dataset:
    if rows >= len(dataset.texts):
        return dataset
    return take(dataset, random.Random(0).sample(range(len(dataset.texts)), rows))


def take(dataset: Dataset, rows: Iterable[int]) -> Dataset:
    rows = list(rows)
    texts, targets = ([part[i] for i in rows] for part in (dataset.texts, dataset.targets))
    return dataclasses.replace(dataset, texts=texts, targets=targets)
