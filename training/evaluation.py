"""An adapter file on labelled rows, by the reference model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from adapters import backbone as backbones
from adapters.classifier import from_adapter
from adapters.file import Adapter, load
from adapters.replay import replay
from adapters.text import encode
from training import advice
from training.data import Columns, Dataset, read_labelled
from training.errors import DataError, TrainingError
from training.hardware import device_of
from training.judgement import Judgement, judge
from training.processes import current
from training.scoring import predict


@dataclass(frozen=True)
class Evaluated:
    """`logits` `[N, C]` are those of the `dataset`'s rows."""

    adapter: Adapter
    dataset: Dataset
    logits: Tensor
    judgement: Judgement
    hints: list[str]


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
    try:
        adapter = load(file)
    except OSError as error:
        raise TrainingError(f"{file} cannot be read: {error.strerror}") from None
    spec = adapter.spec
    dataset = read_labelled(data, columns, spec.problem_type, spec.labels)
    if dataset.text_pair != spec.text_pair:
        found, wanted = (
            "pairs of texts" if pairs else "single texts"
            for pairs in (dataset.text_pair, spec.text_pair)
        )
        raise DataError(f"{data} holds {found}; expected {wanted}, as task {spec.task!r} takes")
    model = backbones.load(backbone)
    replay(adapter, model)
    model.encoder.to(device_of(device, current()))  # type: ignore[arg-type]  # transformers' decorator hides that `self` is bound
    prompt = model.prompt(spec.template, spec.max_length)
    rows = encode(model.tokenizer, dataset.texts, spec.max_length, prompt)
    logits = predict(from_adapter(model, adapter), rows)
    judgement = judge(dataset, logits, positive)
    hints = advice.of_predictions(dataset, logits, judgement.scores)
    cut = sum(row.full_length > len(row.ids) for row in rows)
    if cut:
        hints.append(
            f"{cut} of {len(rows)} rows are longer than {spec.max_length} tokens and were cut; a"
            " service refuses such a text unless it is asked to truncate it"
        )
    return Evaluated(adapter, dataset, logits, judgement, hints)
