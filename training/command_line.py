"""What the commands of `python -m training` share."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from adapters.commands import DefaultCommand
from adapters.regular import is_folder, is_there
from training.config import RESULTS
from training.errors import TrainingError

EXIT_CODES = """**Exit codes:** 0, done, or ended early by Ctrl-C with what there was written; 2,
something that you can mend, in one sentence on stderr; 1, a fault of ours, with a traceback."""
TRAIN = "train"
DATA = "Task and data"

_column = functools.partial(typer.Option, metavar="COLUMN", rich_help_panel=DATA)
TextColumn = Annotated[str, _column()]
PairColumn = Annotated[str | None, _column(help="Second text; by default `text_pair` if there.")]
LabelColumn = Annotated[str, _column()]
LabelSeparator = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="Between the labels of a multi-label row in CSV or TSV.",
        rich_help_panel=DATA,
    ),
]
_results = functools.partial(typer.Option, metavar="FILE", rich_help_panel=RESULTS)
Report = Annotated[
    Path | None,
    _results(
        help=(
            "A page (.html): scores, each label's scores, confusion matrix, calibration, the worst"
            " errors, settings; of a training also its learning curves."
        )
    ),
]
Predictions = Annotated[
    Path | None, _results(help="A table (.csv) with the answer to each dev row.")
]


class TrainsByDefault(DefaultCommand):
    """Where no command is named, it is `train`."""

    default = TRAIN


@contextlib.contextmanager
def explaining_what_lacks() -> Iterator[None]:
    """A package that is not installed ends the command with a sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        typer.echo(
            f"error: {error.name} is not installed; expected pip install -c constraints.txt -e"
            " '.[train]'",
            err=True,
        )
        raise typer.Exit(2) from None


def check_outputs(outputs: Mapping[str, Path | None], inputs: tuple[Path | None, ...]) -> None:
    """Raise TrainingError where a file could not be written, or would take the place of another
    that the command reads or writes. `outputs` are by their options."""
    taken = {path.resolve() for path in inputs if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        check_output(option, path)
        if path.resolve() in taken:
            raise TrainingError(
                f"{option} is {path}, which this command needs for something else; expected"
                " another file"
            )
        taken.add(path.resolve())


def check_output(option: str, path: Path) -> None:
    """Raise TrainingError where a file could not be written, before work is spent on it."""
    if not is_folder(path.parent):
        raise TrainingError(
            f"the folder of {option} {path} does not exist; expected one to write into"
        )
    problem = None
    if is_folder(path):
        problem = "is a folder"
    elif is_there(path) and not path.is_file():  # a file would take a device's place, or a pipe's
        problem = "is no regular file"
    elif not os.access(path.resolve().parent, os.W_OK):
        problem = "cannot be written"
    if problem is not None:
        raise TrainingError(f"{option} {path} {problem}; expected a file's path")
