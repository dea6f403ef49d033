"""The recipe: tokenise, train by a method, judge what a user would get, and describe an adapter in
a spec."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from adapters.backbone import Backbone
from adapters.classifier import Classifier, Head, from_tensors, to_tensors
from adapters.convert.probe import neutral_probe
from adapters.file import Adapter
from adapters.merge import merge
from adapters.spec import INNER_SITES, AdapterSpec, Pooling, Probe, check_template, first_problem
from adapters.text import TextInput, Tokens, encode
from training import few_shot, label_words
from training.calibration import FOLDS, FROM_ROWS, LEAST_ROWS, Calibration, calibration
from training.checkpoint import Checkpoints
from training.config import SERVABLE, SERVABLE_NAMES, Recipe
from training.data import Dataset
from training.errors import TrainingError
from training.fit import fit
from training.hardware import hardware
from training.head_first import fit_head
from training.methods import build, trained_parameters
from training.probe import probe_of
from training.progress import Progress
from training.scoring import main_metric, predict, predict_unmerged, scores
from training.selection import Selection, folds, joined, split
from training.warm_start import begin_as

FAR = 10  # STS-B's scores go to 5


@dataclass(frozen=True)
class Trained:
    """The result of a run: what `adapters.file.save` takes, and the dev scores of exactly that."""

    spec: AdapterSpec
    tensors: dict[str, Tensor]
    scores: dict[str, float]
    measured: Measured


@dataclass(frozen=True)
class Measured:
    """A run by any method: the model as it was trained, what was judged of it, and how.

    `judged` is what the training was for: a mixture's merged adapter, or `model` itself. `logits`
    `[N, C]` are the dev set's, `scores` theirs, by the recipe's `evaluate`. `parameters` are those
    beyond the frozen backbone's that inference needs, the head left out; `rows` are those trained
    on. `selection` has the scores of the epochs on held-out rows, with `select` best;
    `calibration` what such rows say of the scores.
    """

    model: Classifier
    judged: Classifier
    done: Progress
    logits: Tensor
    scores: dict[str, float]
    parameters: int
    rows: int
    selection: Selection | None = None
    calibration: Calibration | None = None

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """What the logits are divided by."""
        return None if self.calibration is None else self.calibration.temperatures

    @property
    def finished(self) -> bool:
        """Whether the run made all its steps, or all that its `patience` allowed."""
        exhausted = self.selection is not None and self.selection.exhausted
        return self.done.step == self.done.steps or exhausted


def train(
    task: str,
    backbone: Backbone,
    train_set: Dataset,
    dev_set: Dataset,
    recipe: Recipe,
    report: Callable[[Progress], None] = lambda _: None,
    checkpoints: Checkpoints | None = None,
    warm_start: Adapter | None = None,
    probe: Sequence[TextInput] = (),
    say: Callable[[str], None] = lambda _: None,
    metric: str | None = None,
) -> Trained:
    """One run, from examples to a merged adapter, which begins as `warm_start` if given.
    Ctrl-C ends the training early; what it has is merged all the same. The file's probe has the
    texts of `probe`, or else neutral ones. `say` is given what the user should know. `metric` is
    what `select` best goes by, by default the problem type's (`main_metric`).

    Raises TrainingError. The backbone is left as it was, to the bit.
    """
    check_servable(recipe)
    max_length = min(recipe.max_length, backbone.max_length)
    texts = tuple(probe or neutral_probe(train_set.text_pair))
    lora = recipe.adaptation == "lora"
    inner = lora and any(site in INNER_SITES for site in recipe.ranks)

    def described(
        pooling: Pooling, training: dict[str, Any], probe: Probe, *, normed: bool = False
    ) -> AdapterSpec:
        return AdapterSpec(
            task=task,
            labels=train_set.labels,
            problem_type=train_set.problem_type,
            text_pair=train_set.text_pair,
            max_length=max_length,
            pooling=pooling,
            template=recipe.prompt,
            normed_head=normed,
            backbone=backbone.reference,
            first_layer=recipe.first_layer,
            kind=recipe.adaptation,
            bottleneck=None if lora else recipe.bottleneck,
            activation=None if lora else "gelu",
            ranks=recipe.ranks if lora else None,
            scale=recipe.scale if lora else None,
            intermediate_size=backbone.encoder_config.intermediate_size if inner else None,
            training=training,
            probe=probe,
        )

    # What the file could not say is found out here, not when the training is done.
    blank = Probe(inputs=texts, logits=tuple((0.0,) * len(train_set.labels) for _ in texts))
    try:
        described(
            "mean" if recipe.prompt is None else "mask",
            {"recipe": dataclasses.asdict(recipe)},
            blank,
        )
    except ValidationError as error:
        raise TrainingError(f"the adapter's file cannot say this: {first_problem(error)}") from None
    measured = measure(
        backbone, train_set, dev_set, recipe, report, checkpoints, warm_start, say, metric
    )
    judged = measured.judged
    spec = described(
        judged.pooling,
        _provenance(recipe, measured, dev_set),
        probe_of(judged, backbone, texts, max_length, recipe.prompt),
        normed=isinstance(judged.head, Head) and judged.head.norm is not None,
    )
    if measured.calibration is not None:
        spec = measured.calibration.described(spec)
    tensors = to_tensors(judged.sites, judged.head, getattr(torch, recipe.dtype))
    return Trained(spec, tensors, measured.scores, measured)


def check_servable(recipe: Recipe) -> None:
    """Raise TrainingError if a server could not apply, or a file not tell, what this recipe
    judges."""
    if recipe.method not in SERVABLE:
        raise TrainingError(
            f"method is {recipe.method!r}, which no server can apply; expected"
            f" {SERVABLE_NAMES} for an adapter file (without --out, any method is trained"
            " and scored)"
        )
    if recipe.evaluate != "merged":
        raise TrainingError(
            f"evaluate is {recipe.evaluate!r}, but an adapter file holds what is merged; expected"
            " merged, or no --out"
        )


def measure(
    backbone: Backbone,
    train_set: Dataset,
    dev_set: Dataset,
    recipe: Recipe,
    report: Callable[[Progress], None] = lambda _: None,
    checkpoints: Checkpoints | None = None,
    warm_start: Adapter | None = None,
    say: Callable[[str], None] = lambda _: None,
    metric: str | None = None,
) -> Measured:
    """Train by whatever method and score it on the dev set; a merged adapter is scored as its file
    would hold it. `say` is given what the user should know of the data. `metric` is what `select`
    best goes by.

    Raises TrainingError. The backbone is left as it was, to the bit.
    """
    torch.manual_seed(recipe.seed)
    if recipe.positive is not None and recipe.positive not in train_set.labels:
        raise TrainingError(
            f"positive is {recipe.positive!r}; expected one of {', '.join(train_set.labels)}"
        )
    if recipe.few_shot is not None:
        train_set = few_shot.draw(train_set, recipe.few_shot, recipe.seed)
    whole, held = train_set, None
    if recipe.select == "best" or _holds_out_to_calibrate(recipe, train_set):
        train_set, held = split(train_set, recipe.seed)
        selects = "select the best epoch" if recipe.select == "best" else "calibrate the scores"
        say(f"{len(held.texts)} rows are held out of training, to {selects} by")
    rows, dev_rows = (_rows(backbone, data, recipe) for data in (train_set, dev_set))
    _say_what_is_cut(say, backbone, recipe, rows, dev_rows)
    if train_set.problem_type == "regression":
        _say_how_far_targets_lie(say, train_set.targets)

    model = build(
        backbone, len(train_set.labels), recipe, label_words.head(backbone, recipe, train_set)
    )
    if warm_start is not None:
        begin_as(model, warm_start, backbone, train_set.labels, recipe)
    if recipe.head_first:
        fit_head(model, backbone, train_set, rows)
    checkpoint = checkpoints.of(backbone, train_set, recipe) if checkpoints is not None else None
    selection = None
    if held is not None and recipe.select == "best":
        selection = _selection(model, backbone, held, recipe, metric, say)
    done = fit(model, train_set, rows, recipe, report, checkpoint, selection)

    judged = _judged(model, backbone, recipe)
    logits = _logits(model, judged, dev_rows, recipe)
    measured = Measured(
        model=model,
        judged=judged,
        done=done,
        logits=logits,
        scores=scores(dev_set, logits, recipe.positive),
        parameters=trained_parameters(judged if recipe.evaluate == "merged" else model),
        rows=len(rows),
        selection=selection,
    )
    found = None
    if recipe.calibrate == "folds" and measured.finished:
        found = _calibrated_by_folds(backbone, whole, recipe, warm_start, say, metric)
    elif recipe.calibrate == "auto" and held is not None and len(held.texts) >= LEAST_ROWS:
        held_logits = _logits(model, judged, _rows(backbone, held, recipe), recipe)
        found = calibration(held, held_logits, "held out of the training rows")
    return dataclasses.replace(measured, calibration=found)


def _holds_out_to_calibrate(recipe: Recipe, train_set: Dataset) -> bool:
    """A tenth of a thousand rows is missed little. Of fewer, every row counts for the training."""
    regression = train_set.problem_type == "regression"
    return recipe.calibrate == "auto" and not regression and len(train_set.texts) >= FROM_ROWS


def _calibrated_by_folds(
    backbone: Backbone,
    data: Dataset,
    recipe: Recipe,
    warm_start: Adapter | None,
    say: Callable[[str], None],
    metric: str | None,
) -> Calibration | None:
    """Cross-fitting: each row's logits are those of a training without it. None for regression, and
    where Ctrl-C ended one of the trainings."""
    if data.problem_type == "regression":
        return None
    recipe = dataclasses.replace(recipe, calibrate="none", few_shot=None)
    logits, parts = [], []
    for number, (rest, part) in enumerate(folds(data, recipe.seed, FOLDS), 1):
        say(f"calibration: training {number} of {FOLDS}, without {len(part.texts)} of the rows")
        measured = measure(backbone, rest, part, recipe, warm_start=warm_start, metric=metric)
        if not measured.finished:
            say("the calibration was stopped: the scores stay as they are")
            return None
        logits.append(measured.logits)
        parts.append(part)
    source = f"{FOLDS} trainings, each without a part of the training rows"
    return calibration(joined(parts), torch.cat(logits), source)


def _selection(
    model: Classifier,
    backbone: Backbone,
    held: Dataset,
    recipe: Recipe,
    metric: str | None,
    say: Callable[[str], None],
) -> Selection:
    held_rows = _rows(backbone, held, recipe)

    def judge() -> dict[str, float]:
        logits = _logits(model, _judged(model, backbone, recipe), held_rows, recipe)
        return scores(held, logits, recipe.positive)

    by = main_metric(held.problem_type, recipe.positive, metric)
    return Selection(judge, by, recipe.patience, say)


def _judged(model: Classifier, backbone: Backbone, recipe: Recipe) -> Classifier:
    """What the training is for, as a file would hold it."""
    if recipe.method not in SERVABLE:
        return model
    tensors = to_tensors(merge(model.sites), model.head, getattr(torch, recipe.dtype))
    return from_tensors(backbone, tensors, model.pooling, recipe.scale)


def _logits(model: Classifier, judged: Classifier, rows: list[Tokens], recipe: Recipe) -> Tensor:
    """`[N, C]`, by the recipe's `evaluate`."""
    if recipe.evaluate == "merged":
        return predict(judged, rows)
    return predict_unmerged(model, rows, recipe.evaluate, recipe.seed)


