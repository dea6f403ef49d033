"""A device that lacks memory for a batch: what becomes of it, and of those that follow."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
import torch

from service.batcher import Batcher
from service.engine.memory import within_memory
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


def batcher_of(device: Small, told: list[tuple[Exception, int]]) -> Batcher[Text, str]:
    return Batcher(
        partial(within_memory, device),
        max_tokens=16,
        max_queue_rows=100,
        max_adapters=9,
        failed=lambda error, rows: told.append((error, rows)),
    )


@in_loop
async def test_the_batch_is_answered_and_those_that_follow_are_smaller() -> None:
    """A batch that lacks memory is run in halves and told of once; the next ones keep half the
    budget."""
    device, told = Small(room=8), list[tuple[Exception, int]]()
    batcher = batcher_of(device, told)
    batcher.start()
    rows = [Text(task, 2) for task in "abcdefg"]
    for _ in range(2):
        outcomes = await batcher.submit(rows)
        assert [outcome.value for outcome in outcomes] == list("abcdefg")
    await batcher.close()
    assert device.tried == [14, 8, 6, 8, 6]
    assert [(type(error), count) for error, count in told] == [(DeviceOutOfMemory, 7)]
    assert batcher.max_tokens == 8


@in_loop
async def test_a_row_without_room_fails_alone() -> None:
    """A row for which even the whole memory is too little is refused in one sentence, its batch
    mates are answered, and the budget is halved once."""
    device, told = Small(room=8), list[tuple[Exception, int]]()
    batcher = batcher_of(device, told)
    batcher.start()
    mates = [batcher.submit([Text(task, 2)]) for task in "abc"]
    large = batcher.submit([Text("large", 9)])
    *answered, refusal = await asyncio.gather(*mates, large, return_exceptions=True)
    assert [outcomes[0].value for outcomes in answered] == list("abc")
    assert isinstance(refusal, DeviceOutOfMemory)
    assert str(refusal) == (
        "the device has no memory for 1 row of 9 tokens; expected shorter texts, or fewer slots"
        " (ADAMIX_SLOTS) beside them"
    )
    assert batcher.max_tokens == 8
    await batcher.close()


def test_other_errors_pass() -> None:
    """An error that is not about memory is not changed."""

    def broken(_rows: list[Text]) -> list[str]:
        raise RuntimeError("the device failed")

    with pytest.raises(RuntimeError, match="the device failed"):
        within_memory(broken, [Text("a"), Text("b")])
