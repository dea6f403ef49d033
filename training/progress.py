"""Where a run is, and how its user sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import rich.progress
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_LINES = 20  # when the output is no terminal: this many lines a run instead of a bar


@dataclass(frozen=True)
class Progress:
    """Where a run is, after each step: `loss` is the step's whole loss, `tokens` counts real tokens of first passes."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float


@contextmanager
def shown() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere, a line now and then."""
    console = Console()
    if not console.is_terminal:
        yield lambda p: _line(p) if p.step % max(1, p.steps // LOG_LINES) == 0 else None
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        handle = bar.add_task("", loss=float("nan"), speed=0.0)
        yield lambda p: bar.update(
            handle, completed=p.step, total=p.steps, loss=p.loss, speed=p.tokens / max(p.seconds, 1e-9)
        )


def _line(p: Progress) -> None:
    speed = p.tokens / max(p.seconds, 1e-9)
    typer.echo(f"step {p.step}/{p.steps}  loss {p.loss:.3f}  {speed:,.0f} tokens/s  {p.seconds:.0f} s")
