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
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import backbone as backbones
from adapters.backbone import Backbone
from benchmarks.glue import cells
from benchmarks.glue.data import take
from training import data, tasks
from training.config import Recipe
from training.data import Dataset
from training.defaults import SMALL, choose
from training.hardware import hardware
from training.one_run import measure
from training.scoring import scores

TASKS = ("mpqa", "cola", "sst2", "stsb", "subj", "qqp", "mnli", "qnli", "mrpc", "rte")
ROWS = (100, 300, 1000)
KEY = ("task", "drawn", "named", "backbone")
HELD_OUT, DEV = 500, 1000  # rows that choose, and rows of dev at most
FORMERLY = "former"
SAID = """`python -m benchmarks.glue defaults` trains AdaMix with four recipes on each task, one
seed. The best one is the one that 500 training rows held out prefer. All scores are those of dev
(1,000 rows at most), × 100. *Former* is the default until 2026-11-28: 10 epochs of mini-batches of
32 at 1e-3, with the paper's routing. One standard error of an accuracy of 80 on 1,000 rows is 1.3
points.
"""
FORMER: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "routing": "batch",
    "second_pass": "random",
    "task_loss": "first",
}


def grid(rows: int, hidden_size: int) -> dict[str, dict[str, Any]]:
    """The recipes that are tried on so many rows, by a name that says them; the default is the
    first."""
    default = choose({}, rows, hidden_size).recipe
    epochs, size, rate = default.epochs, default.batch_size, default.learning_rate
    tried = (
        (epochs, size, rate),
        (epochs, size, float(f"{rate / 3:.0e}")),
        (epochs, 2 * size, rate),
        (2 * epochs, 2 * size, rate),
    )
    named = {
        said(*each): {
            **dict(zip(("epochs", "batch_size", "learning_rate"), each, strict=True)),
            **{name: getattr(default, name) for name in ("routing", "second_pass", "task_loss")},
        }
        for each in tried
    }
    return named | {FORMERLY: FORMER}


def said(epochs: int, size: int, rate: float) -> str:
    """A recipe's name."""
    return f"{epochs} epochs of {size} at {rate:g}"


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
            for name, choices in grid(rows, backbone.config.hidden_size).items():
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


def section(found: list[dict[str, Any]]) -> str:
    """What the cells of the embedded backbone say, for the page of results; empty without any."""
    own = [cell for cell in found if cell["backbone"] == backbones.EMBEDDED]
    parts = [part for rows in ROWS if (part := _table(own, rows))]
    return "\n".join(["## A run without options\n", SAID, *parts]) if parts else ""


def _table(found: list[dict[str, Any]], rows: int) -> str:
    """The tasks that have all recipes of the grid."""
    names = list(grid(rows, SMALL))
    lines, differences = list[str](), list[float]()
    for task in TASKS:
        own = {
            cell["named"]: cell for cell in found if (cell["task"], cell["drawn"]) == (task, rows)
        }
        if not set(names) <= set(own):
            continue
        tried = names[:-1]
        best = max(tried, key=lambda name: own[name]["held_out"])
        dev = {name: 100 * own[name]["dev"] for name in names}
        differences.append(dev[tried[0]] - dev[best])
        lines.append(
            f"| {task} {own[best]['metric']} | {dev[tried[0]]:.1f} | {dev[best]:.1f} | {best} |"
            f" {differences[-1]:+.1f} | {dev[FORMERLY]:.1f} |"
        )
    if not lines:
        return ""
    head = [
        "task",
        "without options",
        "best by held-out rows",
        "its recipe",
        "difference",
        FORMERLY,
    ]
    return "\n".join(
        [
            f"**{rows:,} training rows** (without options: {names[0]}). Median difference:"
            f" {statistics.median(differences):+.1f} points over {len(lines)} tasks.\n",
            "| " + " | ".join(head) + " |",
            "|---" * len(head) + "|",
            *lines,
            "",
        ]
    )
