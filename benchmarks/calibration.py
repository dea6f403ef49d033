"""Calibrate the shipped adapters, and measure on dev rows what that gives.

    python -m benchmarks.calibration fit --data DATA --work FOLDER
    python -m benchmarks.calibration measure --data DATA

The shipped adapters were trained on all training rows, and dev rows judge them: neither may choose
a temperature. So `fit` trains a twin of each by the same recipe on a part of the training rows,
and fits the temperature and the risk-coverage table on the twin's logits of the other rows
(cross-fitting, with one of the folds). The twins lie in FOLDER, so that it goes on where it was
stopped; some three hours on one core. No weight of a shipped file changes.

`measure` writes for each task the expected calibration error on its whole dev file, before and
after, how many answers changed (none may), and what becomes of 90, 95 and 99 %: the share of rows
that is answered, and of those the share that is right.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.calibration import threshold_for
from adapters.classifier import from_adapter
from adapters.disk import write_atomically
from adapters.file import Adapter, load, save
from adapters.rows import read_rows
from adapters.text import encode
from training import progress
from training.calibration import calibration, calibration_error, probabilities, tempered
from training.config import Recipe
from training.data import Columns, Dataset, labelled, read
from training.hardware import hardware
from training.one_run import train
from training.scoring import predict
from training.selection import folds
from training.tasks import TASKS

SMALL_ROWS, FOLDS_SMALL, FOLDS = 5000, 5, 10  # a fifth of few rows, a tenth of many
ACCURACIES = (0.9, 0.95, 0.99)

# docs/training.md: how the shipped adapters were trained.
LARGE: dict[str, Any] = {"learning_rate": 3e-3, "consistency_weight": 0.96, "batch_size": 32}
SMALL: dict[str, Any] = {"learning_rate": 1.5e-3, "consistency_weight": 1.0, "batch_size": 8}
RECIPES: dict[str, dict[str, Any]] = {
    "mpqa": {**LARGE, "epochs": 5},
    "subj": {**LARGE, "epochs": 3},
    "mnli": {**LARGE, "epochs": 6},
    "rte": {**SMALL, "learning_rate": 5e-4, "epochs": 6},
    "mrpc": {
        **{"method": "lora", "batch_size": 8, "learning_rate": 1.5e-3, "epochs": 6},
        "precision": "float32",
    },
    "qqp": {**SMALL, "epochs": 2},
    "qnli": {**SMALL, "epochs": 3},
    "cola": {**LARGE, "epochs": 20},
    "sst2": {**LARGE, "epochs": 4},
}
BEGUN_AS = {"rte": "mnli"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Data = Annotated[
    Path, typer.Option(help="Folder of the tasks' folders with their train.jsonl and dev.jsonl.")
]
Store = Annotated[Path, typer.Option(help="Folder of adapter files, each named for its task.")]


@app.command()
def fit(
    data: Data,
    work: Annotated[Path, typer.Option(help="Folder for the twins.")],
    store: Store = Path("store"),
    task: Annotated[list[str] | None, typer.Option(help="By default all.")] = None,
) -> None:
    """Train a twin of each adapter that has none yet, and write temperature and table into the
    files of the store."""
    backbone = backbones.load()
    work.mkdir(parents=True, exist_ok=True)
    for name in task or RECIPES:
        sets = read(data / name / "train.jsonl", data / name / "dev.jsonl", Columns())
        count = FOLDS_SMALL if len(sets[0].texts) < SMALL_ROWS else FOLDS
        rest, held = folds(sets[0], 0, count)[0]
        twin = work / f"{name}.safetensors"
        if not twin.exists():
            save(twin, *_twin(name, backbone, rest, held, store))
        found = calibration(
            held, _logits(backbone, load(twin), held), "rows that a twin was trained without"
        )
        assert found is not None, "the task has labels"
        adapter = load(store / f"{name}.safetensors")
        save(store / f"{name}.safetensors", found.described(adapter.spec), adapter.tensors)
        typer.echo(f"{name}: {found.told}")


@app.command()
def measure(
    data: Data,
    store: Store = Path("store"),
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/calibration.json"
    ),
) -> None:
    """Judge the files of the store by their dev rows; print a table and write JSON."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    backbone = backbones.load()
    tasks = {}
    for name in RECIPES:
        adapter = load(store / f"{name}.safetensors")
        path = data / name / "dev.jsonl"
        columns = Columns()
        rows = labelled(path, read_rows(path, columns.needed), columns, adapter.spec)
        tasks[name] = _judged(adapter, rows, _logits(backbone, adapter, rows))
        typer.echo(f"{name}: {tasks[name]}")
    means = {
        when: round(statistics.mean(task[when] for task in tasks.values()), 4)
        for when in ("error_before", "error_after")
    }
    result = {
        "command": " ".join(["python", "-m", "benchmarks.calibration", *sys.argv[1:]]),
        "hardware": hardware(torch.device("cpu")),
        "mean": means,
        "tasks": tasks,
    }
    write_atomically(out, (json.dumps(result, indent=2) + "\n").encode())
    _show(result)


