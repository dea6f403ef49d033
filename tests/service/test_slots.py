"""Which adapters are on the device: the least recently used one makes room, a running batch's never
do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.file import Adapter, parse
from adapters.text import encode
from service.batcher import Batcher, BatchReport
from service.engine.engine import Engine
from service.engine.kinds.bottleneck import Bottleneck
from service.engine.row import Row
from service.engine.slots import Slots
from service.refusals import AdapterNotLoaded
from tests.tiny import random_adapter

CPU = torch.device("cpu")
_TASKS = st.sets(st.sampled_from("abcdefgh"), min_size=1, max_size=3)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def adapters(bert: Backbone) -> dict[str, Adapter]:
    """One adapter of each task a to h."""
    return {
        task: parse(random_adapter(bert, task, ["no", "yes"], dense=task in "bd", seed=seed)[2])
        for seed, task in enumerate("abcdefgh")
    }


class Counts:
    """What the callbacks were told."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.evictions = 0
        self.failures = 0

    def evicted(self) -> None:
        self.evictions += 1

    def failed(self) -> None:
        self.failures += 1


def counted(
    capacity: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> tuple[Slots, Counts]:
    counts = Counts()
    told = {"loaded": counts.seconds.append, "evicted": counts.evicted, "failed": counts.failed}
    return Slots(capacity, device, dtype, **told), counts


def on_device(slots: Slots, adapters: dict[str, Adapter]) -> str:
    return "".join(task for task, adapter in adapters.items() if slots.resident(adapter.digest))


def acquire(slots: Slots, adapters: dict[str, Adapter], tasks: Iterable[str]) -> None:
    slots.acquire([adapters[task] for task in tasks])


def test_nothing_is_resident_at_first(adapters: dict[str, Adapter]) -> None:
    """Slots are empty until a batch asks for an adapter."""
    slots, counts = counted(3)
    assert on_device(slots, adapters) == ""
    acquire(slots, adapters, "b")
    assert on_device(slots, adapters) == "b"
    assert len(counts.seconds) == 1


def test_the_least_recently_used_makes_room(adapters: dict[str, Adapter]) -> None:
    """Full slots drop the adapter whose last batch is longest ago, be it loaded first or not."""
    slots, _ = counted(3)
    for task in "abca":
        acquire(slots, adapters, task)
    acquire(slots, adapters, "d")
    assert on_device(slots, adapters) == "acd"
    acquire(slots, adapters, "e")
    assert on_device(slots, adapters) == "ade"
    acquire(slots, adapters, "fg")
    assert on_device(slots, adapters) == "efg"


def test_a_batch_s_own_adapters_stay(adapters: dict[str, Adapter]) -> None:
    """Making room for one adapter of a batch never evicts another one of it, even the least
    recently used."""
    slots, counts = counted(3)
    acquire(slots, adapters, "abc")
    residents = slots.acquire([adapters[task] for task in "dae"])
    assert on_device(slots, adapters) == "ade"
    assert {resident.spec.task for resident in residents.values()} == set("ade")
    assert counts.evictions == 2
    assert len(counts.seconds) == 5


def test_a_prefetched_adapter_is_not_loaded_again(adapters: dict[str, Adapter]) -> None:
    """A batch finds an adapter that was brought in before it, and is given those very tensors each
    time."""
    slots, counts = counted(2)
    slots.prefetch(adapters["a"])
    slots.prefetch(adapters["a"])
    assert on_device(slots, adapters) == "a"
    first, second = (slots.acquire([adapters["a"]]) for _ in range(2))
    assert first[adapters["a"].digest] is second[adapters["a"].digest]
    assert len(counts.seconds) == 1


def test_a_prefetch_never_evicts_what_runs_or_what_is_waited_for(
    adapters: dict[str, Adapter],
) -> None:
    """It takes the slots of neither the last batch nor earlier prefetches; a batch may take those
    of the latter."""
    slots, counts = counted(3)
    acquire(slots, adapters, "ab")
    slots.prefetch(adapters["c"])
    slots.prefetch(adapters["d"])
    assert on_device(slots, adapters) == "abc"
    acquire(slots, adapters, "b")  # a runs no more
    slots.prefetch(adapters["d"])
    slots.prefetch(adapters["e"])
    assert on_device(slots, adapters) == "bcd"
    acquire(slots, adapters, "ef")
    assert on_device(slots, adapters) == "def"
    assert counts.evictions == 3


def test_a_prefetch_that_fails_is_left_to_its_batch(adapters: dict[str, Adapter]) -> None:
    """It is counted and raises nothing: the batch meets the same error, and has somebody to
    tell."""
    slots, counts = counted(2, device=torch.device("cuda:99"))
    slots.prefetch(adapters["a"])
    assert on_device(slots, adapters) == ""
    assert (len(counts.seconds), counts.failures) == (0, 1)


def test_callbacks(adapters: dict[str, Adapter]) -> None:
    """Each load is told with its seconds, each eviction once; a resident adapter is neither."""
    slots, counts = counted(2)
    acquire(slots, adapters, "aabb")
    acquire(slots, adapters, "ba")
    assert len(counts.seconds) == 2
    assert counts.evictions == 0
    acquire(slots, adapters, "c")
    assert len(counts.seconds) == 3
    assert counts.evictions == 1
    assert all(seconds >= 0 for seconds in counts.seconds)


def test_weights_are_not_copied_per_batch(adapters: dict[str, Adapter]) -> None:
    """A second batch of an adapter gets the very same tensors as the first."""
    slots, counts = counted(4)
    first = slots.acquire([adapters["b"], adapters["c"]])
    second = slots.acquire([adapters["c"], adapters["b"], adapters["c"]])
    assert second.keys() == first.keys()
    assert all(second[digest] is resident for digest, resident in first.items())
    assert len(counts.seconds) == 2


def test_keyed_by_digest(bert: Backbone) -> None:
    """Two versions of a task take two slots, and equal files take one, whoever parsed them."""
    old, new = (random_adapter(bert, "task", ["no", "yes"], seed=seed)[2] for seed in (1, 2))
    slots, counts = counted(4)
    residents = slots.acquire([parse(old), parse(new), parse(old)])
    assert set(residents) == {parse(old).digest, parse(new).digest}
    assert len(counts.seconds) == 2


def test_a_load_that_fails_takes_no_slot(adapters: dict[str, Adapter]) -> None:
    """An adapter that the device does not take is counted as a failure, not as a load, is not
    resident, and is named in the refusal."""
    slots, counts = counted(2, device=torch.device("cuda:99"))
    with pytest.raises(AdapterNotLoaded, match="of task 'a' could not be put on the device") as it:
        acquire(slots, adapters, "a")
    assert it.value.adapter_key == adapters["a"].digest
    assert on_device(slots, adapters) == ""
    assert (len(counts.seconds), counts.failures) == (0, 1)


def test_more_adapters_than_slots(adapters: dict[str, Adapter]) -> None:
    """Asking for more adapters than there are slots is a mistake of ours, and changes nothing."""
    slots, counts = counted(2)
    acquire(slots, adapters, "ab")
    with pytest.raises(AssertionError):
        acquire(slots, adapters, "bcd")
    assert on_device(slots, adapters) == "ab"
    assert (len(counts.seconds), counts.evictions) == (2, 0)


@pytest.mark.parametrize("device_dtype", DTYPES)
@pytest.mark.parametrize("file_dtype", DTYPES)
def test_dtypes(file_dtype: torch.dtype, device_dtype: torch.dtype, bert: Backbone) -> None:
    """Whatever dtype a file has, its adapter is resident in the backbone's dtype, laid out as in
    the file, and its head in float32."""
    _, tensors, data = random_adapter(
        bert, "task", ["a", "b", "c"], bottleneck=5, dense=True, dtype=file_dtype
    )
    adapter = parse(data)
    slots, _ = counted(1, device_dtype)
    resident = slots.acquire([adapter])[adapter.digest]
    weights = resident.weights
    assert isinstance(weights, Bottleneck)
    for found, name in (
        (weights.down, "down.weight"),
        (weights.down_bias, "down.bias"),
        (weights.up, "up.weight"),
        (weights.up_bias, "up.bias"),
    ):
        assert torch.equal(found, tensors[name].to(device_dtype))
        assert found.is_contiguous()
    assert resident.head.dense is not None
    for pair, name in ((resident.head.dense, "head.dense"), (resident.head.out, "head.out")):
        for found, kind in zip(pair, ("weight", "bias"), strict=True):
            assert found.dtype == torch.float32
            assert torch.equal(found, tensors[f"{name}.{kind}"].float())


@pytest.mark.parametrize("file_dtype", DTYPES)
def test_predictions_of_every_file_dtype(file_dtype: torch.dtype, bert: Backbone) -> None:
    """A file of any dtype predicts what the reference model of that file does."""
    adapter = parse(random_adapter(bert, "task", ["a", "b"], dense=True, dtype=file_dtype)[2])
    rows = encode(bert.tokenizer, [("it is a good film",), ("awful",)], adapter.spec.max_length)
    found = Engine(bert, Slots(1, CPU, torch.float32), CPU, torch.float32).run(
        [Row(adapter, r.ids, r.types) for r in rows]
    )
    with torch.no_grad():
        expected = from_adapter(bert, adapter)(collate(rows))
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0.0, atol=1e-5)


