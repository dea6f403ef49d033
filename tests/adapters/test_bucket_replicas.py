"""Replicas on one bucket: each sees what the others wrote, begins with a snapshot, keeps copies of
the files, and refuses a bucket that it cannot share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import obstore
import pytest

from adapters.backbone import Backbone
from adapters.bucket import log
from adapters.bucket.gc import Collected, collect
from adapters.bucket.objects import NotPermitted, connect
from adapters.bucket.store import BucketStore
from adapters.errors import DamagedAdapter, StoreError
from adapters.file import Adapter, parse
from adapters.traffic import Canary, Left, Split
from tests.adapters.faulty_bucket import BACKBONE, Faulty, Replica
from tests.buckets import rclone
from tests.tiny import random_adapter


def test_a_poll_sees_what_was_written_before(replica: Replica, files: list[bytes]) -> None:
    """A replica knows, after a refresh, every upload, activation and deletion that another one had
    acknowledged, and calls for what belongs to a deleted task."""
    deleted: list[str] = []
    here, there = replica(), replica(deleted=deleted.append)
    a, b = (here.put(parse(data))[0] for data in files[:2])
    here.activate("sst2", a.short)
    assert "sst2" not in there
    there.refresh()
    assert there.age < 60
    assert (there.generation, there.entries()) == (here.generation, here.entries())
    assert there.get("sst2").digest == a.digest
    there.delete_version("sst2", b.short)
    here.refresh()
    assert here.entry("sst2").versions == (a,)
    here.delete_task("sst2")
    there.refresh()
    assert not len(there)
    assert deleted == ["sst2"]


def test_one_writer_wins_a_generation(replica: Replica, bert: Backbone) -> None:
    """P3: of four replicas that write at once, each change is in the log once, and all of them see
    the same in the end."""
    replicas = [replica() for _ in range(4)]
    adapters = [
        [
            parse(random_adapter(bert, f"task-{i}-{j}", ["a", "b"], bottleneck=1)[2])
            for j in range(4)
        ]
        for i in range(4)
    ]
    before = replicas[0].generation

    def write(store: BucketStore, own: list[Adapter]) -> None:
        for adapter in own:
            store.put(adapter)

    threads = [
        threading.Thread(target=write, args=pair) for pair in zip(replicas, adapters, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in replicas:
        store.refresh()
        assert store.generation == before + 16
        assert len(store) == 16


def test_following(replica: Replica, files: list[bytes]) -> None:
    """A store that follows refreshes at once when it is asked to, and says why it could not."""
    here, there = replica(), replica()
    there.follow(3600)
    here.put(parse(files[0]))
    there.soon().result(timeout=30)
    assert "sst2" in there


def test_writers_whose_clocks_disagree(
    replica: Replica, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that jumps back neither disorders a task's versions nor changes a store's age."""
    store = replica()
    a, _ = store.put(parse(files[0]))
    monkeypatch.setattr("time.time", lambda: 1.0)
    b, _ = store.put(parse(files[1]))
    assert store.entry("sst2").versions == (a, b)
    assert 0 <= store.age < 60


