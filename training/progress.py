"""Where a run is, and how its user sees it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import rich.progress
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

LOG_LINES = 20  # when the output is no terminal: at most this many lines a run instead of a bar


@dataclass(frozen=True)
class Progress:
    """Where a run is, after each step: `loss` is the step's whole loss, `tokens` counts real tokens
    of first passes, `learning_rate` is the one that the step was made with."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float
    learning_rate: float = 0.0


@contextmanager
def shown() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere, a line now and then."""
    console = Console()
    if not console.is_terminal:
        yield (
            lambda p: (
                _line(p)
                if p.step * LOG_LINES // p.steps > (p.step - 1) * LOG_LINES // p.steps
                else None
            )
        )
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"))
    with rich.progress.Progress(*columns, console=console) as bar:
        handle = bar.add_task("", numbers="")
        yield lambda p: bar.update(handle, completed=p.step, total=p.steps, numbers=_numbers(p))


def _line(p: Progress) -> None:
    typer.echo(f"step {p.step}/{p.steps}  {_numbers(p)}")


def _numbers(p: Progress) -> str:
    """The time left is by the mean of the whole run, so that a resumed one knows it from its first
    step."""
    passed, left = (
        datetime.timedelta(seconds=round(x))
        for x in (p.seconds, p.seconds / p.step * (p.steps - p.step))
    )
    return (
        f"loss {p.loss:.3f}  {p.tokens / max(p.seconds, 1e-9):,.0f} tokens/s  {passed}, {left} left"
    )
