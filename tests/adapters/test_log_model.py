"""The log in a bucket against a model of it: several replicas write and poll while the bucket's
answers are late, wrong or lost. The bucket is an HTTP server, the client is the real one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from obstore.store import S3Store

from adapters.bucket import log
from adapters.bucket.changes import Change, State, decoded, encoded
from adapters.bucket.log import Log, key_of
from adapters.bucket.objects import Objects
from adapters.errors import StoreUnreachable, WriteUnknown
from tests.faulty_s3 import Fault, FaultyS3, WriteFault, served

LEASE = 1.0  # of the model's clock, as is all time here
REQUEST_SECONDS = 0.01  # that a request takes
OUTCOME_SECONDS = 0.2  # for which the outcome of a write is asked for
SNAPSHOT_EVERY = 3
MOST_REPLICAS = 3
SHORTLY = timedelta(milliseconds=1)

TASKS, DIGESTS = st.sampled_from(["a", "b"]), st.sampled_from([c * 64 for c in "123"])
FAULTS = st.sampled_from([None, None, *Fault.__args__])  # type: ignore[attr-defined]
WRITE_FAULTS = st.sampled_from([None, *WriteFault.__args__])  # type: ignore[attr-defined]


class Time:
    """The clock of all replicas, which only requests, pauses and the test move."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def folded(changes: list[Change]) -> dict[str, tuple[tuple[str, ...], str]]:
    """Each task's versions in their order, and the active one, after these changes."""
    tasks: dict[str, tuple[tuple[str, ...], str]] = {}
    for change in changes:
        if change.change == "delete_task":
            del tasks[change.task]
            continue
        versions, _ = tasks.get(change.task, ((), ""))
        if change.digest not in versions:
            assert change.change == "upload"
            versions = (*versions, change.digest)
        tasks[change.task] = (versions, change.digest)
    return tasks


def shown(state: State) -> dict[str, tuple[tuple[str, ...], str | None]]:
    """The same of a replica's state."""
    return {
        task: (tuple(version.digest for version in entry.versions), entry.active)
        for task, entry in state.entries.items()
    }


class Replica:
    """A log that is followed, with what it told."""

    def __init__(self, objects: Objects, name: str) -> None:
        self.told: list[Change] = []
        self.log = Log(objects, name, OUTCOME_SECONDS, self.told.append)
        self.seen = 0


