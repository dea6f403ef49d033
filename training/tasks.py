"""Tasks known by their names: where their data are, what they are judged by, how many rows the
published sets have.

The rows come from `GLUE_DIR/TASK/train.jsonl` and `dev.jsonl`, or else from the Hugging Face hub by
the library `datasets` (the extra `hub`). Test splits of GLUE, whose labels are not public, are not
used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from adapters.regular import is_folder
from adapters.spec import ProblemType
from training import data
from training.data import Dataset
from training.errors import DataError, TrainingError

GLUE = "nyu-mll/glue"
PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Task:
    """`official` counts the published rows of train and dev. `columns` are the hub's; `labels` are
    in its numbering, none for a number. `positive` names the label whose F1 is reported."""

    metric: str
    official: tuple[int, int]
    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()
    positive: str | None = None
    repository: str = GLUE
    dev: str = "validation"


TASKS = {
    "cola": Task("matthews", (8_551, 1_043), ("sentence",), ("unacceptable", "acceptable")),
    "sst2": Task("accuracy", (67_349, 872), ("sentence",), ("negative", "positive")),
    "mrpc": Task(
        "accuracy", (3_668, 408), PAIR, ("not_equivalent", "equivalent"), positive="equivalent"
    ),
    "stsb": Task("pearson", (5_749, 1_500), PAIR),
    "qqp": Task(
        "accuracy",
        (363_846, 40_430),
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        positive="duplicate",
    ),
    "mnli": Task(
        "accuracy",
        (392_702, 9_815),
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        dev="validation_matched",
    ),
    "qnli": Task("accuracy", (104_743, 5_463), ("question", "sentence"), ENTAILMENT),
    "rte": Task("accuracy", (2_490, 277), PAIR, ENTAILMENT),
    # These two were published in one piece; "test" is what the hub's copies call their evaluated
    # part, labels and all.
    "subj": Task(
        "accuracy",
        (8_000, 2_000),
        ("text",),
        ("objective", "subjective"),
        repository="SetFit/subj",
        dev="test",
    ),
    "mpqa": Task(
        "accuracy",
        (8_603, 2_000),
        ("sentence",),
        ("negative", "positive"),
        repository="jxm/mpqa",
        dev="test",
    ),
}


def named(name: str, train: Path | None, dev: Path | None) -> Task | None:
    """The known task that a run without files is of; None for a run with files. Raises
    TrainingError."""
    if (train is None) != (dev is None):
        given, lacking = ("--train", "--dev") if dev is None else ("--dev", "--train")
        raise TrainingError(
            f"{given} stands without {lacking}; expected both, or neither for a task known by its"
            " name"
        )
    if train is not None:
        return None
    if name not in TASKS:
        raise TrainingError(
            f"task {name!r} is not known by its name; expected --train and --dev, or one of"
            f" {', '.join(TASKS)}"
        )
    return TASKS[name]


def read(
    name: str, folder: Path | None, columns: data.Columns, problem_type: ProblemType | None
) -> tuple[tuple[Dataset, Dataset], str]:
    """A known task's two sets and where they are from: files if `folder` has the task, else the
    hub. Raises DataError."""
    files = folder / name if folder is not None else None
    if files is not None and is_folder(files):
        sets = data.read(files / "train.jsonl", files / "dev.jsonl", columns, problem_type)
        return sets, str(files)
    missing = "GLUE_DIR is not set" if files is None else f"{files} is no folder"
    task = TASKS[name]
    configuration = name if task.repository == GLUE else None
    source = " ".join(filter(None, [task.repository, configuration]))
    typer.echo(f"{name}: {missing}, so the Hugging Face hub is asked for {source}")
    parts: list[data.Part] = []
    for split in ("train", task.dev):
        try:
            rows = _load(task.repository, configuration, split).select_columns(
                [*task.columns, "label"]
            )
        except ImportError:
            raise DataError(
                f"{missing}, and the library `datasets`, which would look for {source}"
                " on the Hugging Face hub, is not installed; expected GLUE_DIR/TASK/train.jsonl"
                " and dev.jsonl, or the extra `hub`"
            ) from None
        except Exception as error:
            # whatever datasets and the libraries below it raise on a hub or a file
            raise DataError(
                f"{missing}, and {source} ({split}) cannot be had from the Hugging Face"
                f" hub: {str(error).strip().partition(chr(10))[0].rstrip('.')}; expected either"
            ) from None
        parts.append((f"{source} ({split})", _rows(rows, task)))
    return (
        data.assemble(parts[0], parts[1], columns, problem_type),
        f"{source} on the Hugging Face hub",
    )


def lacking(name: str, train_rows: int, dev_rows: int) -> str:
    """What the rows lack of the published ones, in words; empty if nothing."""
    parts = zip(("train", "dev"), (train_rows, dev_rows), TASKS[name].official, strict=True)
    return " and ".join(
        f"{part} is {rows:,} of the official {all_:,} rows"
        for part, rows, all_ in parts
        if rows < all_
    )


def _load(repository: str, configuration: str | None, split: str) -> Any:
    import datasets  # two seconds and 250 MB, for those who want it
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # else each attempt is told before the error that says it all
    datasets.disable_progress_bars()
    return datasets.load_dataset(repository, configuration, split=split)


def _rows(rows: Any, task: Task) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of the hub in the form of the files: `text`, perhaps `text_pair`, and a label's name or
    a number."""
    # a set that numbers its own labels knows best
    labels = getattr(rows.features["label"], "names", task.labels)
    for number, row in enumerate(rows, 1):
        texts = dict(
            zip(("text", "text_pair"), (row[column] for column in task.columns), strict=False)
        )
        yield number, {**texts, "label": labels[row["label"]] if labels else row["label"]}
