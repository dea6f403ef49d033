"""The store in a bucket: what the folder has of a store, it has too; and what several processes on
one bucket are promised."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore
from typer.testing import CliRunner

from adapters import disk
from adapters.__main__ import app
from adapters.adapter_store import AdapterStore
from adapters.backbone import Backbone
from adapters.bucket import log
from adapters.bucket.gc import collect
from adapters.bucket.objects import NotPermitted, Objects, connect
from adapters.bucket.store import BucketStore
from adapters.errors import (
    AmbiguousVersion,
    BackboneMismatch,
    DamagedAdapter,
    NoActiveVersion,
    StoreError,
    StoreUnreachable,
    UnknownTask,
    UnknownVersion,
    VersionIsActive,
    WriteUnknown,
)
from adapters.file import Adapter, load, parse
from adapters.spec import BackboneRef
from adapters.store import Store
from tests.buckets import S3, rclone, seaweedfs
from tests.service.conftest import until
from tests.tiny import random_adapter

BACKBONE = BackboneRef(
    name="tiny", model_type="bert", hidden_size=32, num_layers=2, fingerprint="a" * 64
)
KINDS = ("folder", "memory", "seaweedfs")


@pytest.fixture(scope="module")
def files(bert: Backbone) -> list[bytes]:
    """Three versions of the task sst2."""
    return [
        random_adapter(bert, "sst2", ["negative", "positive"], bottleneck=2, seed=seed)[2]
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def mrpc(bert: Backbone) -> bytes:
    return random_adapter(bert, "mrpc", ["0", "1"], text_pair=True)[2]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


class Faulty(Objects):
    """A bucket in memory, whose calls fail as `faults` says: each of them is called before a call
    with its name and key, and may raise; what it returns is called after it."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        super().__init__("memory:///", store or MemoryStore())
        self.before: Callable[[str, str], None] = lambda *_: None
        self.after: Callable[[str, str], None] = lambda *_: None

    def read(self, key: str) -> bytes | None:
        self.before("read", key)
        return super().read(key)

    def create(self, key: str, data: bytes) -> bool:
        self.before("create", key)
        created = super().create(key, data)
        self.after("create", key)
        return created

    def write(self, key: str, data: bytes | bytearray | memoryview) -> None:
        self.before("write", key)
        super().write(key, data)


Open = Callable[..., AdapterStore]
_numbers = itertools.count()


@pytest.fixture(params=KINDS)
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Open one store of a kind, each time as another process would, after the last one closed."""
    kind, last = request.param, list[AdapterStore]()
    memory = Faulty()
    if kind == "seaweedfs":
        server = request.getfixturevalue("s3")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        objects = connect(server.url(f"contract-{next(_numbers)}"), 5)

    def another(**options: Any) -> AdapterStore:
        for store in last:
            store.close()
        last.clear()
        store: AdapterStore
        if kind == "folder":
            store = Store(tmp_path / "store", **options)
        else:
            bucket = memory if kind == "memory" else objects
            store = BucketStore(bucket, tmp_path / "cache", backbone=BACKBONE, **options)
        last.append(store)
        return store

    yield another
    for store in last:
        store.close()


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


def test_the_contract_of_a_store(opened: Open, files: list[bytes], mrpc: bytes) -> None:
    """What is put, activated and deleted in a store of any kind is so at once and for the next
    process; what is not there, or may not be done, is refused with the same errors."""
    store = opened()
    with pytest.raises(UnknownTask, match="there is no task 'sst2'; the store is empty"):
        store.get("sst2")
    a, new = store.put(parse(files[0]))
    assert new
    assert store.put(parse(files[0])) == (a, False)
    b, _ = store.put(parse(files[1]))
    c, _ = store.put(parse(files[2]), activate=False)
    only, _ = store.put(parse(mrpc), activate=False)
    assert store.find("sst2") == b
    assert [entry.task for entry in store.entries()] == ["mrpc", "sst2"]
    assert store.entry("sst2").versions == (a, b, c)
    with pytest.raises(NoActiveVersion):
        store.get("mrpc")
    with pytest.raises(UnknownVersion, match="by 4 digits or more"):
        store.find("sst2", "1")
    with pytest.raises(UnknownVersion):
        store.activate("sst2", "0123456789ab")
    with pytest.raises(VersionIsActive):
        store.delete_version("sst2", b.short)
    assert store.activate("sst2", a.short) == a == store.find("sst2")
    assert store.delete_version("sst2", b.digest) == b
    before = store.entries()
    store = opened()
    assert store.entries() == before
    assert bytes(store.read("sst2", a)) == files[0]
    with store.open("sst2", a) as file:
        assert file.read() == files[0]
    assert store.get("sst2").digest == a.digest
    assert store.cached(a.digest)
    assert store.held(a.digest) is store.get("sst2")
    assert store.summary("sst2", c.digest).spec == parse(files[2]).spec
    assert store.summary("mrpc", only.digest).parameters == parse(mrpc).parameters
    store.delete_version("mrpc", only.digest)
    store.delete_task("sst2")
    for missing in (lambda: store.delete_task("sst2"), lambda: store.find("mrpc")):
        with pytest.raises(UnknownTask):
            missing()
    assert len(opened()) == 0
    assert opened().put(parse(files[1]))[1]
    assert "sst2" in opened()


def test_what_a_check_refuses_is_not_stored(opened: Open, files: list[bytes]) -> None:
    """What `check` raises of an adapter, a put raises, and nothing has changed."""

    def check(_: Adapter) -> None:
        raise BackboneMismatch("no")

    with pytest.raises(BackboneMismatch):
        opened(check=check).put(parse(files[0]))
    assert len(opened()) == 0


def test_a_store_that_was_opened_to_be_read(opened: Open, files: list[bytes]) -> None:
    """A store opened read-only serves what is there, and says why it writes nothing."""
    opened().put(parse(files[0]))
    store = opened(read_only=True)
    assert store.get("sst2").digest == parse(files[0]).digest
    for write in (lambda: store.delete_task("sst2"), lambda: store.put(parse(files[1]))):
        with pytest.raises(StoreError, match="is read-only: it was opened so"):
            write()


def test_versions_that_agree_in_12_digits(opened: Open) -> None:
    """A prefix that fits two versions is refused in a store of any kind."""
    store = opened()
    a, b = (
        store.put(load(Path(__file__).parent / f"twins-{name}.safetensors"))[0] for name in "ab"
    )
    with pytest.raises(AmbiguousVersion, match=f"{a.digest[:13]}, {b.digest[:13]}"):
        store.get("twins", a.short)


@pytest.fixture
def bucket() -> Faulty:
    return Faulty()


Replica = Callable[..., BucketStore]


@pytest.fixture
def replica(bucket: Faulty, tmp_path: Path) -> Iterator[Replica]:
    """Open one more replica on the bucket, with a disk of its own."""
    replicas: list[BucketStore] = []

    def another(disk: str | None = None, **options: Any) -> BucketStore:
        folder = tmp_path / (disk or f"disk-{next(_numbers)}")
        given = {"backbone": BACKBONE, "timeout": 0.05, **options}
        replicas.append(BucketStore(given.pop("objects", bucket), folder, **given))
        return replicas[-1]

    yield another
    for each in replicas:
        each.close()


def gone(*_: str) -> None:
    raise StoreUnreachable("nobody answers")


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
        with pytest.raises(StoreUnreachable, match="gave no answer when it was last read"):
            store.put(parse(files[0]))
        assert calls == []
        bucket.before = lambda *_: None
        until(lambda: store.reached)
        store.put(parse(files[0]))


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


def test_a_bucket_that_ignores_conditions(
    tmp_path: Path, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5: rclone's S3 server, which creates an object twice, is refused."""
    (tmp_path / "s3").mkdir()
    with rclone(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StoreError, match="ignores the condition of a write"):
            replica(objects=connect(server.url("store"), 5), timeout=5)


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
    assert collect(bucket, older_than=3600) == []
    assert collect(bucket, older_than=0) == [f"blobs/{versions[0].digest}.safetensors"]
    assert len([each.key for each in bucket.under("blobs")]) == 2
    assert replica().get("sst2").digest == versions[2].digest


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
    bucket.create(log.key_of(3), b'{"format": 2, "change": "rename"}')
    for act in (store.refresh, lambda: store.put(parse(files[1])), replica):
        with pytest.raises(StoreError, match=r"log/0{19}3\.json.* has format 2, of an"):
            act()
    assert store.generation == 2
    assert not store.reached
    assert store.get("sst2").digest == parse(files[0]).digest


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


