"""A bucket that gives no answer: what a store in it still serves, which writes are refused, and
what becomes of a write whose answer is lost."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest

from adapters import disk
from adapters.bucket.changes import Change
from adapters.bucket.log import Log
from adapters.bucket.objects import connect
from adapters.bucket.store import BucketStore
from adapters.errors import (
    DamagedAdapter,
    StoreError,
    StoreUnreachable,
    WriteUnknown,
    for_operators,
)
from adapters.file import parse
from tests.adapters.faulty_bucket import BACKBONE, Faulty, Replica, gone
from tests.faulty_s3 import FaultyS3, served
from tests.service.conftest import until


def test_the_state_is_kept_for_a_part_of_the_time(
    tmp_path: Path, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that takes a second to write is written once in 20 seconds, whatever is changed; the
    last one is on the disk once the store is closed, and begins a start without the bucket."""
    now, written = 0.0, 0
    write = disk.write_atomically

    def slow(path: Path, data: bytes, **more: Any) -> None:
        nonlocal now, written
        write(path, data, **more)
        if path.name.startswith("state-"):
            now, written = now + 1, written + 1

    monkeypatch.setattr(disk, "write_atomically", slow)
    monkeypatch.setattr("adapters.bucket.kept_state.clock", lambda: now)
    bucket = Faulty()
    with BucketStore(bucket, tmp_path, backbone=BACKBONE) as store:
        before = written
        for data in files:
            store.put(parse(data))
        assert written == before
        now += 21
        store.refresh()
        assert written == before + 1
        store.activate("sst2", parse(files[0]).digest)
        assert written == before + 1
    bucket.before = gone
    with BucketStore(bucket, tmp_path, backbone=BACKBONE) as again:
        assert again.find("sst2").digest == parse(files[0]).digest