def _twin(
    task: str, backbone: Backbone, rest: Dataset, held: Dataset, store: Path
) -> tuple[Any, dict[str, Tensor]]:
    """An adapter by the recipe of the shipped one, of a part of its rows."""
    given = {"precision": "bfloat16", "dense_head": True, **RECIPES[task]}
    recipe = Recipe(**given, positive=TASKS[task].positive, calibrate="none")
    begun = BEGUN_AS.get(task)
    warm = None if begun is None else load(store / f"{begun}.safetensors")
    with progress.shown() as show:
        done = train(task, backbone, rest, held, recipe, show, warm_start=warm, say=typer.echo)
    return done.spec, done.tensors


def _logits(backbone: Backbone, adapter: Adapter, rows: Dataset) -> Tensor:
    texts = encode(backbone.tokenizer, rows.texts, adapter.spec.max_length)
    return predict(from_adapter(backbone, adapter), texts)


def _judged(adapter: Adapter, rows: Dataset, logits: Tensor) -> dict[str, Any]:
    spec = adapter.spec
    after = tempered(logits, spec.temperatures)
    sure = probabilities(spec.problem_type, after.double()).amax(-1)
    right = logits.argmax(-1) == torch.tensor(rows.targets)
    points = [(point.accuracy, point.threshold) for point in spec.risk_coverage or ()]
    abstention = {}
    for accuracy in ACCURACIES:
        least = threshold_for(points, accuracy)
        if least is None:
            abstention[str(accuracy)] = None
            continue
        kept = sure >= least
        count = int(kept.sum())
        error = (accuracy * (1 - accuracy) / max(count, 1)) ** 0.5
        reached = float(right[kept].double().mean()) if count else 1.0
        abstention[str(accuracy)] = {
            "coverage": round(count / len(rows.texts), 4),
            "accuracy": round(reached, 4),
            "standard_error": round(error, 4),
            "holds": reached >= accuracy - error,
        }
    return {
        "version": adapter.version,
        "temperature": None if spec.temperatures is None else spec.temperatures[0],
        "dev_rows": len(rows.texts),
        "error_before": calibration_error(rows, logits),
        "error_after": calibration_error(rows, after),
        "answers_changed": int((after.argmax(-1) != logits.argmax(-1)).sum()),
        "abstention": abstention,
    }


def _show(result: dict[str, Any]) -> None:
    table = Table("task", "temperature", "error before", "after", "changed", "95 %: rows", "right")
    for name, task in result["tasks"].items():
        kept = task["abstention"]["0.95"]
        table.add_row(
            name,
            f"{task['temperature'] or 1:.3g}",
            f"{task['error_before']:.3f}",
            f"{task['error_after']:.3f}",
            str(task["answers_changed"]),
            *(
                ["–", "–"]
                if kept is None
                else [f"{kept['coverage']:.3f}", f"{kept['accuracy']:.3f}"]
            ),
        )
    mean = result["mean"]
    table.add_row("mean", "", f"{mean['error_before']:.3f}", f"{mean['error_after']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    app()
