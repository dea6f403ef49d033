"""The rows of a cell: which ones are trained on and which ones it is judged by."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from pathlib import Path

from benchmarks.glue.protocol import HELD_OUT, Cell
from training import data, tasks
from training.data import Dataset


def sets_of(cell: Cell, folder: Path | None) -> tuple[Dataset, Dataset]:
    """What a cell is trained on and judged by: rows drawn by its seed, at random and so unbalanced,
    the same for all methods; judged by dev, or in a search by training rows held out. Raises
    DataError."""
    (train, dev), _ = tasks.read(cell.task, folder, data.Columns(), None)
    if cell.rate is not None:
        return search_sets(train, cell)
    rng = random.Random(f"{cell.task} {cell.rows} {cell.seed}")
    return sample(train, cell.rows, rng), dev


def search_sets(train: Dataset, cell: Cell) -> tuple[Dataset, Dataset]:
    """Training rows to learn from and others to choose by; no row of dev is among them."""
    order = list(range(len(train.texts)))
    random.Random(f"search {cell.task}").shuffle(order)
    held = min(HELD_OUT, len(order) // 3)
    assert cell.rows is not None
    return take(train, order[held : held + cell.rows]), take(train, order[:held])


def sample(dataset: Dataset, rows: int | None, rng: random.Random) -> Dataset:
    if rows is None or rows >= len(dataset.texts):
        return dataset
    return take(dataset, rng.sample(range(len(dataset.texts)), rows))


def take(dataset: Dataset, rows: Iterable[int]) -> Dataset:
    rows = list(rows)
    texts, targets = ([part[i] for i in rows] for part in (dataset.texts, dataset.targets))
    return dataclasses.replace(dataset, texts=texts, targets=targets)