def test_what_is_held(bert: Backbone, adapters: dict[str, Adapter]) -> None:
    """The bytes of the adapters on the device are told by kind: the head in float32, all else in
    the backbone's dtype; an evicted one is no longer counted."""
    lora = parse(random_adapter(bert, "lora", ["no", "yes"], ranks={"query": 4, "up": 2})[2])
    slots, _ = counted(2, torch.float16)
    assert slots.held() == {"bottleneck": [], "lora": []}

    def wanted(adapter: Adapter) -> int:
        head = sum(t.numel() for name, t in adapter.tensors.items() if name.startswith("head."))
        return 2 * (adapter.parameters - head) + 4 * head

    slots.acquire([adapters["a"], lora])
    assert slots.held() == {"bottleneck": [wanted(adapters["a"])], "lora": [wanted(lora)]}
    slots.acquire([adapters["b"], adapters["c"]])
    held = slots.held()
    assert sorted(held["bottleneck"]) == sorted(wanted(adapters[task]) for task in "bc")
    assert held["lora"] == []


def test_memory_per_adapter(bert: Backbone) -> None:
    """A resident takes at most 1.2 times its file's bytes where both have the same dtype."""
    adapter = parse(random_adapter(bert, "task", ["a", "b"], bottleneck=32, dtype=torch.float32)[2])
    slots, _ = counted(1)
    resident = slots.acquire([adapter])[adapter.digest]
    weights, head = resident.weights, resident.head
    assert isinstance(weights, Bottleneck)
    tensors = [weights.down, weights.down_bias, weights.up, weights.up_bias]
    tensors += [*head.out, *(head.dense or ())]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors
    }
    assert sum(storages.values()) <= 1.2 * adapter.bytes


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(_TASKS, _TASKS.map(sorted)), max_size=20))
def test_never_more_than_the_slots(
    steps: list[tuple[set[str], list[str]]], adapters: dict[str, Adapter]
) -> None:
    """For any batches and prefetches: at most so many adapters as slots are resident, a batch gets
    its own and keeps them, and loads less evictions are what is resident."""
    slots, counts = counted(3)
    for batch, ahead in steps:
        residents = slots.acquire([adapters[task] for task in sorted(batch)])
        assert {resident.spec.task for resident in residents.values()} == batch
        for task in ahead:
            slots.prefetch(adapters[task])
        resident_now = on_device(slots, adapters)
        assert batch <= set(resident_now)
        assert len(resident_now) <= 3
        assert len(counts.seconds) - counts.evictions == len(resident_now)