class LogModel(RuleBasedStateMachine):
    """Every write has a number of its own, as its `bytes`, by which it is found in the log."""

    replicas = Bundle("replicas")

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.server, self.time = FaultyS3(), Time()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(log, "time", self.time)
        patch.setattr(log, "clock", lambda: self.time.now)
        patch.setattr(log, "SNAPSHOT_EVERY", SNAPSHOT_EVERY)
        patch.setattr(log, "READERS", 1)
        store = S3Store(
            "bucket",
            endpoint=self.stack.enter_context(served(self.server)),
            region="us-east-1",
            skip_signature=True,
            client_options={"allow_http": True, "timeout": timedelta(seconds=60)},
            retry_config={
                "max_retries": 1,  # so that a write that landed is also refused to its writer
                "retry_timeout": timedelta(seconds=60),
                "backoff": {"init_backoff": SHORTLY, "max_backoff": SHORTLY, "base": 2},
            },
        )
        self.objects = Objects("s3://bucket", store)
        self.server.asked = lambda: self.time.sleep(REQUEST_SECONDS)
        self.server.rival = self.rival
        self.server.meanwhile = self.meanwhile
        self.number = 0
        self.open: list[Replica] = []
        self.committed: dict[int, float] = {}  # when, of those that were told to be
        self.refused: set[int] = set()  # told not to be
        self.before: list[bytes] = []

    def rival(self, _: str) -> bytes:
        self.number += 1
        change = Change(
            change="upload", task="rival", digest=f"{self.number:064x}", bytes=self.number
        )
        return encoded(change.signed("rival"))

    def meanwhile(self, key: str) -> None:
        """Another writer makes that very change, if it is one, and is told so long before an answer
        comes that was given before."""
        if key.startswith("log/") and key not in self.server.objects:
            self.server.objects[key] = self.rival(key)
            self.committed[self.number] = self.time.now
        self.time.sleep(2 * LEASE)

    @property
    def changes(self) -> list[Change]:
        """What the bucket's log holds."""
        return [decoded(data, "") for data in self.entries()]

    def entries(self) -> list[bytes]:
        keys = sorted(key for key in self.server.objects if key.startswith("log/"))
        assert keys == [key_of(i + 1) for i in range(len(keys))]
        return [self.server.objects[key] for key in keys]

    @initialize(target=replicas)
    def first(self) -> Any:
        return multiple(self.opened(), self.opened())

    @precondition(lambda self: len(self.open) < MOST_REPLICAS)
    @rule(target=replicas)
    def start(self) -> Any:
        """A replica starts; it does not where the bucket gives no answer."""
        try:
            return self.opened()
        except StoreUnreachable:
            return multiple()

    def opened(self) -> Replica:
        replica = Replica(self.objects, f"replica-{self.number}")
        replica.log.load()
        self.open.append(replica)
        return replica

    @rule(replica=consumes(replicas))
    def stop(self, replica: Replica) -> None:
        self.open.remove(replica)

    @rule(replica=replicas, task=TASKS, digest=DIGESTS)
    def put(self, replica: Replica, task: str, digest: str) -> None:
        """As the store's: an upload, or an activation, or nothing."""

        def decide(state: State) -> Change | None:
            entry = state.entries.get(task)
            if entry is None or entry.version(digest) is None:
                return Change(change="upload", task=task, digest=digest, bytes=self.number)
            if entry.active == digest:
                return None
            return Change(change="activate", task=task, digest=digest, bytes=self.number)

        self.write(replica, decide)

    @rule(replica=replicas, task=TASKS)
    def delete(self, replica: Replica, task: str) -> None:
        def decide(state: State) -> Change | None:
            if task not in state.entries:
                return None
            return Change(change="delete_task", task=task, bytes=self.number)

        self.write(replica, decide)

    def write(self, replica: Replica, decide: Callable[[State], Change | None]) -> None:
        self.number += 1
        number = self.number

        def numbered(state: State) -> Change | None:
            self.number, after = number, self.number  # rivals came meanwhile
            change, self.number = decide(state), after
            return change

        try:
            if replica.log.commit(numbered):
                self.committed[number] = self.time.now
            else:
                self.refused.add(number)
        except WriteUnknown:
            pass  # it may be there, now or later, or not
        except StoreUnreachable:
            self.refused.add(number)

    @rule(replica=replicas)
    def poll(self, replica: Replica) -> None:
        """After a complete poll a replica knows all that was in the log before it; after another
        one its age is not less."""
        age, there = replica.log.age, len(self.changes)
        try:
            replica.log.refresh()
        except StoreUnreachable:
            assert replica.log.age >= age
        else:
            assert replica.log.state.generation >= there

    @rule(faults=st.lists(FAULTS, max_size=3), write_faults=st.lists(WRITE_FAULTS, max_size=4))
    def go_wrong(self, faults: list[Fault | None], write_faults: list[WriteFault | None]) -> None:
        self.server.faults.extend(faults)
        self.server.write_faults.extend(write_faults)

    @rule()
    def outage(self) -> None:
        """Long enough for the outcome of a write to stay unknown."""
        self.server.write_faults.append("lost")
        self.server.write_faults.extend(["gone"] * 20)

    @rule()
    def heal(self) -> None:
        self.server.heal()

    @rule()
    def deliver(self) -> None:
        self.server.deliver()

    @rule(seconds=st.floats(0.1, 2))
    def wait(self, seconds: float) -> None:
        self.time.sleep(seconds)

    @invariant()
    def the_log_only_grows(self) -> None:
        """Its generations have no gap, and none is ever another one."""
        found = self.entries()
        assert found[: len(self.before)] == self.before
        self.before = found

    @invariant()
    def a_write_is_there_once(self) -> None:
        """P3: what was told to be written is in the log once; what was told not to be, never; and
        what nobody knows of at most once."""
        numbers = [change.bytes for change in self.changes]
        assert len(set(numbers)) == len(numbers)
        assert self.committed.keys() <= set(numbers)
        assert self.refused.isdisjoint(numbers)

    @invariant()
    def each_replica_has_a_state_of_the_log(self) -> None:
        """Each replica's state is that of the log at its generation, which does not go back; each
        change was told once, in order."""
        for replica in self.open:
            generation = replica.log.state.generation
            assert generation >= replica.seen
            replica.seen = generation
            assert shown(replica.log.state) == folded(self.changes[:generation])
            told = len(replica.told)
            assert replica.told == self.changes[generation - told : generation]

    @invariant()
    def what_was_acknowledged_is_known(self) -> None:
        """P1: a write is acknowledged a lease after it was committed. From then on it is known to
        each replica that answers without another poll, since its last complete one began no longer
        ago than a lease."""
        numbers = [change.bytes for change in self.changes]
        acknowledged = [
            numbers.index(number) + 1
            for number, when in self.committed.items()
            if when + LEASE <= self.time.now
        ]
        for replica in self.open:
            if replica.log.age <= LEASE:
                assert replica.log.state.generation >= max(acknowledged, default=0)

    def teardown(self) -> None:
        """Once the bucket answers again, and all that was late has come, every replica has the
        same state, and so has one that starts then, from a snapshot or not."""
        try:
            self.server.heal()
            self.server.deliver()
            self.the_log_only_grows()
            fresh = Replica(self.objects, "fresh")
            fresh.log.load()
            self.open.append(fresh)
            for replica in self.open:
                replica.log.refresh()
                assert replica.log.state.generation == len(self.changes)
            self.a_write_is_there_once()
            self.each_replica_has_a_state_of_the_log()
        finally:
            self.stack.close()


def test_replicas_and_a_bucket_that_fails() -> None:
    """Whatever becomes of the bucket's answers, the log keeps the promises of the rules above."""
    run_state_machine_as_test(
        LogModel,
        settings=settings(max_examples=60, stateful_step_count=30, deadline=None),
    )
