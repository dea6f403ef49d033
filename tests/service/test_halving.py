"""A device that lacks memory for a batch: what becomes of it, and of those that follow."""

from __future__ import annotations

import pytest
import torch

from service.batcher import Batcher
from service.engine.halving import Halving
from service.refusals import DeviceOutOfMemory
from tests.service.device import Text, in_loop


class Small:
    """A device with room for so many tokens at once; it answers a row with its task."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []

    def __call__(self, rows: list[Text]) -> list[str]:
        tokens = sum(row.tokens for row in rows)
        self.tried.append(tokens)
        if tokens > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [row.task for row in rows]


@in_loop
async def test_the_batch_is_answered_and_those_that_follow_are_smaller() -> None:
    """A batch that lacks memory is run in halves, in order, and is counted; the next ones keep half
    the budget."""
    device = Small(room=8)
    counted = 0

    def lacked() -> None:
        nonlocal counted
        counted += 1
        batcher.max_tokens //= 2

    batcher: Batcher[Text, str] = Batcher(
        Halving(device, lacked), max_tokens=16, max_queue_rows=100, max_adapters=9
    )
    batcher.start()
    rows = [Text(task, 2) for task in "abcdefg"]
    for _ in range(2):
        outcomes = await batcher.submit(rows)
        assert [outcome.value for outcome in outcomes] == list("abcdefg")
    await batcher.close()
    assert device.tried == [14, 8, 6, 8, 6]
    assert counted == 1


def test_too_little_for_a_half() -> None:
    """Where a half is too large too, or a row alone, one sentence says what was wanted, after one
    more try."""
    for rows, tried in (([Text("a", 9), Text("b", 9)], [18, 9]), ([Text("a", 9)], [9, 9])):
        device = Small(room=8)
        with pytest.raises(
            DeviceOutOfMemory,
            match=rf"{len(rows)} rows and {9 * len(rows)} tokens.*expected shorter texts",
        ):
            Halving(device, lambda: None)(rows)
        assert device.tried == tried


def test_other_errors_pass() -> None:
    """An error that is not about memory is not tried again."""
    tried = []

    def broken(rows: list[Text]) -> list[str]:
        tried.append(rows)
        raise RuntimeError("the device failed")

    with pytest.raises(RuntimeError, match="the device failed"):
        Halving(broken, lambda: None)([Text("a"), Text("b")])
    assert len(tried) == 1
