"""A small search of the learning rate and the length of a training, on rows that are held out of
the training rows: dev chooses nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from adapters.backbone import Backbone
from adapters.file import Adapter
from adapters.regular import read_text
from training import few_shot, progress
from training.checkpoint import identity
from training.config import OPTIONS, Recipe
from training.data import Dataset
from training.errors import TrainingError
from training.jsonl import append
from training.one_run import measure
from training.processes import current
from training.scoring import main_metric
from training.selection import split

FACTOR = 3.0  # from one rate to the next
FURTHER = 2  # rates beyond the first three, where the best is the lowest or the highest


@dataclass(frozen=True)
class Search:
    """`file` keeps what was tried, so that a search goes on where it was stopped."""

    backbone: Backbone
    train_set: Dataset
    metric: str | None
    warm_start: Adapter | None
    file: Path | None

    def small(self, recipe: Recipe) -> Recipe:
        """The recipe with the best rate and length: three rates around its own, more where the
        best lies at an end; then twice the epochs. Of equal scores, what was tried first. Raises
        TrainingError."""
        if current().count > 1:
            raise TrainingError(
                f"--search stands in a run of {current().count} processes; expected one: search"
                " alone first, then train with what it found"
            )
        begun, tried = recipe.learning_rate, dict[float, float]()
        for rate in (begun, begun / FACTOR, begun * FACTOR):
            self._try(recipe, rate, tried)
        for _ in range(FURTHER):
            best = _best(tried)
            if min(tried) < best < max(tried):
                break
            self._try(recipe, best * FACTOR if best == max(tried) else best / FACTOR, tried)
        chosen = dataclasses.replace(recipe, learning_rate=_best(tried))
        longer = min(2 * recipe.epochs, int(OPTIONS["epochs"].bounds[1]))  # type: ignore[index]  # it has bounds
        if longer > recipe.epochs:
            twice = dataclasses.replace(chosen, epochs=longer)
            if self._score(twice) > max(tried.values()):
                chosen = twice
        typer.echo(
            f"search: chose --learning-rate {chosen.learning_rate:g} --epochs {chosen.epochs}; the"
            " training on all rows begins"
        )
        return chosen

    def _try(self, recipe: Recipe, rate: float, tried: dict[float, float]) -> None:
        rate = float(f"{rate:.3g}")
        low, high = OPTIONS["learning_rate"].bounds or (0, 0)
        if low <= rate <= high and rate not in tried:
            tried[rate] = self._score(dataclasses.replace(recipe, learning_rate=rate))

    def _score(self, recipe: Recipe) -> float:
        """Of a training on the rows that are not held out, on those that are."""
        drawn = self.train_set
        if recipe.few_shot is not None:
            drawn = few_shot.draw(drawn, recipe.few_shot, recipe.seed)
            recipe = dataclasses.replace(recipe, few_shot=None)
        recipe = dataclasses.replace(recipe, calibrate="none")  # it changes no score
        rest, held = split(drawn, recipe.seed)
        by = main_metric(drawn.problem_type, recipe.positive, self.metric)
        key = {**identity(self.backbone, rest, recipe), "metric": by}
        named = f"search: --learning-rate {recipe.learning_rate:g} --epochs {recipe.epochs}"
        score, known = self._known(key), " (tried before)"
        if score is None:
            known = ""
            typer.echo(f"{named} …")
            with progress.shown() as show:
                measured = measure(
                    self.backbone,
                    rest,
                    held,
                    recipe,
                    show,
                    warm_start=self.warm_start,
                    metric=self.metric,
                )
            if not measured.finished:
                kept = "--resume goes on" if self.file is not None else "with --run-dir it goes on"
                raise TrainingError(f"the search was stopped; {kept} from what it has tried")
            score = measured.scores[by]
            if self.file is not None:
                append(self.file, {"score": score, **key})
        typer.echo(f"{named}: {by} {score:.4f} on {len(held.texts)} held-out rows{known}")
        return score

    def _known(self, key: dict[str, Any]) -> float | None:
        wanted = json.loads(json.dumps(key))
        for line in self._lines():
            score = line.pop("score", None)
            if line == wanted and isinstance(score, float | int):
                return float(score)
        return None

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Without what a kill cut short."""
        if self.file is None or not self.file.exists():
            return
        for text in read_text(self.file).splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line


def _best(tried: dict[float, float]) -> float:
    return max(tried, key=tried.__getitem__)
