"""Whether a run without options is near the best recipe: ten tasks, few to many training rows.

    python -m benchmarks.glue defaults

Each recipe of a small grid is trained on the same rows. For each task the best one is the one that
500 *training* rows held out prefer; dev chooses nothing. The table sets its dev score beside that
of the recipe that `training.defaults` gives for so many rows, and beside that of the defaults until
2026-11-28. A cell is one run, a line of `defaults.jsonl`; a run that was killed goes on.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.backbone import Backbone
from benchmarks.glue import cells
from benchmarks.glue.data import take
from training import data, tasks
from training.config import Recipe
from training.data import Dataset
from training.hardware import hardware
from training.one_run import measure
from training.scoring import scores

TASKS = ("mpqa", "cola", "sst2", "stsb", "subj", "qqp", "mnli", "qnli", "mrpc", "rte")
ROWS = (100, 300, 1000)
KEY = ("task", "drawn", "named", "backbone")
HELD_OUT, DEV = 500, 1000  # rows that choose, and rows of dev at most
CORRECTED = {"routing": "rows", "second_pass": "mean", "task_loss": "both"}
FORMER: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "routing": "batch",
    "second_pass": "random",
    "task_loss": "first",
}


def grid(rows: int) -> dict[str, dict[str, Any]]:
    """The recipes that are tried on so many rows, by a name that says them."""
    size, epochs = {100: (4, 10), 300: (4, 5), 1000: (8, 4)}[rows]
    tried = [
        {"epochs": epochs, "batch_size": size, "learning_rate": 3e-3},
        {"epochs": epochs, "batch_size": size, "learning_rate": 1e-3},
        {"epochs": epochs, "batch_size": 2 * size, "learning_rate": 3e-3},
        {"epochs": 2 * epochs, "batch_size": size, "learning_rate": 1e-3},
        {"epochs": 2 * epochs, "batch_size": 2 * size, "learning_rate": 3e-3},
        {"epochs": epochs, "batch_size": size, "learning_rate": 3e-3, "head_first": True},
    ]
    return {said(each): {**CORRECTED, **each} for each in tried} | {"former": FORMER}


def said(choices: dict[str, Any]) -> str:
    """A recipe's name."""
    first = " head-first" if choices.get("head_first") else ""
    rate = f"{choices['learning_rate']:g}"
    return f"{choices['epochs']} epochs of {choices['batch_size']} at {rate}{first}"


@dataclass(frozen=True)
class Sets:
    """The rows to train on, those that choose, and those of dev."""

    train: Dataset
    held: Dataset
    dev: Dataset


def sets_of(task: str, rows: int, folder: Path | None) -> Sets:
    """The same held-out and dev rows for any number of training rows; the first of many training
    rows are the few. Raises DataError."""
    (train, dev), _ = tasks.read(task, folder, data.Columns(), None)
    order, judged = (list(range(len(part.texts))) for part in (train, dev))
    random.Random(f"defaults {task}").shuffle(order)
    random.Random(f"defaults dev {task}").shuffle(judged)
    return Sets(
        take(train, order[HELD_OUT : HELD_OUT + rows]),
        take(train, order[:HELD_OUT]),
        take(dev, judged[:DEV]),
    )


def run(there: cells.Cells, backbone: Backbone, folder: Path | None) -> Iterator[dict[str, Any]]:
    """The cells that lack, fewest rows and cheapest tasks first. Raises AdaMixError."""
    for rows in ROWS:
        for task in TASKS:
            sets = None
            for name, choices in grid(rows).items():
                key = dict(zip(KEY, (task, rows, name, backbone.name), strict=True))
                if any(all(cell[k] == key[k] for k in KEY) for cell in there):
                    continue
                sets = sets or sets_of(task, rows, folder)
                yield {**key, **_run(task, sets, choices, backbone)}


def _run(task: str, sets: Sets, choices: dict[str, Any], backbone: Backbone) -> dict[str, Any]:
    known = tasks.TASKS[task]
    recipe = Recipe(**choices, precision="float32", positive=known.positive, calibrate="none")
    held = len(sets.held.texts)
    both = dataclasses.replace(
        sets.held,
        texts=[*sets.held.texts, *sets.dev.texts],
        targets=[*sets.held.targets, *sets.dev.targets],
    )
    measured = measure(backbone, sets.train, both, recipe)
    parts = ((sets.held, measured.logits[:held]), (sets.dev, measured.logits[held:]))
    on_held, on_dev = (
        scores(part, logits, recipe.positive)[known.metric] for part, logits in parts
    )
    return {
        "metric": known.metric,
        "held_out": on_held,
        "dev": on_dev,
        "dev_rows": len(sets.dev.texts),
        "steps": measured.done.steps,
        "seconds": round(measured.done.seconds, 1),
        "hardware": hardware(measured.model.encoder.device),
        "recipe": dataclasses.asdict(recipe),
    }


def read(path: Path) -> list[dict[str, Any]]:
    """All cells; a line that a killed run left half-written is no cell."""
    return cells.read(path, KEY)
