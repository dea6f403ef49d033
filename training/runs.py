"""What one command does: a run for each seed, told on the terminal and written down."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from adapters.backbone import Backbone
from adapters.errors import InvalidAdapter
from adapters.file import Adapter, load, save, serialize
from adapters.regular import read_bytes
from adapters.spec import TASK_PATTERN
from adapters.text import TextInput
from training import advice, few_shot, progress
from training.calibration import coverage_told
from training.command_line import check_output
from training.config import Recipe
from training.curves import Curve, curve
from training.data import Dataset
from training.errors import TrainingError
from training.folder import Folders
from training.jsonl import append, check_appendable, recorded
from training.judgement import judge, write_predictions
from training.one_run import Measured, Trained, check_servable, measure, train
from training.probe import probe_texts
from training.processes import current
from training.progress import Progress
from training.record import record
from training.report import write_report
from training.scoring import main_metric
from training.selection import Selection


@dataclass(frozen=True)
class Runs:
    """Where the results go: `out` an adapter file, `scores` a file of JSON lines, `folders`
    everything of each run, `report` a page and `predictions` a table of the one run. They begin as
    `warm_start`, if there is one. `probe` has the texts of the adapter's probe, which are else
    neutral ones."""

    task: str
    out: Path | None
    scores: Path | None
    metric: str | None
    folders: Folders | None
    warm_start: Adapter | None = None
    probe: Path | None = None
    report: Path | None = None
    predictions: Path | None = None

    def check(self, recipe: Recipe, seeds: list[int]) -> None:
        """Find out before the training, not after it, what could not be written. Raises
        TrainingError."""
        check_task(self.task)
        if not current().main:
            # the main one looks after the files; this one would find those that it has just made
            return
        if self.out is not None:
            check_servable(recipe)
            check_output("--out", self.out)
        for option, path, what in (
            ("--out", self.out, "adapter"),
            ("--report", self.report, "run"),
            ("--predictions", self.predictions, "run"),
        ):
            if path is not None and len(seeds) > 1:
                raise TrainingError(
                    f"there are {len(seeds)} seeds, but {option} takes one {what}; expected one"
                    f" seed or no {option}"
                )
        if self.scores is not None:
            check_appendable(self.scores)
        if self.folders is not None:
            self.folders.prepare(seeds)

    def run(
        self,
        backbone: Backbone,
        sets: tuple[Dataset, Dataset],
        recipes: list[Recipe],
        subset: str = "",
    ) -> list[dict[str, Any]]:
        """Train, tell and write, one recipe after the other; they differ by their seed. Answers a
        record of each that was not ended early. Raises TrainingError.

        `subset` says what the data lack of the published ones.
        """
        metric = main_metric(sets[0].problem_type, recipes[0].positive, self.metric)
        if recipes[0].few_shot is not None:
            few_shot.check(sets[0], recipes[0].few_shot)
        probe = probe_texts(self.probe, sets[0].text_pair)
        _say_where_experts_lack_rows(recipes[0], recipes[0].few_shot or len(sets[0].texts))
        lines: list[dict[str, Any]] = []
        hints: dict[str, None] = {}  # each once, though the seeds' runs may share them
        for recipe in recipes:
            done = self._one(backbone, sets, recipe, subset, probe)
            measured = done.measured
            if not measured.finished:
                # Ctrl-C is meant for the whole command, and half a run is no result
                self._look_into(done, sets[1], recipe, [])
                return lines
            found = advice.of_predictions(sets[1], measured.logits, measured.scores)
            if done.losses:  # else a finished run was judged again
                found = advice.of_training(recipe, measured.done.steps, done.losses) + found
                hints |= dict.fromkeys(found)
            version = None if done.adapter is None else done.adapter.version
            line = record(self.task, metric, recipe, measured, len(sets[1].texts), backbone.name)
            lines.append({**line, "subset": subset, "version": version})
            resumed = self.folders is not None and self.folders.resume
            if (
                self.scores is not None
                and current().main
                and not (resumed and recorded(self.scores, lines[-1]))
            ):
                append(self.scores, lines[-1])
            self._look_into(done, sets[1], recipe, found)
        if len(lines) > 1:
            results = [line["metrics"] for line in lines]
            typer.echo(f"mean and standard deviation of {len(results)} seeds: {_spread(results)}")
        for hint in hints:
            typer.echo(f"hint: {hint}")
        return lines

    def _one(
        self,
        backbone: Backbone,
        sets: tuple[Dataset, Dataset],
        recipe: Recipe,
        subset: str,
        probe: tuple[TextInput, ...],
    ) -> _Done:
        labels, rows = sets[0].labels, recipe.few_shot or len(sets[0].texts)
        named = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
        unread = ", ".join(map(repr, sets[0].unread))
        typer.echo(
            f"{self.task}: {rows} rows{unread and f' (columns not read: {unread})'},"
            f" {sets[0].problem_type}, labels {named};"
            f" {backbone.encoder.device}"
        )
        folder = self.folders.of(recipe.seed) if self.folders is not None else None
        outs = [self.out] if self.out is not None else []
        if folder is not None and _servable(recipe):
            outs.append(folder.adapter)
        metrics = (
            folder.begin(self.task, backbone, sets, recipe, subset)
            if folder is not None and current().main
            else None
        )
        checkpoints = folder.checkpoints if folder is not None else None
        losses: list[float] = []
        with (
            progress.shown() as show,
            contextlib.closing(metrics) if metrics else contextlib.nullcontext(),
        ):

            def report(at: Progress) -> None:
                if metrics is not None:
                    metrics.step(at)
                losses.append(at.loss)
                show(at)  # so what is shown is written

            if outs:
                trained = train(
                    self.task,
                    backbone,
                    *sets,
                    recipe,
                    report,
                    checkpoints,
                    self.warm_start,
                    probe,
                    typer.echo,
                    self.metric,
                )
                measured = trained.measured
            else:
                trained = None
                measured = measure(
                    backbone,
                    *sets,
                    recipe,
                    report,
                    checkpoints,
                    self.warm_start,
                    typer.echo,
                    self.metric,
                )
            if metrics is not None:
                for epoch in measured.selection.history if measured.selection else ():
                    metrics.held_out(epoch.step, epoch.scores)
                metrics.scores(measured.done.step, recipe.evaluate, measured.scores)
        done = measured.done
        if done.step != done.steps:
            kept = "; --resume goes on" if folder is not None and not measured.finished else ""
            typer.echo(f"stopped early, after {done.step} of {done.steps} steps{kept}")
        if measured.selection is not None:
            typer.echo(_told(measured.selection))
        shown = "  ".join(f"{metric} {value:.4f}" for metric, value in measured.scores.items())
        typer.echo(f"dev ({len(sets[1].texts)} rows, {_judged(recipe)}): {shown}")
        if measured.calibration is not None:
            typer.echo(measured.calibration.told)
            if measured.calibration.points:
                typer.echo(f"if it may abstain: {coverage_told(measured.calibration.points)}")
        adapter = None
        if trained is not None and current().main:
            for out in outs:
                adapter = _write(out, trained)
        begin = done.step - len(losses)
        points = (
            metrics.losses()
            if metrics is not None
            else [(begin + i, loss) for i, loss in enumerate(losses, 1)]
        )
        return _Done(measured, adapter, losses, points)

    def _look_into(self, done: _Done, dev_set: Dataset, recipe: Recipe, hints: list[str]) -> None:
        """Write the report and the predictions: last, so that a page that cannot be written loses
        nothing else. Raises TrainingError."""
        if not current().main:
            return
        measured = done.measured
        if self.predictions is not None:
            write_predictions(self.predictions, dev_set, measured.logits, measured.temperatures)
            typer.echo(f"{self.predictions}: {len(dev_set.texts)} answers")
        if self.report is not None:
            write_report(
                self.report,
                self.task,
                judge(dev_set, measured.logits, recipe.positive, measured.temperatures),
                "the dev set",
                hints,
                done.adapter,
                dataclasses.asdict(recipe),
                _curves(done),
            )
            typer.echo(f"{self.report}: open it in a browser")


@dataclass(frozen=True)
class _Done:
    """One run: what it measured, the adapter that it wrote, the losses of the steps that it made,
    and (step, loss) of all its steps, also those before a resume."""

    measured: Measured
    adapter: Adapter | None
    losses: list[float]
    points: list[tuple[int, float]]


def _curves(done: _Done) -> list[Curve]:
    found = [curve("Training loss", done.points)]
    selection = done.measured.selection
    if selection is not None:
        points = [(each.step, each.scores[selection.metric]) for each in selection.history]
        found.append(curve(f"{selection.metric} on the held-out rows", points))
    return [each for each in found if each is not None]


def _told(selection: Selection) -> str:
    best, metric = selection.best, selection.metric
    if best is None:
        return "no epoch was whole, so none was selected"
    last = selection.history[-1]
    return (
        f"selected epoch {best.epoch}: {metric} {best.scores[metric]:.4f} on the held-out rows"
        f" (epoch {last.epoch}, the last: {last.scores[metric]:.4f})"
    )


def check_task(task: str) -> None:
    """Raise TrainingError for what is no task's name."""
    if not re.fullmatch(TASK_PATTERN, task):
        raise TrainingError(f"task is {task!r}; expected a name of {TASK_PATTERN}")


