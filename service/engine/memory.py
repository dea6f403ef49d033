"""A batch for which the device lacks memory, as a refusal: the batcher then runs it in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from service.refusals import DeviceOutOfMemory


class Counted(Protocol):
    """What the refusal says of a row."""

    @property
    def tokens(self) -> int: ...


R = TypeVar("R", bound=Counted)
T = TypeVar("T")


def refused(run: Callable[[list[R]], Sequence[T]], rows: list[R]) -> Sequence[T]:
    """What `run` gives for the rows. Raises DeviceOutOfMemory, with what the pass held free again,
    where torch lacks memory for it."""
    try:
        return run(rows)
    except torch.OutOfMemoryError:
        pass
    # Not in the `except`, whose error keeps the failed pass's tensors alive.
    torch.cuda.empty_cache()
    tokens = sum(row.tokens for row in rows)
    raise DeviceOutOfMemory(
        f"the device has no memory for {len(rows)} row{'s'[: len(rows) - 1]} of {tokens} tokens;"
        " expected shorter texts, or fewer slots (ADAMIX_SLOTS) beside them"
    )
