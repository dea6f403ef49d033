"""A comparison in which something of this machine fails: no client's answer suffers by it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from adapters.backbone import Backbone
from adapters.entry import Entry
from adapters.file import parse
from adapters.store import Store
from adapters.text import Tokens
from adapters.traffic import Canary, Rollback, Shadow, Split
from service.batcher import BatchReport, Outcome
from service.predictor import Admitted, Role, Signature
from service.traffic import rollouts as module
from service.traffic.rollouts import Rollouts
from tests.tiny import random_adapter

TASK = "sst2"
ROWS = 3


@pytest.fixture
def store(tmp_path: Path, bert: Backbone) -> Iterator[Store]:
    """Two versions, of which the second is the canary and the shadow."""
    with Store(tmp_path / "store") as store:
        active, other = (
            store.put(
                parse(random_adapter(bert, TASK, ["no", "yes"], seed=seed)[2]), activate=not seed
            )[0].digest
            for seed in (0, 1)
        )
        split = Split(
            active=active,
            canary=Canary(other, 50),
            shadow=Shadow(other, 100),
            rollback=Rollback(errors=0.5, after=ROWS),
        )
        store.set_split(TASK, split)
        yield store


def fails(*_: Any) -> Any:
    raise RuntimeError("something of this machine")


async def fails_later(*_: Any) -> Any:
    fails()


async def at_once(job: Callable[[], bool]) -> bool:
    return job()


def opened(store: Store, **others: Any) -> Rollouts:
    """Rollouts whose parts do nothing, but for some."""
    parts: dict[str, Any] = {
        "held": lambda _: None,
        "bring": fails_later,
        "offer": fails,
        "write": at_once,
        "rolled_back": lambda *_: None,
    }
    return Rollouts(store, **{**parts, **others})


def answered(entry: Entry, role: Role) -> tuple[list[Any], list[Any]]:
    """The rows of one request and their outcomes."""
    assert entry.split is not None
    digest = entry.split.active if role == "active" else entry.split.roles()[role]
    signature = Signature(TASK, ("no", "yes"), "single_label_classification", False, 128, None)
    admitted = Admitted(signature, digest, None, role, 1)
    report = BatchReport(*[1] * len(BatchReport.__dataclass_fields__))
    tokens = Tokens(*[[1]] * len(Tokens.__dataclass_fields__))
    return [(admitted, tokens)], [Outcome([0.0, 1.0], 0.0, report)]


def test_a_comparison_that_fails(store: Store) -> None:
    """Where another version cannot be asked, for whatever reason, the answer stands; the log has
    the reason, and what was answered is counted."""
    held = Admitted(
        Signature(TASK, ("no", "yes"), "single_label_classification", False, 128, None), "h", None
    )
    rollouts = opened(store, held=lambda _: held)

    async def run() -> None:
        rollouts.choose(TASK, None)
        for role in ("active", "canary"):
            rollouts.ran(*answered(store.entry(TASK), role))

    with capture_logs() as logged:
        asyncio.run(run())
    assert {(line["event"], line["exc_info"]) for line in logged} == {
        ("a request was answered, but not counted or compared in full", True)
    }
    rollout = rollouts.of(TASK)
    assert rollout is not None
    assert [rollout.seen[role].requests for role in ("active", "canary")] == [1, 1]


def test_a_version_that_cannot_be_brought(store: Store) -> None:
    """A shadow that cannot be loaded, for a reason that nobody foresaw, is counted as failed, with
    a line in the log."""
    rollouts = opened(store)

    async def run() -> None:
        rollouts.choose(TASK, None)
        rollouts.ran(*answered(store.entry(TASK), "active"))
        await asyncio.gather(*rollouts._loading)

    with capture_logs() as logged:
        asyncio.run(run())
    assert [line["event"] for line in logged] == ["a version could not be compared"]
    rollout = rollouts.of(TASK)
    assert rollout is not None
    assert rollout.seen["shadow"].errors == 1


def test_an_end_that_fails_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a canary is written again after any error, and said once."""
    monkeypatch.setattr(module, "RETRY_SECONDS", 0)
    tries = []

    async def write(job: Callable[[], bool]) -> bool:
        tries.append(job)
        return fails() if len(tries) < 4 else job()

    rollouts = opened(store, write=write)
    split = store.entry(TASK).split
    assert split is not None

    async def run() -> None:
        rollouts.choose(TASK, None)
        for _ in range(ROWS):
            rollouts.failed(TASK, split.roles()["canary"], RuntimeError("broken"))
        await asyncio.gather(*rollouts._ending)

    with capture_logs() as logged:
        asyncio.run(run())
    ended = store.entry(TASK).split
    assert ended is not None
    assert ended.canary is None
    assert ended.left is not None
    assert sum("its end cannot be written" in line["event"] for line in logged) == 1


def test_failures_are_said_once_a_minute(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary that fails at each request has one line in the log each minute, which says how often
    it failed since the last one."""
    entry = store.entry(TASK)
    assert entry.split is not None
    store.set_split(TASK, Split(active=entry.split.active, canary=entry.split.canary))
    rollouts, now = opened(store), [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    rollouts.choose(TASK, None)
    with capture_logs() as logged:
        for _ in range(3):
            for _ in range(10):
                rollouts.failed(TASK, entry.split.roles()["canary"], RuntimeError("broken"))
            now[0] += 61
    assert [line["failures"] for line in logged] == [1, 10, 10]
    rollout = rollouts.of(TASK)
    assert rollout is not None
    assert rollout.seen["canary"].errors == 30
