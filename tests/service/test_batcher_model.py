"""The batcher against a model of it, under random submissions, failures and departures."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import ROWS_PER_FREE_PLACE, Batcher, Outcome
from service.refusals import QueueFull
from tests.service.device import Clock, Device, Text, in_loop, submitted

SECONDS_PER_TOKEN = 0.125  # a power of two: sums of it are exact


@dataclass(frozen=True)
class Submit:
    rows: list[Text]


@dataclass(frozen=True)
class End:
    """The pass that runs ends; with an error, it raises, whatever its rows are."""

    error: Exception | None = None


@dataclass(frozen=True)
class Leave:
    """One of the clients that still wait leaves."""

    which: int


Step = Submit | End | Leave

BROKEN = st.sampled_from([None, None, None, None, RuntimeError("the row cannot be run")])
TASKS, TOKENS, VERSIONS = st.sampled_from("abcd"), st.integers(1, 12), st.sampled_from("12")
LEAVING = st.builds(Leave, st.integers(0, 20))
FAILING_STEPS = st.one_of(
    st.builds(
        Submit,
        st.lists(st.builds(Text, TASKS, TOKENS, VERSIONS, BROKEN), min_size=1, max_size=6),
    ),
    st.builds(End, st.sampled_from([None, None, None, RuntimeError("the device failed")])),
    LEAVING,
)
WAITING_STEPS = st.one_of(
    st.builds(Submit, st.lists(st.builds(Text, TASKS, TOKENS, VERSIONS), min_size=1, max_size=6)),
    st.builds(Submit, st.builds(lambda rows: [Text("a", 4)] * rows, st.integers(1, 6))),
    st.just(End()),
    LEAVING,
)


@dataclass(eq=False)
class Client:
    rows: list[Text]
    request: asyncio.Task[list[Outcome[Text]]]


@dataclass
class Model:
    """What a batcher of these limits must do, kept by hand beside the real one. `unsettled` has the
    rows of a batch that failed which are neither answered, nor given up, nor in the pass that
    runs."""

    max_tokens: int = 10
    max_queue_rows: int = 12
    max_adapters: int = 2
    max_wait: float = math.inf
    max_drain: float = math.inf
    pace_known: bool = False
    failed: bool = False  # from then on the pace is also of passes over parts: not modelled
    clients: list[Client] = field(default_factory=list)
    waiting: list[tuple[Text, Client]] = field(default_factory=list)
    running: list[tuple[Text, Client]] = field(default_factory=list)
    unsettled: list[tuple[Text, Client]] = field(default_factory=list)
    smallest_failed: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)

    def retry_after(self, rows: list[Text]) -> int | None:
        """None if a request of these rows is admitted, else what its refusal says."""
        queued, asked = Counter(r.task for r, _ in self.waiting), Counter(r.task for r in rows)
        pace = SECONDS_PER_TOKEN if self.pace_known else 0.0
        tokens = sum(row.tokens for row, _ in self.waiting)
        free = self.max_queue_rows - len(self.waiting)
        if len(rows) > free:
            return max(1, math.ceil(tokens * pace))
        if not self.waiting:
            return None
        tasks, total = len(queued | asked), tokens + sum(row.tokens for row in rows)
        for task, count in asked.items():
            turns = queued[task] * tasks, (queued[task] + count) * tasks
            ahead = tokens * min(1.0, turns[0] / len(self.waiting))
            in_all = total * min(1.0, turns[1] / (len(self.waiting) + len(rows)))
            share = queued[task] and queued[task] + count > ROWS_PER_FREE_PLACE * free
            late = ahead > self.max_tokens and ahead * pace > self.max_wait
            undrained = in_all > self.max_tokens and in_all * pace > self.max_drain
            if share or late or undrained:
                return max(1, math.ceil(ahead * pace))
        return None

    def begin(self, batch: list[Text]) -> None:
        assert batch
        assert sum(row.tokens for row in batch) <= self.max_tokens or len(batch) == 1
        assert len({row.adapter_key for row in batch}) <= self.max_adapters
        if self.unsettled:
            self.begin_part(batch)
            return
        for task in {row.task for row in batch}:
            queued = [row for row, _ in self.waiting if row.task == task]
            ran = [row for row in batch if row.task == task]
            assert queued[: len(ran)] == ran, "a task's rows run in the order in which they came"
        left = {row.task for row, _ in self.waiting} - {row.task for row in batch}
        self.passed_over = {task: self.passed_over.get(task, 0) + 1 for task in left}
        assert all(times <= 3 for times in self.passed_over.values()), (
            "of four tasks each has its turn in four batches"
        )
        self.running = [entry for entry in self.waiting if entry[0] in batch]
        self.waiting = [entry for entry in self.waiting if entry[0] not in batch]

    def begin_part(self, part: list[Text]) -> None:
        unsettled = {row for row, _ in self.unsettled}
        assert unsettled.issuperset(part), "what is left of a batch that failed comes first"
        assert len(part) <= (self.smallest_failed + 1) // 2 or not self.smallest_failed
        self.smallest_failed = 0
        self.running = [entry for entry in self.unsettled if entry[0] in part]
        self.unsettled = [entry for entry in self.unsettled if entry[0] not in part]

    def end(self, error: Exception | None) -> tuple[Client, Exception] | None:
        """The pass that runs ends; which client fails with it, and with what."""
        raised = error or next((row.error for row, _ in self.running if row.error), None)
        ended, self.running = self.running, []
        self.pace_known = True
        if raised is None:
            return None
        self.failed = True
        if len(ended) > 1:
            self.smallest_failed = len(ended)
            self.unsettled += [entry for entry in ended if entry[1] in self.clients]
            return None
        ((_, client),) = ended
        if client not in self.clients:
            return None
        self.drop(client)
        return client, raised

    def drop(self, client: Client) -> None:
        """Nobody waits for a client's rows any more."""
        self.clients.remove(client)
        self.unsettled = [entry for entry in self.unsettled if entry[1] is not client]
        self.waiting = [entry for entry in self.waiting if entry[1] is not client]
        # a task whose rows all left begins anew, at the end of the line
        still = {row.task for row, _ in self.waiting}
        self.passed_over = {
            task: times for task, times in self.passed_over.items() if task in still
        }


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(FAILING_STEPS, max_size=30))
def test_every_row_is_answered_with_its_own_result(steps: list[Step]) -> None:
    """For any submissions, failures and departures, each row that is due is answered once with its
    own result, or fails alone and its request with it; the limits hold in every batch, parts of one
    that failed come before others, and the queue's count is true."""

    @in_loop
    async def scenario() -> None:
        await _play(steps, Model())

    scenario()


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(WAITING_STEPS, max_size=40))
def test_admitted_is_what_is_soon_run(steps: list[Step]) -> None:
    """For any submissions and departures, a request is refused exactly if there is no place for it,
    its task has its share, its turn would come too late, or it could not be drained; and QueueFull
    says when to come again."""

    @in_loop
    async def scenario() -> None:
        await _play(steps, Model(max_queue_rows=30, max_wait=3.3, max_drain=11.1))

    scenario()


