"""A batch too large for the device's memory is run in two halves, and later batches are smaller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from service.batcher import Row
from service.refusals import DeviceOutOfMemory

R = TypeVar("R", bound=Row)
T = TypeVar("T")


class Halving(Generic[R, T]):
    """Calls `run`. If the device lacks memory, tries the batch once more in two halves."""

    def __init__(self, run: Callable[[list[R]], Sequence[T]], lacked: Callable[[], None]) -> None:
        """`lacked` is called each time memory runs out, to count it and to make later batches
        smaller."""
        self._run, self._lacked = run, lacked

    def __call__(self, rows: list[R]) -> list[T]:
        """One result per row. Raises DeviceOutOfMemory if there is too little even for a half."""
        try:
            return [*self._run(rows)]
        except torch.OutOfMemoryError:
            self._lacked()
        # Not within the `except`: its error keeps the failed pass's tensors alive.
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
