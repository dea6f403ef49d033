"""The tasks of the table and their rows."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training import data
from training.data import Dataset


@dataclass(frozen=True)
class Task:
    """`epochs` and `cap` (training rows at most) are chosen for two cores; `subset` says what the files themselves lack."""

    metric: str
    epochs: int
    cap: int | None = None
    positive: str | None = None
    subset: str = ""


TASKS = {
    "rte": Task("accuracy", 4),
    "mrpc": Task("accuracy", 5, positive="equivalent"),
    "stsb": Task("pearson", 5),
    "cola": Task("matthews", 5),
    "sst2": Task("accuracy", 4, cap=8000),
    "subj": Task("accuracy", 3),
    "mpqa": Task("accuracy", 5),
    "qnli": Task("accuracy", 5, subset="train is 10 % of the official 104,743 rows"),
    "mnli": Task("accuracy", 10, subset="train is 3,000 of the official 392,702 rows"),
    "qqp": Task(
        "accuracy", 3, positive="duplicate", subset="train and dev are subsets of the official 363,846 + 40,430 rows"
    ),
}


def read(folder: Path, task: str, rows: int | None) -> tuple[Dataset, Dataset]:
    """A task's files, capped; which rows a cap keeps depends on nothing else."""
    train, dev = data.read(folder / task / "train.jsonl", folder / task / "dev.jsonl", data.Columns())
    caps = [cap for cap in (rows, TASKS[task].cap) if cap is not None]
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
