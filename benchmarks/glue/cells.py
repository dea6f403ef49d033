"""The table's cells on disk: JSON lines, one a cell, in any number of files of one folder."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from training.config import Recipe
from training.record import append

Cells = list[dict[str, Any]]
FIRST = ("full", "adamix", "adapter", "lora")  # the methods that the average is made for
KEY = ("task", "method", "seed", "cap", "shots", "backbone", "search")


def read(folder: Path) -> Cells:
    """All cells; a line that a killed run left half-written is no cell."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                cell = json.loads(line)
            except ValueError:
                continue
            if isinstance(cell, dict) and all(name in cell for name in KEY):
                found.append(cell)
    return found


def done(folder: Path, key: dict[str, Any], recipe: dict[str, Any]) -> bool:
    """Whether the cell is there; ValueError if it is, but by another recipe: one table has one
    recipe a cell."""
    for cell in read(folder):
        if all(cell[name] == key[name] for name in KEY):
            for name, expected in recipe.items():
                # older than the choice: its default
                if cell["recipe"].get(name, getattr(Recipe, name, None)) != expected:
                    raise ValueError(
                        f"the cell {key['task']}/{key['method']}/{key['seed']} in {folder} has"
                        f" {name} {cell['recipe'].get(name)!r}, not {expected!r}; expected the"
                        " same, or another --results"
                    )
            return True
    return False


def add(path: Path, cell: dict[str, Any]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    append(path, cell)
    return cell


def rates(
    cells: Cells, backbone: str, cap: int | None, method: str
) -> dict[float, dict[str, float]]:
    """What a search found for a method: held-out score by learning rate and task."""
    found: dict[float, dict[str, float]] = {}
    for cell in cells:
        if cell["search"] is not None and (cell["method"], cell["backbone"], cell["cap"]) == (
            method,
            backbone,
            cap,
        ):
            found.setdefault(cell["search"], {})[cell["task"]] = cell["score"]
    return dict(sorted(found.items()))


def best_rate(
    folder: Path, backbone: str, cap: int | None, method: str, grid: tuple[float, ...]
) -> float:
    """The rate of the best mean in the search; before any search, the middle of the grid.
    ValueError for half a search."""
    found = rates(read(folder), backbone, cap, method)
    if not found:
        return grid[len(grid) // 2]
    tasks = {task for scores in found.values() for task in scores}
    lacking = [
        f"{rate:g} on {task}"
        for rate in grid
        for task in sorted(tasks)
        if task not in found.get(rate, {})
    ]
    if lacking:
        raise ValueError(
            f"the search for {method} lacks {', '.join(lacking)}; expected it whole: python -m"
            " benchmarks.glue search"
        )
    return max(found, key=lambda rate: statistics.mean(found[rate].values()))


def common(group: Cells, tasks: list[str], methods: list[str]) -> list[str]:
    """The tasks that the average is over: those of which each of the `FIRST` methods among these
    has cells, or else each of all. A method that lacks one of them has no average, and takes none
    from the others."""
    there = {(cell["method"], cell["task"]) for cell in group}
    wanted = [method for method in methods if method in FIRST] or methods
    return [task for task in tasks if all((method, task) in there for method in wanted)]


def averages(own: Cells, tasks: list[str]) -> list[float]:
    """One average a seed, of the seeds that have every task."""
    by_seed: dict[int, dict[str, float]] = {}
    for cell in own:
        by_seed.setdefault(cell["seed"], {})[cell["task"]] = cell["score"]
    return [
        statistics.mean(s[t] for t in tasks)
        for s in by_seed.values()
        if tasks and set(tasks) <= set(s)
    ]


def scores(own: Cells, task: str) -> list[float]:
    """A task's scores, a cell each."""
    return [cell["score"] for cell in own if cell["task"] == task]