def _rows(backbone: Backbone, data: Dataset, recipe: Recipe) -> list[Tokens]:
    """A set's texts as they are trained on, and later served."""
    max_length = min(recipe.max_length, backbone.max_length)
    if recipe.prompt is not None:
        check_template(recipe.prompt, text_pair=data.text_pair)
    return encode(
        backbone.tokenizer, data.texts, max_length, backbone.prompt(recipe.prompt, max_length)
    )


def _say_what_is_cut(
    say: Callable[[str], None],
    backbone: Backbone,
    recipe: Recipe,
    rows: list[Tokens],
    dev_rows: list[Tokens],
) -> None:
    length = min(recipe.max_length, backbone.max_length)
    if (
        recipe.max_length > length and recipe.max_length != Recipe.max_length
    ):  # else nobody chose it
        say(f"--max-length is {recipe.max_length}, but the backbone takes {length} tokens at most")
    for name, some in (("training", rows), ("dev", dev_rows)):
        cut = sum(row.full_length > len(row.ids) for row in some)
        if cut:
            say(
                f"{cut} of {len(some)} {name} rows are longer than {length} tokens and were cut;"
                " a service refuses such a text unless it is asked to truncate it"
            )


def _say_how_far_targets_lie(say: Callable[[str], None], targets: list[float]) -> None:
    largest = max(map(abs, targets))
    if largest > FAR:
        say(
            f"the numbers to learn go up to {largest:g} in magnitude; training works best from"
            f" -{FAR} to {FAR}: scale them, and scale the answers back"
        )


def _provenance(recipe: Recipe, measured: Measured, dev_set: Dataset) -> dict[str, Any]:
    return {
        "recipe": dataclasses.asdict(recipe),
        "train_rows": measured.rows,
        "dev_rows": len(dev_set.texts),
        "steps": measured.done.step,
        "planned_steps": measured.done.steps,
        **_chosen(measured),
        "dev_scores": measured.scores,
        "seconds": round(measured.done.seconds, 1),
        "hardware": hardware(measured.model.encoder.device),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }


def _chosen(measured: Measured) -> dict[str, Any]:
    selection = measured.selection
    if selection is None or selection.best is None:
        return {}
    return {"selected_epoch": selection.best.epoch, "held_out_scores": selection.best.scores}
