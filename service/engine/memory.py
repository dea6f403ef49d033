"""A batch for which the device lacks memory, as a refusal: the batcher then runs it in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from service.batcher import Queueable
from service.refusals import DeviceOutOfMemory

R = TypeVar("R", bound=Queueable)
T = TypeVar("T")


def within_memory(run: Callable[[list[R]], Sequence[T]], rows: list[R]) -> Sequence[T]:
    """What `run` gives for the rows. Raises DeviceOutOfMemory where torch lacks memory for them;
    what the pass held is free again by then."""
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