def test_following(replica: Replica, files: list[bytes]) -> None:
    """A store that follows refreshes at once when it is asked to, and says why it could not."""
    here, there = replica(), replica()
    there.follow(3600)
    here.put(parse(files[0]))
    there.soon().result(timeout=30)
    assert "sst2" in there


@pytest.mark.parametrize("url", ["s3://", "s4://bucket/store"])
def test_an_address_that_is_none(url: str) -> None:
    """An address that no bucket can have is refused with what is expected."""
    with pytest.raises(StoreError, match=r"cannot be opened: .*; expected s3://BUCKET/PREFIX"):
        connect(url, 5)


def command(*arguments: str) -> tuple[int, str, str]:
    """Run `python -m adapters` with these: its exit code, and what it said on both streams."""
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stdout, done.stderr


def test_copying_a_store(
    s3: S3,
    tmp_path: Path,
    bert: Backbone,
    files: list[bytes],
    mrpc: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`copy` brings every version and the active ones from a folder into a bucket and back, and
    twice is as once; `gc` then finds nothing that is old enough."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    bucket, folder = s3.url("copied"), tmp_path / "store"
    with Store(folder) as store:
        versions = [store.put(parse(data))[0] for data in (*files, mrpc)]
        store.activate("sst2", versions[0].digest)
    for _ in range(2):
        assert command("copy", str(folder), bucket) == (
            *(0, f"copied 4 versions from {folder} to {bucket}\n"),
            "",
        )
    assert command("copy", bucket, str(tmp_path / "back"))[0] == 0
    with Store(tmp_path / "back") as back:
        assert [entry.task for entry in back.entries()] == ["mrpc", "sst2"]
        assert {v.digest for v in back.entry("sst2").versions} == {v.digest for v in versions[:3]}
        assert back.find("sst2").digest == versions[0].digest
    assert command("gc", bucket, "--older-than", "1") == (0, f"deleted 0 files of {bucket}\n", "")
    with BucketStore(connect(bucket, 5), tmp_path / "cache", backbone=bert.reference) as served:
        assert served.get("sst2").digest == versions[0].digest


def test_commands_for_what_is_no_store(tmp_path: Path) -> None:
    """`copy` of no folder and `gc` of a folder end with code 2 and a sentence."""
    code, _, said = command("copy", str(tmp_path / "none"), "s3://bucket/store")
    assert (code, said) == (2, f"error: there is no folder {tmp_path}/none; expected a store\n")
    code, _, said = command("gc", str(tmp_path), "--older-than", "1")
    assert code == 2
    assert said == (
        f"error: {tmp_path} is no bucket's address; expected one, such as s3://bucket/prefix\n"
    )
