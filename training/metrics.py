"""A run's numbers as it goes: JSON lines, and the same as TensorBoard events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from adapters.disk import write_atomically
from adapters.regular import read_bytes
from training.errors import TrainingError
from training.jsonl import append, recorded
from training.progress import Progress


class Metrics:
    """`metrics.jsonl` and events in a run's folder: each line is whole once written, and no step
    stands there twice."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines = folder / "metrics.jsonl"
        self._board: Any = None
        self._last: Progress | None = None

    def step(self, p: Progress) -> None:
        """`tokens_per_second` is the step's own; of the first after a resume, the mean so far."""
        if self._last is None:
            self._begin(p.step)
        tokens = p.tokens - (self._last.tokens if self._last else 0)
        seconds = p.seconds - (self._last.seconds if self._last else 0.0)
        speed = round(tokens / max(seconds, 1e-9), 1)
        self._last = p
        self._write(
            p.step,
            {},
            {"loss": p.loss, "learning_rate": p.learning_rate, "tokens_per_second": speed},
        )

    def scores(self, step: int, evaluate: str, scores: dict[str, float]) -> None:
        """What the run, trained up to `step`, scores on the dev set."""
        words, numbers = (
            {"evaluate": evaluate},
            {f"dev/{name}": value for name, value in scores.items()},
        )
        # else a finished run is judged again
        if not recorded(self._lines, {"step": step, **words, **numbers}):
            self._write(step, words, numbers)

    def held_out(self, step: int, scores: dict[str, float]) -> None:
        """What the run scored on the rows held out of training, after `step`."""
        numbers = {f"held_out/{name}": value for name, value in scores.items()}
        if not recorded(self._lines, {"step": step, **numbers}):
            self._write(step, {}, numbers)

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of all steps so far, also of those before a resume."""
        lines = read_bytes(self._lines).splitlines() if self._lines.exists() else []
        found = [json.loads(line) for line in lines]
        return [(line["step"], line["loss"]) for line in found if "loss" in line]

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _begin(self, step: int) -> None:
        """Take back what a killed run wrote after its last checkpoint; what stays is drawn anew,
        since TensorBoard tells the order of two files by the second."""
        kept: list[bytes] = []
        try:
            if self._lines.exists():
                kept = [
                    line
                    for line in read_bytes(self._lines).splitlines(keepends=True)
                    if _step(line) < step
                ]
                write_atomically(self._lines, b"".join(kept))
            for file in self._folder.glob("events.out.tfevents.*"):
                file.unlink()
        except OSError as error:
            raise TrainingError(f"{self._lines} cannot be written: {error.strerror}") from None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            typer.echo("there are no TensorBoard events: the package tensorboard is not installed")
            return
        self._board = SummaryWriter(str(self._folder), flush_secs=10)
        for line in kept:
            self._draw(json.loads(line))

    def _write(self, step: int, words: dict[str, str], numbers: dict[str, float]) -> None:
        line = {"step": step, **words, **numbers}
        append(self._lines, line)
        self._draw(line)

    def _draw(self, line: dict[str, Any]) -> None:
        if self._board is not None:
            for name, value in line.items():
                if name != "step" and not isinstance(value, str):
                    self._board.add_scalar(name, value, line["step"])


def _step(line: bytes) -> float:
    """The step that a line is of; of one that a kill cut short, none: infinity."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
