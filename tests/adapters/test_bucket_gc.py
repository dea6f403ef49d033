"""`gc`, which deletes files from a bucket, while others upload the very same files."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.bucket import log
from adapters.bucket.gc import Collected, collect
from adapters.bucket.objects import connect
from adapters.bucket.store import BucketStore
from adapters.errors import StoreError
from adapters.file import Adapter, parse
from tests.adapters.faulty_bucket import BACKBONE, Faulty, Replica
from tests.buckets import S3

HOUR = 3600
ALL_CALLS = 1000
_numbers = itertools.count()


class Killed(BaseException):
    """The end of a process."""


class Upload(threading.Thread):
    """An upload in a thread, which makes as many calls of the bucket as it is let make."""

    def __init__(self, bucket: Faulty, store: BucketStore, adapter: Adapter) -> None:
        super().__init__(daemon=True)
        self._bucket, self._store, self._adapter = bucket, store, adapter
        self._turn, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self.answered = False
        self.start()
        self._waits.acquire()

    def run(self) -> None:
        self._bucket.before = self._wait
        self._store.put(self._adapter)
        self.answered = True
        self._waits.release()

    def proceed(self, calls: int) -> None:
        """Let it make so many more, or all that it needs."""
        for _ in range(calls):
            if self.answered:
                return
            self._turn.release()
            self._waits.acquire()

    def _wait(self, *_: str) -> None:
        self._waits.release()
        self._turn.acquire()


class Race:
    """A store with two versions, of which the first is deleted, while `gc` runs and it is uploaded
    again; a third process reads it."""

    def __init__(self, open_bucket: Callable[[], Faulty], folder: Path, files: list[bytes]) -> None:
        self.first, self._second = map(parse, files[:2])
        self._folder = folder / f"race-{next(_numbers)}"
        self.cleaned = open_bucket()
        writer = open_bucket()
        self._store = self._opened(writer)
        for adapter in (self.first, self._second):
            self._store.put(adapter)
        self._store.delete_version("sst2", self.first.digest)
        self.upload = Upload(writer, self._store, self.first)
        self._reader = self._opened(open_bucket())

    def gc(self, turns: dict[int, int], killed_at: int = ALL_CALLS) -> int:
        """Run it; before its n-th call the upload gets `turns[n]` calls, and at `killed_at` it is
        killed. Returns how many calls it made."""
        calls = itertools.count()
        made = 0

        def before(*_: str) -> None:
            nonlocal made
            made = next(calls)
            if made == killed_at:
                raise Killed
            self.upload.proceed(turns.get(made, 0))
            if self.upload.answered:
                self.check()

        self.cleaned.before = before
        with contextlib.suppress(Killed):
            collect(self.cleaned, older_than=0)
        self.cleaned.before = lambda *_: None
        return made + 1

    def check(self) -> None:
        """What was acknowledged can be read by a process that has no copy of it."""
        self._reader.refresh()
        version = self._reader.find("sst2", self.first.digest)
        assert self._reader.read("sst2", version) == self.first.data
        for copy in self._folder.glob("*/blobs/*"):
            copy.unlink()

    def _opened(self, bucket: Faulty) -> BucketStore:
        folder = self._folder / f"disk-{next(_numbers)}"
        return BucketStore(bucket, folder, backbone=BACKBONE, timeout=5)


in_memory = pytest.mark.parametrize("race", ["memory"], indirect=True)


@pytest.fixture(params=["memory", "seaweedfs"])
def race(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    files: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], Race]:
    """A race on a bucket of its own, of a kind."""
    monkeypatch.setattr(log, "READERS", 1)  # calls come one after the other
    monkeypatch.setattr("os.fsync", lambda _: None)  # hundreds of races, none of the local disk
    if request.param == "seaweedfs":
        server: S3 = request.getfixturevalue("s3")
        server.export(monkeypatch)

    def begin() -> Race:
        if request.param == "memory":
            memory = Faulty()._store
            return Race(lambda: Faulty(memory), tmp_path, files)
        url = server.url(f"gc-{next(_numbers)}")
        return Race(lambda: Faulty(connect(url, 5)._store), tmp_path, files)

    return begin


def moments(race: Callable[[], Race]) -> tuple[int, int]:
    """How many calls a `gc` makes, and how many an upload."""
    once = race()
    calls = itertools.count()
    while not once.upload.answered:
        once.upload.proceed(1)
        next(calls)
    return race().gc({}), next(calls)


def test_an_upload_at_any_moment_of_gc(race: Callable[[], Race]) -> None:
    """An upload of a file that `gc` deletes, at any of its calls, is there from its answer on."""
    of_gc, _ = moments(race)
    for begins in range(of_gc):
        each = race()
        each.gc({begins: ALL_CALLS})
        assert each.upload.answered
        each.check()


@in_memory
def test_an_upload_that_stands_still(race: Callable[[], Race]) -> None:
    """An upload that begins at any call of `gc`, stands still after any of its own, and goes on at
    any later one, is there from its answer on."""
    of_gc, of_upload = moments(race)
    for begins, done in itertools.product(range(of_gc), range(1, of_upload)):
        for goes_on in range(begins + 1, of_gc + 1):
            each = race()
            each.gc({begins: done, goes_on: ALL_CALLS})
            each.upload.proceed(ALL_CALLS)
            each.check()


@in_memory
def test_gc_that_is_killed_at_any_moment(race: Callable[[], Race]) -> None:
    """Where `gc` is killed at any of its calls, during an upload of the file that it deletes,
    nothing that was acknowledged is lost; nor by the next `gc`, which leaves nothing behind."""
    of_gc, of_upload = moments(race)
    for killed in range(of_gc):
        for begins in range(killed):
            each = race()
            each.gc({begins: of_upload}, killed_at=killed)
            each.upload.proceed(ALL_CALLS)
            each.check()
            each.gc({})
            each.check()
            assert not list(each.cleaned.under("trash"))


def test_uploads_and_deletions_beside_gc(
    s3: S3, tmp_path: Path, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While `gc` without a grace period runs again and again, three replicas on SeaweedFS upload
    and delete the same files: each upload that was answered can be read until it is deleted."""
    s3.export(monkeypatch)
    url = s3.url("beside-gc")
    adapters = [parse(data) for data in files]
    done = threading.Event()
    wrong: list[BaseException] = []

    def clean() -> None:
        while not done.is_set():
            collect(connect(url, 5), older_than=0)

    def write(number: int) -> None:
        name, adapter = f"replica-{number}", adapters[number]
        with BucketStore(connect(url, 5), tmp_path / name, backbone=BACKBONE, timeout=5) as store:
            for turn in range(6):
                store.put(adapter, activate=False)
                fresh = tmp_path / f"{name}-{turn}"
                with BucketStore(connect(url, 5), fresh, backbone=BACKBONE, timeout=5) as other:
                    assert other.get("sst2", adapter.digest).digest == adapter.digest
                store.delete_version("sst2", adapter.digest)

    def noted(run: Callable[..., None], *arguments: Any) -> None:
        try:
            run(*arguments)
        except BaseException as error:
            wrong.append(error)

    BucketStore(connect(url, 5), tmp_path / "first", backbone=BACKBONE, timeout=5).close()
    writers = [threading.Thread(target=noted, args=(write, number)) for number in range(3)]
    cleaner = threading.Thread(target=noted, args=(clean,))
    for thread in (*writers, cleaner):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    cleaner.join()
    assert not wrong