def test_writes_that_wait_for_one_another_fail_together(
    tmp_path: Path, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the bucket gives no answer to one write, those that waited for it meanwhile fail with
    it: they do not wait for the time limit one after the other."""
    bucket, reads = Faulty(), 0
    adapter = parse(files[0])
    with BucketStore(bucket, tmp_path, backbone=BACKBONE) as store:
        store.put(adapter)
        answers, ticks, refused = threading.Event(), itertools.count(), list[StoreError]()
        now = 0

        def clock() -> float:
            nonlocal now
            now = next(ticks)
            return now

        def hang(name: str, _key: str) -> None:
            nonlocal reads
            if name == "read":
                reads += 1
                answers.wait(20)
                raise StoreUnreachable("no answer")

        def write() -> None:
            try:
                store.activate("sst2", adapter.digest)
            except StoreError as error:
                refused.append(error)

        monkeypatch.setattr("adapters.bucket.log.clock", clock)
        bucket.before = hang
        threads = [threading.Thread(target=write) for _ in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: now >= 5)  # the one that reads has looked at the clock twice, the others once
        answers.set()
        for thread in threads:
            thread.join()
        assert [type(error) for error in refused] == [StoreUnreachable] * 5
        assert reads == 1
        bucket.before = lambda *_: None
        store.activate("sst2", adapter.digest)


def test_a_write_to_a_lost_bucket_is_refused_at_once(tmp_path: Path, files: list[bytes]) -> None:
    """A store that follows its log and could not read it last does not try to write."""
    bucket, calls = Faulty(), list[str]()
    with BucketStore(bucket, tmp_path, backbone=BACKBONE) as store:
        store.follow(0.01)
        bucket.before = gone
        until(lambda: not store.reached)
        bucket.after = lambda name, _key: calls.append(name)
        with pytest.raises(StoreUnreachable, match="gave no answer when it was read last"):
            store.put(parse(files[0]))
        assert calls == []
        bucket.before = lambda *_: None
        until(lambda: store.reached)
        store.put(parse(files[0]))


def test_a_file_of_a_lost_bucket_is_refused_at_once(
    bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """A store that could not read its log last does not try to fetch a file that it has no copy
    of; one that it has a copy of is read."""
    first, second = (parse(data) for data in files[:2])
    here = replica()
    here.put(first)
    replica().put(second)
    here.refresh()
    here.follow(0.01)
    asked: list[str] = []

    def lost(name: str, key: str) -> None:
        if key.startswith("blobs/"):
            asked.append(key)
        gone(name, key)

    bucket.before = lost
    until(lambda: not here.reached)
    with pytest.raises(StoreUnreachable, match="gave no answer when it was read last"):
        here.get("sst2", second.digest)
    assert asked == []
    assert here.get("sst2", first.digest).digest == first.digest


def test_a_lost_bucket_is_told_once(bucket: Faulty, replica: Replica) -> None:
    """However many polls fail, it is told once, and once more when the bucket is there again."""
    told: list[str | None] = []
    store = replica(told=lambda error: told.append(error and str(error)))
    for before, state in ((gone, ["nobody answers"]), (bucket.before, ["nobody answers", None])):
        bucket.before = before
        for _ in range(3):
            with contextlib.suppress(StoreUnreachable):
                store.refresh()
        assert told == state


def test_a_write_whose_answer_was_lost(
    bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """P3: a write that landed and whose answer did not come is found by its nonce, and is made
    once."""
    here, there = replica(), replica()
    lost = iter([True])

    def lose(_: str, key: str) -> None:
        if key.startswith("log/") and next(lost, False):
            gone()

    bucket.after = lose
    here.put(parse(files[0]))
    assert not list(lost)
    there.refresh()
    assert there.generation == here.generation == 2
    assert there.entries() == here.entries()


def test_a_write_that_another_one_overtook(
    bucket: Faulty, replica: Replica, files: list[bytes], mrpc: bytes
) -> None:
    """P3: a write that did not land, whose generation another writer then took, is made at the next
    one."""
    here, there = replica(), replica()
    overtaking = iter([True])

    def overtake(name: str, key: str) -> None:
        if name == "create" and key.startswith("log/") and next(overtaking, False):
            there.put(parse(mrpc))
            gone()

    bucket.before = overtake
    here.put(parse(files[0]))
    there.refresh()
    assert [entry.task for entry in there.entries()] == ["mrpc", "sst2"]
    assert there.generation == here.generation == 3


def test_a_write_of_which_nobody_knows(
    bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """P3: where the bucket is away during a write the error says that the outcome is unknown; where
    it was away before, that it gives no answer."""
    store = replica()

    def away(name: str, key: str) -> None:
        if name == "create" and key.startswith("log/"):
            bucket.before = gone
            gone()

    bucket.before = away
    with pytest.raises(WriteUnknown, match="whether the change of task 'sst2' was written to"):
        store.put(parse(files[0]))
    with pytest.raises(StoreUnreachable) as caught:
        store.delete_task("sst2")
    assert type(caught.value) is StoreUnreachable
    bucket.before = lambda *_: None
    assert store.put(parse(files[0]))[1]


def test_without_the_bucket(
    bucket: Faulty, replica: Replica, files: list[bytes], mrpc: bytes
) -> None:
    """P4: where the bucket is away, what is in memory and on the disk is served, also by a replica
    that begins then; a file that is not at hand, and a write, are refused."""
    store = replica("one")
    kept, _ = store.put(parse(files[0]))
    replica().put(parse(mrpc))
    store.refresh()
    store.close()
    bucket.before = gone
    again = replica("one")
    assert not again.reached
    assert again.age == float("inf")
    assert "is served as it was seen last" in again.problems[0]
    assert again.get("sst2").digest == kept.digest
    with pytest.raises(StoreUnreachable, match="nobody answers"):
        again.get("mrpc")
    for write in (lambda: again.put(parse(files[1])), lambda: again.delete_task("sst2")):
        with pytest.raises(StoreUnreachable):
            write()
    with pytest.raises(StoreUnreachable):
        again.refresh()
    bucket.before = lambda *_: None
    again.refresh()
    assert again.reached
    assert again.get("mrpc").spec.task == "mrpc"
    again.delete_task("sst2")
    assert [entry.task for entry in again.entries()] == ["mrpc"]


def test_a_first_start_without_the_bucket(bucket: Faulty, replica: Replica) -> None:
    """Where the bucket is away and the disk knows nothing of it, a store cannot be opened."""
    bucket.before = gone
    with pytest.raises(StoreUnreachable, match="holds no earlier state of this store"):
        replica()


def test_another_log_than_the_kept_one(
    bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """A replica that began without its bucket, and then finds another log there, says so and does
    not mix them."""
    replica("one").put(parse(files[0]))
    bucket.before = gone
    again = replica("one")
    for key in [found["path"] for page in obstore.list(bucket._store) for found in page]:
        obstore.delete(bucket._store, key)
    bucket.before = lambda *_: None
    replica()
    with pytest.raises(StoreError, match="has another log than the one"):
        again.refresh()
    assert not again.reached


def test_a_client_is_not_told_where_the_bucket_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a lost bucket's errors say to a client has no address of its server, also where one
    error becomes another; what operators read has it."""
    for name, value in {"ALLOW_HTTP": "true", "REGION": "r", "SKIP_SIGNATURE": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3 = FaultyS3()
    with served(s3) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT", endpoint)
        objects = connect("s3://adamix/store", 1)
        log = Log(objects, "a writer", 0.1, lambda _: None)
        change = Change(change="delete_task", task="sst2")
        s3.write_faults.extend(["gone"] * 100)
        errors = [_raised(lambda: log.commit(lambda _: change))]
    errors.append(_raised(log.refresh))
    errors.append(_raised(lambda: BucketStore(objects, tmp_path, backbone=BACKBONE, timeout=1)))
    assert isinstance(errors[0], WriteUnknown)
    for error in errors:
        assert "127.0.0.1" not in str(error)
        assert endpoint in for_operators(error)


def _raised(job: Callable[[], object]) -> StoreUnreachable:
    with pytest.raises(StoreUnreachable) as caught:
        job()
    return caught.value


def test_a_list_reads_headers_alone(
    bucket: Faulty, replica: Replica, files: list[bytes], mrpc: bytes
) -> None:
    """A replica without copies asks the bucket for the headers of what it lists, and for no whole
    file; a damaged one is found all the same."""
    for data in (*files, mrpc):
        replica("one").put(parse(data))
    fetched: list[str] = []
    bucket.before = lambda name, key: fetched.append(key) if name == "read" else None
    fresh = replica("two")
    for entry in fresh.entries():
        known = replica("one").summary(entry.task, entry.listed_version.digest)
        assert fresh.summary(entry.task, entry.listed_version.digest) == known
    assert not [key for key in fetched if key.startswith("blobs/")]
    digest = fresh.find("mrpc").digest
    bucket.write(f"blobs/{digest}.safetensors", b"\0" * 100)
    with pytest.raises(DamagedAdapter, match="is damaged"):
        replica("three").summary("mrpc", digest)