def test_the_engine_with_fewer_slots_than_tasks(
    bert: Backbone, adapters: dict[str, Adapter]
) -> None:
    """Eight tasks over two slots, through the batcher: no batch has more adapters than slots, every
    answer is right."""
    slots, counts = counted(2)
    engine = Engine(bert, slots, CPU, torch.float32)
    rows = [
        Row(adapter, tokens.ids, tokens.types)
        for adapter in adapters.values()
        for tokens in encode(bert.tokenizer, [("a good film",), ("the plot was awful",)], 64)
    ]
    reports: list[BatchReport] = []

    async def serve() -> list[list[float]]:
        batcher = Batcher(
            engine.run, max_tokens=1000, max_queue_rows=100, max_adapters=2, observe=reports.append
        )
        batcher.start()
        outcomes = await batcher.submit(rows)
        await batcher.close()
        return [outcome.value for outcome in outcomes]

    found = asyncio.run(serve())
    assert [report.tasks for report in reports] == [2, 2, 2, 2]
    assert (len(counts.seconds), counts.evictions) == (8, 6)
    for row, logits in zip(rows, found, strict=True):
        alone = Engine(bert, Slots(1, CPU, torch.float32), CPU, torch.float32).run([row])[0]
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(alone), rtol=0.0, atol=1e-5)


def test_an_adapter_that_cannot_be_loaded_fails_its_rows_alone(
    bert: Backbone, adapters: dict[str, Adapter]
) -> None:
    """Of a batch of three adapters, one of which the device cannot take, the rows of the others get
    their logits, and the failing one's get its refusal."""
    slots, counts = counted(3)
    engine = Engine(bert, slots, CPU, torch.float32)
    broken = replace(adapters["b"], tensors={})
    (tokens,) = encode(bert.tokenizer, [("a good film",)], 64)
    rows = [Row(it, tokens.ids, tokens.types) for it in (adapters["a"], broken, adapters["c"])] * 2

    async def serve() -> list[Any]:
        batcher = Batcher(engine.run, max_tokens=1000, max_queue_rows=100, max_adapters=3)
        batcher.start()
        requests = [batcher.submit([row]) for row in rows]
        ends = await asyncio.gather(*requests, return_exceptions=True)
        await batcher.close()
        return ends

    for row, end in zip(rows, asyncio.run(serve()), strict=True):
        if row.adapter is broken:
            assert isinstance(end, AdapterNotLoaded)
            assert "of task 'b' could not be put on the device" in str(end)
        else:
            alone = Engine(bert, Slots(1, CPU, torch.float32), CPU, torch.float32).run([row])[0]
            assert end[0].value == pytest.approx(alone, abs=1e-5)
    assert counts.failures == 1