def read_seeds(text: str) -> list[int]:
    """The numbers of `--seeds`. Raises TrainingError."""
    if not re.fullmatch(r"\d{1,18}([\s,]+\d{1,18})*", text.strip()):
        raise TrainingError(
            f"--seeds is {text!r}; expected whole numbers with commas between, such as 0,1,2"
        )
    numbers = [int(part) for part in re.split(r"[\s,]+", text.strip())]
    if len(set(numbers)) != len(numbers):
        raise TrainingError(
            f"--seeds is {text!r}, which names a seed twice; expected different ones"
        )
    return numbers


def _say_where_experts_lack_rows(recipe: Recipe, rows: int) -> None:
    size = min(recipe.batch_size, rows)
    if recipe.method == "adamix" and recipe.routing == "rows" and size < recipe.experts:
        typer.echo(
            f"a mini-batch has {size} row{'s' if size > 1 else ''} for {recipe.experts} experts:"
            " some get no row there"
        )


def _servable(recipe: Recipe) -> bool:
    try:
        check_servable(recipe)
    except TrainingError:
        return False
    return True


def _judged(recipe: Recipe) -> str:
    """What the scores are of, in words."""
    if recipe.method != "adamix":
        single = recipe.method in ("adapter", "adapter-rdrop")
        return "single adapter" if single else recipe.method
    return {
        "merged": "merged adapter",
        "random": "random routes",
        "fixed": "the first expert",
        "ensemble": "ensemble of the experts",
    }[recipe.evaluate]


def _spread(results: list[dict[str, float]]) -> str:
    parts = []
    for metric in results[0]:
        values = [result[metric] for result in results]
        parts.append(f"{metric} {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}")
    return "  ".join(parts)


def _write(out: Path, trained: Trained) -> Adapter:
    try:
        adapter = _there(out, trained) or save(out, trained.spec, trained.tensors)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error.strerror}") from None
    typer.echo(
        f"{out}: version {adapter.version}, {adapter.bytes:,} bytes, {adapter.parameters:,}"
        " parameters"
    )
    return adapter


def _there(out: Path, trained: Trained) -> Adapter | None:
    """What `out` holds, if that is this very adapter: a finished run that is judged again makes no
    new version of it."""
    try:
        found = load(out)
    except (FileNotFoundError, InvalidAdapter):
        return None
    known = {
        name: found.spec.training.get(name)
        for name in ("seconds", "hardware", "created", "versions")
    }
    spec = trained.spec.model_copy(update={"training": {**trained.spec.training, **known}})
    return found if serialize(spec, trained.tensors) == read_bytes(out) else None
