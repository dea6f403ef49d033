"""Batches too large for the device's memory are run in halves, and those that follow are
smaller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch

from service.refusals import DeviceOutOfMemory


class Row(Protocol):
    """What a sentence says of a row."""

    @property
    def tokens(self) -> int: ...


R = TypeVar("R", bound=Row)
T = TypeVar("T")


class Halving(Generic[R, T]):
    """`run`, but a batch for which the device lacks memory is tried once more, in two halves."""

    def __init__(self, run: Callable[[list[R]], Sequence[T]], lacked: Callable[[], None]) -> None:
        """`lacked` is told each time, to count it and to make the batches that follow smaller."""
        self._run, self._lacked = run, lacked

    def __call__(self, rows: list[R]) -> list[T]:
        """A result a row. Raises DeviceOutOfMemory if there is too little for a half too."""
        try:
            return [*self._run(rows)]
        except torch.OutOfMemoryError:
            self._lacked()
        # Not in the `except`, whose error keeps the failed pass's tensors alive.
        torch.cuda.empty_cache()
        middle = (len(rows) + 1) // 2
        try:
            return [
                value
                for half in (rows[:middle], rows[middle:])
                if half
                for value in self._run(half)
            ]
        except torch.OutOfMemoryError:
            tokens = sum(row.tokens for row in rows)
            raise DeviceOutOfMemory(
                f"the device has no memory for a batch of {len(rows)} rows and {tokens} tokens, nor"
                " for half of it; expected shorter texts, or fewer slots (ADAMIX_SLOTS) beside"
                " them"
            ) from None
