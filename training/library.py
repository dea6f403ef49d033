"""Training as a library: from rows in memory to an adapter that predicts in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.classifier import from_adapter
from adapters.disk import write_atomically
from adapters.file import Adapter, parse, serialize
from adapters.replay import replay
from adapters.rows import read_rows
from adapters.spec import ProblemType
from adapters.text import TextInput, encode
from training import advice, defaults
from training.calibration import probabilities
from training.comparison import scores_said
from training.config import OPTIONS, Recipe
from training.curves import curve
from training.data import Columns, Part, assemble, labelled
from training.errors import DataError, TrainingError
from training.evaluation import Evaluated, judged, read_adapter, scores_line
from training.hardware import device_of
from training.one_run import train as run_once
from training.processes import current
from training.progress import Progress
from training.runs import check_task
from training.scoring import predict as logits_of

__all__ = ["Evaluated", "TrainedAdapter", "evaluate", "load", "train"]

# A file's path, a pandas data frame, a `datasets.Dataset`, an iterable of mappings, or a tuple of
# two lists: the texts (or pairs of texts) and their labels.
Data = Any


@dataclass(frozen=True, repr=False)
class TrainedAdapter:
    """An adapter with its backbone. `dev` is what the training's dev set says of it; None of one
    that was loaded."""

    adapter: Adapter
    backbone: Backbone
    dev: Evaluated | None = None

    def __repr__(self) -> str:
        return f"TrainedAdapter({self.adapter.spec.task!r}, {scores_line(self.scores)})"

    @property
    def scores(self) -> dict[str, float]:
        """Of the dev set of its training, by name."""
        return scores_said(self.adapter)

    def predict(self, texts: Sequence[str | TextInput]) -> list[Any]:
        """A label for each text (or pair of texts); a list of labels if the task has several; a
        number for regression. Longer texts are cut, as in training."""
        spec = self.adapter.spec
        values = self.predict_proba(texts)
        if spec.problem_type == "regression":
            return [float(value) for value in values[:, 0]]
        if spec.problem_type == "multi_label_classification":
            return [
                [label for label, value in zip(spec.labels, row, strict=True) if value > 0.5]
                for row in values
            ]
        return [spec.labels[index] for index in values.argmax(axis=1)]

    def predict_proba(self, texts: Sequence[str | TextInput]) -> NDArray[np.float32]:
        """`[N, C]`: the calibrated probability of each label, in the order of
        `adapter.spec.labels`; for regression the number itself. Raises TrainingError."""
        spec = self.adapter.spec
        if isinstance(texts, str | Mapping) or hasattr(texts, "columns"):
            found_type = "a text" if isinstance(texts, str) else f"a {type(texts).__name__}"
            raise TrainingError(
                f"the inputs are {found_type}; expected a list of texts, such as ['…'], or the"
                " column of a data frame that has them"
            )
        inputs = [_text(text, spec.text_pair) for text in texts]
        if not inputs:
            return np.zeros((0, len(spec.labels)), dtype=np.float32)
        found = probabilities(spec.problem_type, self.logits(inputs), spec.temperatures)
        return np.asarray(found.numpy(), dtype=np.float32)

    def logits(self, texts: Sequence[TextInput]) -> Tensor:
        """`[N, C]` of tuples of one or two texts."""
        spec = self.adapter.spec
        prompt = self.backbone.prompt(spec.template, spec.max_length)
        rows = encode(self.backbone.tokenizer, texts, spec.max_length, prompt)
        return logits_of(from_adapter(self.backbone, self.adapter), rows)

    def save(self, path: Path | str) -> None:
        """Write the file that a service takes. Raises TrainingError."""
        try:
            write_atomically(Path(path), self.adapter.data)
        except OSError as error:
            raise TrainingError(f"{path} cannot be written: {error.strerror}") from None


def train(
    task: str,
    rows: Data,
    dev_rows: Data,
    *,
    recipe: Recipe | None = None,
    backbone: str | Backbone = "embedded",
    columns: Columns | None = None,
    problem_type: ProblemType | None = None,
    device: str | None = None,
    metric: str | None = None,
    report: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    **choices: Any,
) -> TrainedAdapter:
    """Train one adapter, as `python -m training --task TASK --train … --dev …` does.

    `rows` and `dev_rows` are paths of files, pandas data frames, `datasets.Dataset`s, iterables of
    mappings, or tuples of two lists, texts and labels. `choices` are those of a Recipe by name,
    such as `epochs=4`; what is left open is chosen by the data (training.defaults). A whole
    `recipe` takes their place. `report` is called after each step, `say`
    with what the user should know of the data, and with the hints. Raises AdaMixError.
    """
    columns = columns or Columns()
    check_task(task)
    if recipe is None:
        _check_choices(choices)
        defaults.choose(choices, rows=1, hidden_size=defaults.SMALL)  # before the data are read
    elif choices:
        raise TrainingError(
            f"recipe stands beside {', '.join(choices)}; expected one of them: a recipe has all"
            " choices"
        )
    sets = assemble(
        _part("the training set", rows, columns),
        _part("the dev set", dev_rows, columns),
        columns,
        problem_type,
    )
    if sets[0].unread:
        say(f"columns not read: {', '.join(map(repr, sets[0].unread))}")
    model = _backbone(backbone, device)
    if recipe is None:
        count = choices.get("few_shot") or len(sets[0].texts)
        chosen = defaults.choose(choices, count, model.config.hidden_size)
        recipe = chosen.recipe
        for reason in chosen.reasons:
            say(reason)
    points: list[tuple[int, float]] = []

    def reported(at: Progress) -> None:
        points.append((at.step, at.loss))
        report(at)

    done = run_once(task, model, *sets, recipe, reported, say=say, metric=metric)
    adapter = parse(serialize(done.spec, done.tensors))
    hints = advice.of_training(recipe, done.measured.done.steps, [loss for _, loss in points])
    dev = judged(adapter, "the dev set", sets[1], done.measured.logits, recipe.positive)
    for hint in (*hints, *dev.hints):
        say(f"hint: {hint}")
    drawn = curve("Training loss", points)
    curves = [] if drawn is None else [drawn]
    return TrainedAdapter(adapter, model, dev.with_training(hints, curves))


def load(file: Path | str, backbone: str | Backbone = "embedded") -> TrainedAdapter:
    """Any adapter file, checked against its backbone by its probe. Raises AdaMixError."""
    adapter, model = read_adapter(Path(file)), _backbone(backbone, None)
    replay(adapter, model)
    return TrainedAdapter(adapter, model)


def evaluate(
    adapter: TrainedAdapter,
    rows: Data,
    *,
    columns: Columns | None = None,
    positive: str | None = None,
) -> Evaluated:
    """An adapter on labelled rows, as `python -m training evaluate` does it. Raises AdaMixError."""
    spec, columns = adapter.adapter.spec, columns or Columns()
    source, found = _part("the set", rows, columns)
    dataset = labelled(source, found, columns, spec)
    logits = adapter.logits(dataset.texts)
    return judged(adapter.adapter, str(source), dataset, logits, positive)


def _check_choices(choices: Mapping[str, Any]) -> None:
    for name in choices:
        if name not in OPTIONS:
            raise TrainingError(
                f"{name} is no choice of a recipe; expected some of {', '.join(OPTIONS)}"
            )


def _backbone(backbone: str | Backbone, device: str | None) -> Backbone:
    model = backbones.load(backbone) if isinstance(backbone, str) else backbone
    if isinstance(backbone, str) or device is not None:
        model.encoder.to(device_of(device, current()))  # type: ignore[arg-type]  # transformers' decorator hides that `self` is bound
    return model


def _text(text: str | TextInput, pair: bool) -> TextInput:
    found = (text,) if isinstance(text, str) else text
    plain = isinstance(found, tuple | list) and all(isinstance(part, str) for part in found)
    if not plain or len(found) != 1 + pair:
        wanted = "a pair of texts" if pair else "a text"
        raise TrainingError(f"an input is {text!r}; expected {wanted}, as this task takes")
    return tuple(found)  # type: ignore[return-value]  # one or two, as looked at above


def _part(name: str, data: Data, columns: Columns) -> Part:
    """Where rows are from, and the rows with their numbers."""
    if isinstance(data, str | Path):
        return Path(data), read_rows(Path(data), columns.needed)
    return name, _numbered(name, _mappings(name, data, columns))


def _mappings(name: str, data: Data, columns: Columns) -> Iterator[Any]:
    if isinstance(data, tuple):
        yield from _paired(name, data, columns)
    elif hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas
        yield from data.to_dict("records")
    elif hasattr(data, "features"):  # datasets
        names = getattr(data.features.get(columns.label), "names", None)
        for row in data:
            named = {columns.label: names[row[columns.label]]} if names else {}
            yield {**row, **named}
    else:
        yield from data


def _paired(name: str, data: tuple[Any, ...], columns: Columns) -> Iterator[dict[str, Any]]:
    if len(data) != 2 or len(data[0]) != len(data[1]):
        raise DataError(
            f"{name} is a tuple of {' and '.join(str(len(part)) for part in data)} values;"
            " expected as many texts as labels"
        )
    for text, label in zip(*data, strict=True):
        texts = (text,) if isinstance(text, str) else tuple(text)
        named = zip((columns.text, columns.pair or "text_pair"), texts, strict=False)
        yield {**dict(named), columns.label: label}


def _numbered(name: str, rows: Iterator[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{name}, row {number}, is a {type(row).__name__}; expected a mapping such as"
                " {'text': …, 'label': …}"
            )
        yield (
            number,
            {
                key: value.item() if isinstance(value, np.generic) else value
                for key, value in row.items()
            },
        )