def test_snapshots_save_the_reading_of_the_log(
    bucket: Faulty, replica: Replica, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica begins with the newest snapshot and reads only the changes after it; one without
    its snapshot reads the whole log."""
    monkeypatch.setattr(log, "SNAPSHOT_EVERY", 4)
    store = replica()
    for _ in range(3):
        for data in files[:2]:
            store.put(parse(data))
    store.put(parse(files[2]))
    assert [each.key[-7:] for each in bucket.under("snapshots")][:1] == ["04.json"]
    read: list[str] = []
    bucket.before = lambda name, key: read.append(key) if name == "read" else None
    again = replica()
    assert again.entries() == store.entries()
    changes = [key for key in read if key.startswith("log/")]
    assert len(changes) == store.generation % 4 + 1
    obstore.delete(bucket._store, [each.key for each in bucket.under("snapshots")])
    assert replica().entries() == store.entries()


def test_files_go_by_an_operator_s_command_alone(
    bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """P6: deletions leave the files in the bucket; `collect` removes those that no version names
    and that are older than the grace period, and no others."""
    store = replica()
    versions = [store.put(parse(data))[0] for data in files]
    store.delete_version("sst2", versions[0].short)
    kept = [each.key for each in bucket.under("blobs")]
    assert len(kept) == 3
    assert collect(bucket, older_than=3600) == Collected([], [])
    assert collect(bucket, older_than=0).moved == [f"blobs/{versions[0].digest}.safetensors"]
    assert len([each.key for each in bucket.under("blobs")]) == 2
    assert replica().get("sst2").digest == versions[2].digest


def test_a_damaged_file(bucket: Faulty, replica: Replica, files: list[bytes], mrpc: bytes) -> None:
    """A file with another sha256 is put into quarantine and fetched once more; where the bucket's
    own is damaged, that task alone is refused, until its upload mends it."""
    store = replica("one")
    version, _ = store.put(parse(files[0]))
    store.put(parse(mrpc))
    copy = store._blobs.path(version.digest)
    copy.write_bytes(b"rotten")
    store._cache.drop(version.digest)
    assert store.get("sst2").digest == version.digest
    quarantined = copy.parent.parent / "quarantine" / copy.name
    assert quarantined.read_bytes() == b"rotten"
    bucket.write(f"blobs/{version.digest}.safetensors", b"worse")
    fetched: list[float] = []
    fresh = replica(fetched=fetched.append)
    with pytest.raises(DamagedAdapter, match=r"is damaged: its sha256 is .*; expected"):
        fresh.get("sst2")
    assert len(fetched) == 2
    assert fresh.get("mrpc").spec.task == "mrpc"
    fresh.put(parse(files[0]))
    assert replica().get("sst2").digest == version.digest


def test_a_file_that_is_gone(bucket: Faulty, replica: Replica, files: list[bytes]) -> None:
    """A version whose file somebody deleted from the bucket is refused as damaged."""
    version, _ = replica().put(parse(files[0]))
    bucket.delete(f"blobs/{version.digest}.safetensors")
    with pytest.raises(DamagedAdapter, match="expected the adapter to be uploaded again"):
        replica().get("sst2")


def test_copies_are_bounded(replica: Replica, files: list[bytes]) -> None:
    """Copies beyond their bytes leave the disk, those used longest ago first, and come again."""
    store = replica(copies_bytes=2 * len(files[0]) + 100, cache_bytes=0)
    digests = [store.put(parse(data))[0].digest for data in files]
    assert [store._blobs.path(each).exists() for each in digests] == [False, True, True]
    assert store.get("sst2", digests[0]).digest == digests[0]
    assert [store._blobs.path(each).exists() for each in digests] == [True, False, True]


def test_objects_of_others(bucket: Faulty, replica: Replica) -> None:
    """A prefix with objects that are no store's is refused with their names."""
    bucket.write("holiday/beach.jpg", b"x")
    with pytest.raises(StoreError, match="holds 'holiday', which is no store's; expected a prefix"):
        replica()


def test_a_change_of_a_newer_format(bucket: Faulty, replica: Replica, files: list[bytes]) -> None:
    """A change of a newer format is not passed over: the error says which, and the state stays as
    it was before it."""
    store = replica()
    store.put(parse(files[0]))
    bucket.create(log.key_of(3), b'{"format": 3, "change": "rename"}')
    for act in (store.refresh, lambda: store.put(parse(files[1])), replica):
        with pytest.raises(StoreError, match=r"log/0{19}3\.json.* has format 3, of an"):
            act()
    assert store.generation == 2
    assert not store.reached
    assert store.get("sst2").digest == parse(files[0]).digest
    store.follow(0.01)
    assert store.soon().exception(20) is not None
    with pytest.raises(StoreError, match="has format 3"):  # not that the bucket gives no answer
        store.put(parse(files[1]))


def test_a_split_is_of_a_newer_format(
    bucket: Faulty, replica: Replica, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A split is in the log and in snapshots under a format that a service without splits refuses;
    others begin with the snapshot, and once it has ended, snapshots have the first format again."""
    monkeypatch.setattr(log, "SNAPSHOT_EVERY", 1)
    store = replica()
    a, b = (store.put(parse(data), activate=not i)[0] for i, data in enumerate(files[:2]))

    def formats(generation: int) -> list[int]:
        keys = (log.key_of(generation), f"snapshots/{generation:020d}.json")
        return [msgspec.json.decode(bucket.read(key) or b"")["format"] for key in keys]

    split = Split(active=a.digest, canary=Canary(b.digest, 5))
    store.set_split("sst2", split)
    assert formats(store.generation) == [2, 2]
    assert replica().entry("sst2").split == split
    store.activate("sst2", b.digest)
    assert formats(store.generation) == [1, 1]
    there = replica()
    assert (there.find("sst2"), there.entry("sst2").split) == (b, None)


def test_one_replica_ends_a_canary(replica: Replica, files: list[bytes]) -> None:
    """Of four replicas that end a canary at once, one does, and all know what it wrote."""
    replicas = [replica() for _ in range(4)]
    a, b = (replicas[0].put(parse(data), activate=not i)[0] for i, data in enumerate(files[:2]))
    divided = Split(active=a.digest, canary=Canary(b.digest, 5))
    replicas[0].set_split("sst2", divided)
    generation = replicas[0].generation
    with ThreadPoolExecutor() as threads:
        ended = [
            threads.submit(store.end_canary, "sst2", divided, Left(b.digest, f"as {i} saw", i))
            for i, store in enumerate(replicas)
        ]
    (winner,) = (i for i, done in enumerate(ended) if done.result())
    for store in replicas:
        store.refresh()
        split = store.entry("sst2").split
        assert split == Split(active=a.digest, left=Left(b.digest, f"as {winner} saw", winner))
        assert store.generation == generation + 1


def test_two_backbones_on_one_prefix(replica: Replica) -> None:
    """A service with another backbone than that of the store is refused with both."""
    replica()
    other = BACKBONE.model_copy(update={"name": "large", "fingerprint": "b" * 64})
    with pytest.raises(
        StoreError, match=r"is for the backbone 'tiny' .* runs 'large' .*expected a prefix of its"
    ):
        replica(backbone=other)


def test_a_bucket_without_rights_to_write(
    bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """Where the bucket's rights refuse a write, the store is served, and writes are refused with
    that reason."""
    replica().put(parse(files[0]))

    def refuse(name: str, _: str) -> None:
        if name in ("create", "write"):
            raise NotPermitted("the bucket's rights do not let this service write")

    bucket.before = refuse
    store = replica()
    assert store.get("sst2").spec.task == "sst2"
    assert "rights" in (store.why_read_only or "")
    with pytest.raises(StoreError, match="is read-only: the bucket's rights"):
        store.delete_task("sst2")


def test_a_bucket_that_ignores_conditions(
    tmp_path: Path, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5: rclone's S3 server, which creates an object twice, is refused."""
    (tmp_path / "s3").mkdir()
    with rclone(tmp_path / "s3") as server:
        server.export(monkeypatch)
        with pytest.raises(StoreError, match="ignores the condition of a write"):
            replica(objects=connect(server.url("store"), 5), timeout=5)
