"""Few-shot: some examples out of many, drawn by a seed, as many of each class as there can be."""

from __future__ import annotations

import dataclasses
import random

from training.data import Dataset
from training.errors import TrainingError


def check(dataset: Dataset, rows: int) -> None:
    if rows > len(dataset.texts):
        raise TrainingError(
            f"few_shot is {rows}, but there are {len(dataset.texts)} training examples; expected at"
            " most that"
        )


def draw(dataset: Dataset, rows: int, seed: int) -> Dataset:
    """`rows` examples in all. Single label: the classes take turns, in an order of their own draw,
    while they last."""
    check(dataset, rows)
    rng = random.Random(seed)
    order = list(range(len(dataset.texts)))
    rng.shuffle(order)
    if dataset.problem_type == "single_label_classification":
        classes = list(range(len(dataset.labels)))
        rng.shuffle(classes)
        rank = {label: i for i, label in enumerate(classes)}
        taken = [0] * len(classes)
        turns = {}
        for i in order:
            label = dataset.targets[i]
            turns[i] = (taken[label], rank[label])
            taken[label] += 1
        order.sort(key=turns.__getitem__)
    chosen = order[:rows]
    return dataclasses.replace(
        dataset,
        texts=[dataset.texts[i] for i in chosen],
        targets=[dataset.targets[i] for i in chosen],
    )
