"""The table's cells on disk: one file of JSON lines, a cell a line."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from training.jsonl import append

Cells = list[dict[str, Any]]
KEY = ("task", "method", "drawn", "seed", "search", "backbone")


def read(path: Path, key: tuple[str, ...] = KEY) -> Cells:
    """All cells that have what `key` names; a line that a killed run left half-written is none."""
    found = []
    if not path.exists():
        return []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            cell = json.loads(line)
        except ValueError:
            continue
        if isinstance(cell, dict) and all(name in cell for name in key):
            found.append(cell)
    return found


def done(there: Cells, key: dict[str, Any], recipe: dict[str, Any]) -> bool:
    """Whether the cell is there; ValueError if it is, but by another recipe: one table has one
    recipe a cell."""
    for cell in there:
        if all(cell[name] == key[name] for name in KEY):
            for name, found in cell["recipe"].items():
                if name in recipe and recipe[name] != found:
                    raise ValueError(
                        f"the cell {key['task']}/{key['method']}/{key['seed']} has {name}"
                        f" {found!r}, not {recipe[name]!r}; expected the same, or another"
                        " --results"
                    )
            return True
    return False


def add(path: Path, cell: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    append(path, cell)


def rates(cells: Cells, backbone: str, method: str) -> dict[float, dict[str, float]]:
    """What a search found for a method: held-out score by learning rate and task."""
    found: dict[float, dict[str, float]] = {}
    for cell in cells:
        if cell["search"] is not None and (cell["method"], cell["backbone"]) == (method, backbone):
            found.setdefault(cell["search"], {})[cell["task"]] = cell["score"]
    return dict(sorted(found.items()))


def best_rate(
    cells: Cells, backbone: str, method: str, grid: tuple[float, ...], tasks: tuple[str, ...]
) -> float:
    """The rate of the best mean in the search. ValueError if the search is not whole."""
    found = rates(cells, backbone, method)
    lacking = [rate for rate in grid if not set(tasks) <= set(found.get(rate, {}))]
    if lacking:
        raise ValueError(
            f"the search for {method} lacks the rate {lacking[0]:g}; expected it whole: the stages"
            " named search"
        )
    return max(grid, key=lambda rate: statistics.mean(found[rate][task] for task in tasks))


def of_rows(cells: Cells, rows: int | None) -> Cells:
    """The judged cells of so many training rows."""
    return [cell for cell in cells if cell["drawn"] == rows and cell["search"] is None]


def scores(cells: Cells, method: str, task: str) -> list[float]:
    """A method's scores on a task, seed by seed."""
    own = [cell for cell in cells if (cell["method"], cell["task"]) == (method, task)]
    return [cell["score"] for cell in sorted(own, key=lambda cell: int(cell["seed"]))]


def averages(cells: Cells, method: str, tasks: list[str]) -> list[float]:
    """A method's average over the tasks, one a seed, of the seeds that have them all."""
    by_seed: dict[int, dict[str, float]] = {}
    for cell in cells:
        if cell["method"] == method:
            by_seed.setdefault(cell["seed"], {})[cell["task"]] = cell["score"]
    whole = [found for _, found in sorted(by_seed.items()) if set(tasks) <= set(found)]
    return [statistics.mean(found[task] for task in tasks) for found in whole if tasks]