def test_what_is_in_the_trash(bucket: Faulty, replica: Replica, files: list[bytes]) -> None:
    """A file stays in the trash for the grace period; also one that a version names again, so that
    a deletion that the bucket does too late loses nothing. The next run puts it back."""
    store = replica("one")
    first = parse(files[0])
    for adapter in (first, parse(files[1])):
        store.put(adapter)
    store.delete_version("sst2", first.digest)
    key = f"blobs/{first.digest}.safetensors"
    now = datetime.datetime.now(datetime.UTC)
    old = now - datetime.timedelta(hours=2)
    ages = {key: old}
    bucket.dated = lambda key: ages.get(key, now)
    assert collect(bucket, older_than=HOUR) == Collected([key], [])
    assert collect(bucket, older_than=HOUR) == Collected([], [])
    (moved,) = [each.key for each in bucket.under("trash")]
    store.put(first)
    bucket.delete(key)
    other = replica("two")
    assert other.get("sst2", first.digest).digest == first.digest
    ages = {moved: old}
    assert collect(bucket, older_than=HOUR) == Collected([], [moved])
    assert bucket.read(key) == first.data


def test_a_damaged_old_file(bucket: Faulty, replica: Replica, files: list[bytes]) -> None:
    """A file that is not what its name says could not be put back: `gc` leaves it and says so,
    after it has deleted the others."""
    store = replica("one")
    first, second = (store.put(parse(data))[0] for data in files[:2])
    store.put(parse(files[2]))
    for version in (first, second):
        store.delete_version("sst2", version.digest)
    key = f"blobs/{first.digest}.safetensors"
    bucket.write(key, b"damaged")
    with pytest.raises(StoreError, match=f"such as '{key}', which no version names"):
        collect(bucket, older_than=0)
    assert bucket.exists(key)
    assert not bucket.exists(f"blobs/{second.digest}.safetensors")


def test_gc_leaves_what_was_written_meanwhile(
    bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """A file that no version named when `gc` read the log, and that an upload has written again
    since, stays."""
    store = replica("one")
    for data in files[:2]:
        store.put(parse(data))
    first = parse(files[0])
    store.delete_version("sst2", first.digest)
    key = f"blobs/{first.digest}.safetensors"

    def upload(name: str, _key: str) -> None:
        if name == "read":  # `gc` has listed the files, and reads the log
            bucket.before = lambda *_: None
            bucket.write(key, first.data)

    bucket.before = upload
    assert collect(bucket, older_than=0).moved == []
    assert bucket.exists(key)
    assert collect(bucket, older_than=0).moved == [key]


def test_gc_without_a_log_deletes_nothing(
    bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """Where the log is gone, no version names any file: that is no reason to delete all of them."""
    replica("one").put(parse(files[0]))
    for folder in ("log", "snapshots"):
        for each in list(bucket.under(folder)):
            bucket.delete(each.key)
    with pytest.raises(StoreError, match="has files and no log"):
        collect(bucket, older_than=0)
    assert [each.key for each in bucket.under("blobs")]


@pytest.mark.parametrize("hours", [1e300, float("inf")])
def test_gc_with_a_period_beyond_the_calendar(
    hours: float, bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """Nothing is older than the calendar."""
    replica("one").put(parse(files[0]))
    assert collect(bucket, older_than=hours * HOUR) == Collected([], [])
