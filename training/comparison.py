"""Runs side by side: what they scored, over seeds, and the settings that differ."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from scipy.stats import t

from adapters.errors import InvalidAdapter
from adapters.file import Adapter, load
from adapters.regular import is_folder, read_text
from training.config import Recipe
from training.errors import TrainingError

LEVEL = 0.95
T = TypeVar("T")
# Not settings of a run but what it is called, or what its result is written as.
NO_SETTINGS = ("seed", "positive", "dtype")


@dataclass(frozen=True)
class Run:
    """One finished run, wherever it is written down."""

    name: str
    task: str
    recipe: Mapping[str, Any]
    scores: Mapping[str, float]
    train_rows: int | None
    dev_rows: int | None


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone. `interval` is of the mean over the seeds, by Student's
    t; None of one run."""

    names: list[str]
    seeds: list[int]
    settings: dict[str, Any]
    scores: dict[str, list[float]]
    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """The best group first, by `metric`. `settings` are the names of those that differ."""

    task: str
    metric: str
    settings: list[str]
    groups: list[Group]
    warnings: list[str]

    def table(self) -> list[str]:
        """Lines of columns, for a terminal."""
        rows = [[self.metric, "95 % interval", "seeds", *self.settings, "run"]]
        for group in self.groups:
            interval = (
                "–"
                if group.interval is None
                else f"{group.interval[0]:.4f} – {group.interval[1]:.4f}"
            )
            more = f" and {len(group.names) - 1} more" if len(group.names) > 1 else ""
            rows.append(
                [
                    f"{group.mean:.4f}",
                    interval,
                    str(len(group.seeds)),
                    *(shown(group.settings[name]) for name in self.settings),
                    group.names[0] + more,
                ]
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def found_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs of folders (also of one with a folder a seed), adapter files and files of scores.
    Raises TrainingError."""
    runs = [run for path in paths for run in _runs(path)]
    if len(runs) < 2:
        raise TrainingError(f"there is {len(runs)} finished run; expected two or more to compare")
    return runs


def compared(runs: Sequence[Run], metric: str | None) -> Comparison:
    """Raises TrainingError where runs are of different tasks or have no metric in common."""
    tasks = sorted({run.task for run in runs})
    if len(tasks) > 1:
        raise TrainingError(f"the runs are of the tasks {', '.join(tasks)}; expected one task")
    common = [name for name in runs[0].scores if all(name in run.scores for run in runs)]
    if not common or (metric is not None and metric not in common):
        named = "no metric" if not common else f"no {metric!r}; expected {', '.join(common)}"
        raise TrainingError(f"the runs have {named} in common")
    by = metric or common[0]
    recipes = [_settings(run.recipe) for run in runs]
    names = [
        name
        for name in dict.fromkeys(name for recipe in recipes for name in recipe)
        if len({json.dumps(recipe.get(name), sort_keys=True) for recipe in recipes}) > 1
    ]
    grouped: dict[str, list[Run]] = {}
    for run, recipe in zip(runs, recipes, strict=True):
        key = json.dumps([[recipe.get(name) for name in names], run.train_rows])
        grouped.setdefault(key, []).append(run)
    groups = [_group(members, names, by, common) for members in grouped.values()]
    groups.sort(key=lambda group: -group.mean)
    return Comparison(tasks[0], by, names, groups, _warnings(runs, groups))


def _group(runs: list[Run], names: list[str], metric: str, common: list[str]) -> Group:
    recipe = _settings(runs[0].recipe)
    scores = {name: [run.scores[name] for run in runs] for name in common}
    values = scores[metric]
    return Group(
        [run.name for run in runs],
        [run.recipe.get("seed", 0) for run in runs],
        {name: recipe.get(name) for name in names},
        scores,
        statistics.fmean(values),
        _interval(values),
    )


def _interval(values: list[float]) -> tuple[float, float] | None:
    """Of the mean, by Student's t with one degree of freedom less than there are values."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * statistics.stdev(values)
    half /= math.sqrt(len(values))
    return (mean - half, mean + half)


def _warnings(runs: Sequence[Run], groups: list[Group]) -> list[str]:
    said = []
    for what in ("train", "dev"):
        counts = sorted({n for run in runs if (n := getattr(run, f"{what}_rows")) is not None})
        if len(counts) > 1:
            said.append(
                f"the runs have {', '.join(map(str, counts))} {what} rows: they differ by more than"
                " their settings"
            )
    if any(group.interval is None for group in groups):
        said.append("a difference of single runs may be chance: --seeds 0,1,2,3,4 shows how much")
    elif len(groups) > 1:
        first, second = groups[:2]
        assert first.interval is not None
        assert second.interval is not None
        if first.interval[0] <= second.interval[1]:
            few = min(len(group.seeds) for group in groups[:2])
            said.append(
                "the intervals of the first two overlap: their order may be chance"
                + (f"; {few} seeds make wide intervals, five or more narrower ones" * (few < 5))
            )
    for group in groups:
        if len(set(group.seeds)) < len(group.seeds):
            said.append(
                f"{' and '.join(group.names)} hold a seed twice: is a run named twice? Its"
                " interval is too narrow then"
            )
    return said


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting, those that an older file lacks by their default."""
    known = {each.name: each.default for each in fields(Recipe) if each.default is not MISSING}
    return {name: value for name, value in {**known, **recipe}.items() if name not in NO_SETTINGS}


def _runs(path: Path) -> Iterator[Run]:
    try:
        if is_folder(path):
            yield from _of_folder(path)
        elif path.suffix == ".safetensors":
            yield _of_adapter(path)
        else:
            yield from _of_scores(path)
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8: {error}; expected what a run wrote") from None


def _of_folder(folder: Path) -> Iterator[Run]:
    if not (folder / "config.json").is_file():
        inner = sorted(each.parent for each in folder.glob("seed-*/config.json"))
        if not inner:
            raise TrainingError(f"{folder} holds no run; expected a folder of --run-dir")
        for each in inner:
            yield from _of_folder(each)
        return
    config = _read(folder / "config.json", read_text(folder / "config.json"), _Config)
    place = folder / "metrics.jsonl"
    found = [_read(place, line, dict[str, Any]) for line in read_text(place).splitlines()]
    judged = [line for line in found if "evaluate" in line]
    if not judged:
        raise TrainingError(f"{folder} holds a run that is not finished; expected --resume first")
    scores = {
        name.removeprefix("dev/"): value
        for name, value in judged[-1].items()
        if name.startswith("dev/")
    }
    recipe = {**config.recipe, "evaluate": judged[-1]["evaluate"]}
    few = recipe.get("few_shot")
    said = {"task": config.task, "recipe": recipe, "metrics": scores, "dev_rows": config.rows[1]}
    yield _run(str(folder), {**said, "rows": few or config.rows[0]})


def _of_adapter(path: Path) -> Run:
    try:
        adapter = load(path)
    except InvalidAdapter as error:
        raise TrainingError(f"{path}: {error}") from None
    said = adapter.spec.training
    scores = scores_said(adapter)
    if not scores:
        raise TrainingError(f"{path} does not say what it scored; expected a file of this trainer")
    recipe = said.get("recipe")
    rows = {
        name: n if isinstance(n := said.get(f"{part}_rows"), int) else None
        for name, part in (("rows", "train"), ("dev_rows", "dev"))
    }
    recipe = recipe if isinstance(recipe, dict) else {}
    return _run(str(path), {"task": adapter.spec.task, "recipe": recipe, "metrics": scores, **rows})


def _of_scores(path: Path) -> Iterator[Run]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        yield _run(f"{path}, line {number}", _read(path, line, dict[str, Any]))


class _Config(msgspec.Struct):
    """What is needed of a folder's config.json."""

    task: str
    recipe: dict[str, Any] = {}
    rows: tuple[int | None, int | None] = (None, None)


class _Said(msgspec.Struct):
    """What is needed of a line of --scores."""

    task: str
    recipe: dict[str, Any]
    metrics: dict[str, float]
    rows: int | None = None
    dev_rows: int | None = None


def _run(name: str, said: dict[str, Any]) -> Run:
    """A run of what is written down of it, which may be anybody's. Raises TrainingError."""
    try:
        run = msgspec.convert(said, _Said)
        msgspec.convert(run.recipe.get("seed", 0), int)
    except (msgspec.ValidationError, OverflowError) as error:
        raise TrainingError(f"{name}, is no run: {error}; expected what a run wrote") from None
    return Run(name, run.task, run.recipe, run.metrics, run.rows, run.dev_rows)


def _read(path: Path, text: str, kind: type[T]) -> T:
    try:
        return msgspec.convert(json.loads(text), kind)
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        raise TrainingError(f"{path} is not JSON: {error}; expected what a run wrote") from None


def scores_said(adapter: Adapter) -> dict[str, float]:
    """The dev scores that a file says of itself; none where a maker wrote none."""
    found = adapter.spec.training.get("dev_scores")
    return {
        name: value
        for name, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, float | int)
    }
