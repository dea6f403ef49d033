"""An adapter on labelled rows, by the reference model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adapters import backbone as backbones
from adapters.classifier import from_adapter
from adapters.file import Adapter, load, save
from adapters.replay import replay
from adapters.rows import read_rows
from adapters.spec import shown
from adapters.text import encode
from training import advice
from training.calibration import LEAST_ROWS, Calibration, calibration
from training.curves import Curve
from training.data import Columns, Dataset, labelled
from training.errors import TrainingError
from training.hardware import device_of
from training.judgement import Judgement, judge, write_predictions
from training.processes import current
from training.report import write_report
from training.scoring import predict


@dataclass(frozen=True, repr=False)
class Evaluated:
    """`logits` `[N, C]` are those of the rows of `dataset`, which `source` names. Right after a
    training, `curves` are its learning curves."""

    adapter: Adapter
    source: str
    dataset: Dataset
    logits: Tensor
    judgement: Judgement
    hints: list[str]
    curves: Sequence[Curve] = ()

    def __repr__(self) -> str:
        return f"Evaluated({len(self.dataset.texts)} rows, {scores_line(self.scores)})"

    @property
    def scores(self) -> dict[str, float]:
        return self.judgement.scores

    def report(self, path: Path | str) -> None:
        """Write a page (.html) that needs no network. Raises TrainingError."""
        spec = self.adapter.spec
        recipe = spec.training.get("recipe", {})
        write_report(
            Path(path),
            spec.task,
            self.judgement,
            self.source,
            self.hints,
            self.adapter,
            recipe if isinstance(recipe, dict) else {},
            self.curves,
        )

    def predictions(self, path: Path | str) -> None:
        """Write a table (.csv) with the answer to each row. Raises TrainingError."""
        write_predictions(Path(path), self.dataset, self.logits, self.adapter.spec.temperatures)

    def with_training(self, hints: list[str], curves: Sequence[Curve]) -> Evaluated:
        """The same with what the training itself says."""
        return dataclasses.replace(self, hints=[*hints, *self.hints], curves=curves)


def evaluated(
    file: Path,
    data: Path,
    columns: Columns,
    backbone: str,
    device: str | None,
    positive: str | None,
) -> Evaluated:
    """Raises AdaMixError: for a file that is no adapter, or none of this backbone, or rows that do
    not go with it."""
    adapter = read_adapter(file)
    spec = adapter.spec
    dataset = labelled(data, read_rows(data, columns.needed), columns, spec)
    model = backbones.load(backbone)
    replay(adapter, model)
    model.encoder.to(device_of(device, current()))  # type: ignore[arg-type]  # transformers' decorator hides that `self` is bound
    prompt = model.prompt(spec.template, spec.max_length)
    rows = encode(model.tokenizer, dataset.texts, spec.max_length, prompt)
    found = judged(
        adapter, str(data), dataset, predict(from_adapter(model, adapter), rows), positive
    )
    cut = sum(row.full_length > len(row.ids) for row in rows)
    if cut:
        found.hints.append(
            f"{cut} of {len(rows)} rows are longer than {spec.max_length} tokens and were cut; a"
            " service refuses such a text unless it is asked to truncate it"
        )
    return found


def calibrated(
    file: Path,
    data: Path,
    columns: Columns,
    backbone: str,
    device: str | None,
    out: Path,
    twin: Path | None,
) -> tuple[Adapter, Calibration]:
    """Write the adapter of `file` to `out`, with temperatures and a risk-coverage table that are
    fitted on the rows of `data`: on its logits, or on those of its `twin`. Raises AdaMixError."""
    adapter = read_adapter(file)
    if adapter.spec.problem_type == "regression":
        raise TrainingError(f"{file} is of a regression task; expected a task with labels")
    found = evaluated(twin or file, data, columns, backbone, device, None)
    here, there = adapter.spec, found.adapter.spec
    for name in ("labels", "problem_type", "text_pair"):
        if getattr(here, name) != getattr(there, name):
            raise TrainingError(
                f"{twin} has {name} {shown(getattr(there, name))}; expected"
                f" {shown(getattr(here, name))}, as {file} has"
            )
    if len(found.dataset.texts) < LEAST_ROWS:
        raise TrainingError(
            f"{data} holds {len(found.dataset.texts)} rows; expected {LEAST_ROWS} or more, as fewer"
            " say little of a temperature"
        )
    source = "rows of a file" if twin is None else "rows that a twin was trained without"
    fitted = calibration(found.dataset, found.logits, source)
    assert fitted is not None, "the task has labels"
    try:
        return save(out, fitted.described(here), adapter.tensors), fitted
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error.strerror}") from None


def judged(
    adapter: Adapter, source: str, dataset: Dataset, logits: Tensor, positive: str | None
) -> Evaluated:
    """What the logits of a set's rows say, wherever they were computed. Raises TrainingError."""
    judgement = judge(dataset, logits, positive, adapter.spec.temperatures)
    hints = advice.of_predictions(dataset, logits, judgement.scores)
    return Evaluated(adapter, source, dataset, logits, judgement, hints)


def scores_line(scores: Mapping[str, float]) -> str:
    """Scores in one line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


def read_adapter(file: Path) -> Adapter:
    """Raises InvalidAdapter or TrainingError."""
    try:
        return load(file)
    except OSError as error:
        raise TrainingError(f"{file} cannot be read: {error.strerror}") from None
