"""The batcher against a model of it, under random submissions, failures and departures."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batcher, Outcome
from service.refusals import QueueFull
from tests.service.device import Device, Text, in_loop, serving, submitted, values


@dataclass(frozen=True)
class Submit:
    rows: list[Text]


@dataclass(frozen=True)
class End:
    """The running batch ends, well or not."""

    error: Exception | None


@dataclass(frozen=True)
class Leave:
    """One of the clients that still wait leaves."""

    which: int


ROWS = st.builds(Text, st.sampled_from("abcd"), st.integers(1, 12), st.sampled_from("12"))
STEPS = st.one_of(
    st.builds(Submit, st.lists(ROWS, min_size=1, max_size=6)),
    st.builds(End, st.sampled_from([None, None, None, RuntimeError("the device failed")])),
    st.builds(Leave, st.integers(0, 20)),
)


@dataclass(eq=False)
class Client:
    rows: list[Text]
    request: asyncio.Task[list[Outcome[Text]]]


@dataclass
class Model:
    """What a queue of these limits must do, kept by hand beside the real one."""

    max_tokens: int
    max_queue_rows: int
    max_adapters: int
    clients: list[Client] = field(default_factory=list)
    waiting: list[tuple[Text, Client]] = field(default_factory=list)
    running: list[tuple[Text, Client]] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)

    def begin(self, batch: list[Text]) -> None:
        assert batch
        assert sum(row.tokens for row in batch) <= self.max_tokens or len(batch) == 1
        assert len({row.adapter_key for row in batch}) <= self.max_adapters
        for task in {row.task for row in batch}:
            queued = [row for row, _ in self.waiting if row.task == task]
            ran = [row for row in batch if row.task == task]
            assert queued[: len(ran)] == ran, (
                "a task's rows run in the order in which they came, each once"
            )
        left = {row.task for row, _ in self.waiting} - {row.task for row in batch}
        self.passed_over = {task: self.passed_over.get(task, 0) + 1 for task in left}
        assert all(times <= 3 for times in self.passed_over.values()), (
            "of four tasks each has its turn in four batches"
        )
        self.running = [entry for entry in self.waiting if entry[0] in batch]
        self.waiting = [entry for entry in self.waiting if entry[0] not in batch]

    def drop(self, clients: list[Client]) -> None:
        self.waiting = [entry for entry in self.waiting if entry[1] not in clients]
        # a task whose rows all left begins anew, at the end of the line
        still = {row.task for row, _ in self.waiting}
        self.passed_over = {
            task: times for task, times in self.passed_over.items() if task in still
        }


@settings(max_examples=120, deadline=None)
@given(steps=st.lists(STEPS, max_size=30))
def test_every_row_is_run_once_and_answered_with_its_own_result(
    steps: list[Submit | End | Leave],
) -> None:
    """For any submissions, failures and departures, each row that is due is run once and answered
    with its own result, the limits hold in every batch, and the queue's count is true."""

    @in_loop
    async def scenario() -> None:
        await _play(steps, Model(max_tokens=10, max_queue_rows=12, max_adapters=2))

    scenario()


async def _play(steps: list[Submit | End | Leave], model: Model) -> None:
    device = Device()
    limits = {
        name: getattr(model, name) for name in ("max_tokens", "max_queue_rows", "max_adapters")
    }
    async with serving(device, **limits) as batcher:
        for step in steps:
            if isinstance(step, Submit):
                await _submit(step, batcher, model)
            elif isinstance(step, End) and model.running:
                await _end(step, device, model)
            elif isinstance(step, Leave):
                await _leave(step, model)
            if not model.running and model.waiting:
                model.begin(await device.begins())
            assert batcher.queued_rows == len(model.waiting)
        started = {row for batch in device.batches for row in batch} | {
            row for row, _ in model.waiting
        }
        device.let_go()
        for client in model.clients:
            assert await values(client.request) == client.rows
    ran = [row for batch in device.batches for row in batch]
    assert len(set(ran)) == len(ran)
    assert set(ran) == started, "nothing runs that was dropped"


async def _submit(step: Submit, batcher: Batcher[Text, Text], model: Model) -> None:
    # hypothesis may repeat a row
    rows = [Text(row.task, row.tokens, row.version) for row in step.rows]
    client = Client(rows, await submitted(batcher, rows))
    if len(model.waiting) + len(rows) > model.max_queue_rows:
        with pytest.raises(QueueFull):
            await client.request
    else:
        model.clients.append(client)
        model.waiting += [(row, client) for row in rows]


async def _end(step: End, device: Device, model: Model) -> None:
    concerned = list(dict.fromkeys(client for _, client in model.running))
    model.running = []
    if step.error is not None:
        model.drop(concerned)
    unfinished = {client for _, client in model.waiting}
    device.end(step.error)
    for client in concerned:
        if client in model.clients and client not in unfinished:
            await asyncio.wait([client.request])
            if step.error is not None:
                assert client.request.exception() is step.error
                model.clients.remove(client)


async def _leave(step: Leave, model: Model) -> None:
    waiting = [client for client in model.clients if not client.request.done()]
    if not waiting:
        return
    client = waiting[step.which % len(waiting)]
    client.request.cancel()
    await asyncio.wait([client.request])
    assert client.request.cancelled()
    model.drop([client])
    model.clients.remove(client)