async def _play(steps: list[Step], model: Model) -> None:
    device, clock = Device(), Clock()
    limits = {
        name: getattr(model, name)
        for name in ("max_tokens", "max_queue_rows", "max_adapters", "max_wait", "max_drain")
    }
    async with clock.serving(device, **limits) as batcher:
        for step in steps:
            if isinstance(step, Submit):
                await _submit(step, batcher, model)
            elif isinstance(step, End) and model.running:
                await _end(step, device, clock, model)
            elif isinstance(step, Leave):
                await _leave(step, model)
            if not model.running and (model.waiting or model.unsettled):
                model.begin(await device.begins())
            assert batcher.queued_rows == len(model.waiting)
        due = {row for row, _ in (*model.waiting, *model.unsettled)}
        started = {row for batch in device.batches for row in batch} | due
        device.let_go()
        for client in model.clients:
            await _settled(client)
    ran = Counter(row for batch in device.batches for row in batch)
    assert set(ran) <= started, "nothing runs that was dropped"
    assert all(times <= 5 for times in ran.values()), "ten rows of a batch take four halvings"


async def _submit(step: Submit, batcher: Batcher[Text, Text], model: Model) -> None:
    # hypothesis may repeat a row
    rows = [Text(row.task, row.tokens, row.version, row.error) for row in step.rows]
    refused = model.retry_after(rows)
    client = Client(rows, await submitted(batcher, rows))
    if refused is not None:
        assert client.request.done()
        with pytest.raises(QueueFull) as raised:
            await client.request
        assert raised.value.retry_after == refused or model.failed
        assert raised.value.retry_after >= 1
    else:
        assert not client.request.done()
        model.clients.append(client)
        model.waiting += [(row, client) for row in rows]


async def _end(step: End, device: Device, clock: Clock, model: Model) -> None:
    concerned = list(dict.fromkeys(client for _, client in model.running))
    clock.now += SECONDS_PER_TOKEN * sum(row.tokens for row, _ in model.running)
    failed = model.end(step.error)
    device.end(step.error)
    if failed is not None:
        client, error = failed
        await asyncio.wait([client.request])
        assert client.request.exception() is error
        return
    unfinished = {client for _, client in (*model.waiting, *model.unsettled)}
    for client in concerned:
        if client in model.clients and client not in unfinished:
            await _settled(client)


async def _settled(client: Client) -> None:
    """A client's request ends, with its rows' own results or with the error of one of them."""
    await asyncio.wait([client.request])
    errors = [row.error for row in client.rows if row.error]
    if errors:
        assert client.request.exception() in errors
    else:
        assert [outcome.value for outcome in client.request.result()] == client.rows


async def _leave(step: Leave, model: Model) -> None:
    waiting = [client for client in model.clients if not client.request.done()]
    if not waiting:
        return
    client = waiting[step.which % len(waiting)]
    client.request.cancel()
    await asyncio.wait([client.request])
    assert client.request.cancelled()
    model.drop(client)
