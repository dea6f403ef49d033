"""The store: versions by task in a folder, whole at every moment and after every end."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

import pytest

from adapters.backbone import Backbone
from adapters.errors import (
    AmbiguousVersion,
    BackboneMismatch,
    DamagedAdapter,
    InvalidAdapter,
    NoActiveVersion,
    StoreError,
    UnknownTask,
    UnknownVersion,
    VersionIsActive,
)
from adapters.file import Adapter, load, parse, serialize
from adapters.store import Store
from tests.tiny import random_adapter


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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def state(folder: Path) -> dict[str, bytes]:
    """Every file of a store but its lock."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*")}


def reopened(store: Store) -> Store:
    """The store as the next process opens it."""
    store.close()
    return Store(store.folder)


def on_disk(store: Store) -> Store:
    """What the disk holds now."""
    return Store(store.folder, read_only=True)


def test_put_then_get(store: Store, files: list[bytes]) -> None:
    """What was put is got, as the active version, under the sha256 of its bytes."""
    version, new = store.put(parse(files[0]))
    adapter = store.get("sst2")
    assert new
    assert adapter.digest == version.digest == store.find("sst2").digest == parse(files[0]).digest
    assert adapter.spec.labels == ("negative", "positive")
    assert store.path("sst2", version.digest).read_bytes() == files[0]
    assert version.bytes == len(files[0])


def test_put_twice(store: Store, files: list[bytes]) -> None:
    """The same file again is not new and makes no second version."""
    first, _ = store.put(parse(files[0]))
    again, new = store.put(parse(files[0]))
    assert not new
    assert again == first
    assert len(store.entry("sst2").versions) == 1


def test_activation(store: Store, files: list[bytes]) -> None:
    """A put activates unless told not to, and a rollback is activating an older version."""
    a, b, c = (store.put(parse(data), activate=i < 2)[0] for i, data in enumerate(files))
    assert store.find("sst2") == b
    assert store.get("sst2", c.digest).digest == c.digest
    assert store.activate("sst2", a.short) == a
    assert store.get("sst2").digest == a.digest
    store.put(parse(files[1]))
    assert store.find("sst2") == b


def test_no_active_version(store: Store, files: list[bytes]) -> None:
    """A task with inactive versions only says which of them could be activated."""
    version, _ = store.put(parse(files[0]), activate=False)
    with pytest.raises(
        NoActiveVersion,
        match=f"'sst2' has no active version; expected one of {version.short} to be",
    ):
        store.get("sst2")


def test_listing(store: Store, files: list[bytes], mrpc: bytes) -> None:
    """Tasks are listed by name, their versions oldest first."""
    versions = [store.put(parse(data))[0] for data in files]
    store.put(parse(mrpc))
    assert [entry.task for entry in store.entries()] == ["mrpc", "sst2"]
    assert store.entry("sst2").versions == tuple(versions)
    assert store.entry("sst2").active == versions[-1].digest
    assert len(store) == 2


def test_summary(store: Store, files: list[bytes]) -> None:
    """A summary tells the spec and the number of parameters."""
    adapter = parse(files[0])
    store.put(parse(files[0]))
    assert store.summary("sst2", adapter.digest).spec == adapter.spec
    assert store.summary("sst2", adapter.digest).parameters == adapter.parameters


def test_prefixes(store: Store, files: list[bytes]) -> None:
    """A prefix finds the one version it fits; one that fits several, or none, is refused with those
    there are."""
    versions = [store.put(parse(data))[0] for data in files]
    for version in versions:
        assert store.find("sst2", version.digest) == store.find("sst2", version.short) == version
    for unknown in ("", "zzzz", versions[0].digest[:40] + "x", "../sst2"):
        with pytest.raises(
            UnknownVersion,
            match=rf"'sst2' has no version '{unknown}'; expected one of {versions[0].short}, ",
        ):
            store.find("sst2", unknown)


@pytest.mark.parametrize("prefix", ["", "1", "9a0", "zzzz", "9A0B", "../sst2", "9a0b\n"])
def test_short_prefixes(store: Store, files: list[bytes], prefix: str) -> None:
    """What is not at least four hex digits is no version, whatever it might fit."""
    store.put(parse(files[0]))
    digest = store.find("sst2").digest
    for version in (prefix, digest[:3], digest[:8].upper() + "A"):
        with pytest.raises(UnknownVersion, match=f"{digest[:12]}, by 4 digits or more"):
            store.find("sst2", version)
    assert store.find("sst2", digest[:4]).digest == digest


@pytest.fixture
def twins() -> list[Adapter]:
    """Two real files whose sha256 agree in their first 12 digits."""
    found = [load(Path(__file__).parent / f"twins-{name}.safetensors") for name in "ab"]
    assert found[0].version == found[1].version
    assert found[0].digest != found[1].digest
    return found


def test_versions_that_agree_in_12_digits(store: Store, twins: list[Adapter]) -> None:
    """Two versions that agree in the digits shown are told apart by more digits, everywhere."""
    a, b = (store.put(adapter)[0] for adapter in twins)
    entry = store.entry("twins")
    assert (entry.shown(a), entry.shown(b)) == (a.digest[:13], b.digest[:13])
    with pytest.raises(
        AmbiguousVersion,
        match=f"version '{a.short}' of task 'twins' fits {a.digest[:13]}, {b.digest[:13]}; expected"
        " a longer prefix",
    ):
        store.get("twins", a.short)
    assert store.get("twins", a.digest[:13]).digest == a.digest
    assert [entry.shown(a), entry.shown(b)] == entry.names() == [a.digest[:13], b.digest[:13]]
    assert store.activate("twins", a.digest) == a
    assert store.find("twins") == a
    assert store.delete_version("twins", b.digest) == b
    assert store.find("twins", a.short) == a
    assert store.entry("twins").shown(a) == a.short
    assert on_disk(store).entries() == store.entries()


def test_unknown_tasks(store: Store, files: list[bytes], mrpc: bytes) -> None:
    """An unknown task is refused with the closest names, or with those there are."""
    with pytest.raises(UnknownTask, match="there is no task 'sst2'; the store is empty"):
        store.get("sst2")
    store.put(parse(files[0]))
    store.put(parse(mrpc))
    with pytest.raises(UnknownTask, match=r"there is no task 'sst3'; the closest are 'sst2'$"):
        store.get("sst3")
    for odd in ("../sst2", "sst2/active", "x" * 1000, "", "SST2\n\0"):
        with pytest.raises(UnknownTask, match=r"there is no task .*'sst2'"):
            store.get(odd)


def test_deletion(store: Store, files: list[bytes]) -> None:
    """An inactive version can be deleted, the active one only with its whole task."""
    a, b, _ = (store.put(parse(data))[0] for data in files)
    assert store.delete_version("sst2", a.short) == a
    with pytest.raises(UnknownVersion):
        store.get("sst2", a.digest)
    assert not store.path("sst2", a.digest).exists()
    with pytest.raises(
        VersionIsActive, match="is the active one of task 'sst2'; expected another one"
    ):
        store.delete_version("sst2", store.find("sst2").digest)
    store.delete_task("sst2")
    for task in ("get", "delete_task"):
        with pytest.raises(UnknownTask):
            getattr(store, task)("sst2")
    assert not (store.folder / "sst2").exists()
    assert store.put(parse(files[1])) == (store.find("sst2", b.digest), True)


def test_the_last_version_takes_its_task_along(store: Store, files: list[bytes]) -> None:
    """Deleting the only version of a task with none active deletes the task."""
    version, _ = store.put(parse(files[0]), activate=False)
    store.delete_version("sst2", version.digest)
    assert store.entries() == []


def test_reopening(store: Store, files: list[bytes], mrpc: bytes) -> None:
    """A store opened anew has the same tasks, versions and active ones."""
    for data in (*files, mrpc):
        store.put(parse(data))
    store.activate("sst2", store.entry("sst2").versions[1].digest)
    again = reopened(store)
    assert again.entries() == store.entries()
    assert again.get("sst2").digest == parse(files[1]).digest


def test_an_adapter_in_hand_outlives_its_deletion(store: Store, files: list[bytes]) -> None:
    """A parsed adapter stays whole when its file is deleted."""
    store.put(parse(files[0]))
    adapter = store.get("sst2")
    store.delete_task("sst2")
    assert all(tensor.isfinite().all() for tensor in adapter.tensors.values())


def test_memory_is_bounded(tmp_path: Path, files: list[bytes]) -> None:
    """Parsed adapters beyond the cache's bytes leave memory, least recently used first, and load
    again."""
    store = Store(tmp_path, cache_bytes=2 * len(files[0]) + 100)
    a, b, c = (store.put(parse(data))[0].digest for data in files)
    assert [store.cached(digest) for digest in (a, b, c)] == [False, True, True]
    store.get("sst2", b)
    store.get("sst2", a)
    assert [store.cached(digest) for digest in (a, b, c)] == [True, True, False]
    assert store.get("sst2", c).digest == c


DAMAGES = {
    "a bit": lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "garbage": lambda data: b"x" * len(data),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(store: Store, files: list[bytes], mrpc: bytes, damage: str) -> None:
    """A version that rotted on disk is refused as damaged, the others go on, and uploading it again
    mends it."""
    version, _ = store.put(parse(files[0]))
    store.put(parse(files[1]), activate=False)
    store.put(parse(mrpc))
    path = store.path("sst2", version.digest)
    path.write_bytes(DAMAGES[damage](files[0]))
    again = reopened(store)
    with pytest.raises(
        DamagedAdapter, match=f"version {version.short} of task 'sst2' is damaged on disk: "
    ):
        again.get("sst2")
    assert again.get("mrpc").spec.task == "mrpc"
    assert again.get("sst2", parse(files[1]).digest).version == parse(files[1]).version
    again.put(parse(files[0]))
    assert on_disk(store).get("sst2").digest == version.digest


@pytest.mark.parametrize(
    "entries", [{}, {"up.bias": 3}, {"up.bias": {"dtype": "F16", "shape": [2]}}, None]
)
def test_damaged_headers(
    store: Store, files: list[bytes], entries: dict[str, object] | None
) -> None:
    """A summary of a file whose header rotted is refused as damaged."""
    version, _ = store.put(parse(files[0]))
    metadata = json.loads(files[0][8 : 8 + int.from_bytes(files[0][:8], "little")])["__metadata__"]
    header = (
        b"nope" if entries is None else json.dumps({"__metadata__": metadata, **entries}).encode()
    )
    store.path("sst2", version.digest).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(
        DamagedAdapter, match=f"version {version.short} of task 'sst2' is damaged on disk"
    ):
        on_disk(store).summary("sst2", version.digest)


def test_a_missing_file(store: Store, files: list[bytes]) -> None:
    """A version whose file somebody took away is refused as damaged."""
    version, _ = store.put(parse(files[0]))
    again = on_disk(store)
    store.path("sst2", version.digest).unlink()
    with pytest.raises(DamagedAdapter, match="cannot be read: No such file"):
        again.get("sst2")


GARBAGE = [b"", b"\xff\xfe", b"../../etc/passwd", b"1" * 63, b"\0" * 10_000]


@pytest.mark.parametrize("content", GARBAGE)
def test_a_damaged_pointer(store: Store, files: list[bytes], content: bytes) -> None:
    """Where `active` holds garbage, a task's only version is the active one: it is served, with a
    word for the log, and `active` is mended."""
    version, _ = store.put(parse(files[0]))
    (store.folder / "sst2" / "active").write_bytes(content)
    again = reopened(store)
    assert again.get("sst2").digest == version.digest
    (problem,) = again.problems
    assert problem.startswith("task 'sst2': its file 'active' holds '")
    assert problem.endswith(f"its only version {version.short} is taken for the active one")
    again.put(parse(files[1]), activate=False)
    assert on_disk(again).find("sst2") == version
    assert reopened(again).problems == ()


@pytest.mark.parametrize("content", GARBAGE)
def test_a_damaged_pointer_among_versions(store: Store, files: list[bytes], content: bytes) -> None:
    """Where `active` holds garbage and there are several versions, none is guessed: the task says
    what is there, and activating one mends it."""
    versions = [store.put(parse(data))[0] for data in files[:2]]
    (store.folder / "sst2" / "active").write_bytes(content)
    again = reopened(store)
    with pytest.raises(
        DamagedAdapter,
        match=r"'sst2' has no active version: its file 'active' holds '.*', which names no version;"
        f" expected one of {versions[0].short}, {versions[1].short} to be activated",
    ):
        again.get("sst2")
    assert len(again.problems) == 1
    again.activate("sst2", versions[0].digest)
    assert again.find("sst2") == on_disk(again).find("sst2") == versions[0]
    assert reopened(again).problems == ()


def test_an_active_version_whose_file_is_gone(store: Store, files: list[bytes]) -> None:
    """Where the active version's file is gone the task says so and serves no version that nobody
    activated; uploading the file again mends it."""
    old, new = (store.put(parse(data))[0] for data in files[:2])
    store.path("sst2", new.digest).unlink()
    with pytest.raises(DamagedAdapter, match=f"version {new.short} .*cannot be read: No such file"):
        store.activate("sst2", new.digest)
    again = reopened(store)
    with pytest.raises(
        DamagedAdapter,
        match=f"holds '{new.digest}', a version whose file is gone; expected one of {old.short}",
    ):
        again.get("sst2")
    with pytest.raises(UnknownVersion):
        again.activate("sst2", new.digest)
    again.put(parse(files[1]))
    assert again.get("sst2").digest == new.digest == on_disk(again).get("sst2").digest


def test_all_files_of_a_task_are_gone(store: Store, files: list[bytes]) -> None:
    """A task of which only `active` is left is damaged, not unknown, until a file is uploaded."""
    version, _ = store.put(parse(files[0]))
    store.path("sst2", version.digest).unlink()
    again = reopened(store)
    with pytest.raises(DamagedAdapter, match="'sst2' cannot be read: its file 'active' holds"):
        again.get("sst2")
    assert again.entries() == []
    again.put(parse(files[1]))
    assert again.get("sst2").digest == parse(files[1]).digest


@pytest.mark.parametrize("activate", [True, False])
def test_a_task_whose_folder_vanished(
    store: Store, files: list[bytes], mrpc: bytes, activate: bool
) -> None:
    """Where somebody took a task's folder away, an upload to it is stored again, and memory is what
    the disk holds: the versions that went are gone."""
    for data in files[:2]:
        store.put(parse(data))
    store.put(parse(mrpc))
    shutil.rmtree(store.folder / "sst2")
    version, new = store.put(parse(files[1]), activate=activate)
    assert new
    assert store.entries() == on_disk(store).entries()
    assert store.entry("sst2").versions == (version,)
    if activate:
        assert store.get("sst2").digest == on_disk(store).get("sst2").digest == version.digest
    else:
        with pytest.raises(NoActiveVersion):
            store.get("sst2")
    assert reopened(store).problems == ()


def test_a_vanished_folder_in_whose_place_is_a_file(store: Store, files: list[bytes]) -> None:
    """Where a task's folder cannot be made again, the upload is refused and nothing changes."""
    store.put(parse(files[0]))
    before = store.entries()
    shutil.rmtree(store.folder / "sst2")
    (store.folder / "sst2").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written: File exists"):
        store.put(parse(files[1]))
    assert store.entries() == before
    assert state(store.folder) == {}


def test_a_pointer_that_vanished(store: Store, files: list[bytes]) -> None:
    """Where somebody took `active` away, or changed it, putting or activating the version that is
    active writes it again."""
    version, _ = store.put(parse(files[0]))
    store.put(parse(files[1]), activate=False)
    pointer = store.folder / "sst2" / "active"
    for write in (
        lambda: store.put(parse(files[0])),
        lambda: store.activate("sst2", version.short),
    ):
        pointer.unlink()
        write()
        assert on_disk(store).find("sst2") == version
        pointer.write_bytes(b"garbage")
        write()
        assert on_disk(store).find("sst2") == version


def test_activating_a_damaged_version(store: Store, files: list[bytes]) -> None:
    """A version that could not be served is not activated, even while it is in memory."""
    old, new = (store.put(parse(data))[0] for data in files[:2])
    store.path("sst2", old.digest).write_bytes(files[2])
    with pytest.raises(DamagedAdapter, match=f"version {old.short} .* is damaged on disk"):
        store.activate("sst2", old.digest)
    assert store.find("sst2") == on_disk(store).find("sst2") == new


def test_leftovers(store: Store, files: list[bytes]) -> None:
    """Opening a store removes what a crash left half-written, and nothing that is not the
    store's."""
    store.put(parse(files[0]))
    (store.folder / "sst2" / ".tmp-abc").write_bytes(files[1][:100])
    (store.folder / "sst2" / "notes.txt").write_text("mine")
    (store.folder / "README").write_text("mine")
    (store.folder / "empty").mkdir()
    again = reopened(store)
    assert {path.name for path in (store.folder / "sst2").iterdir()} == {
        "active",
        "notes.txt",
        f"{again.find('sst2').digest}.safetensors",
    }
    assert [entry.task for entry in again.entries()] == ["sst2"]
    again.delete_task("sst2")
    assert (store.folder / "sst2" / "notes.txt").read_text() == "mine"
    assert on_disk(store).entries() == []


def test_an_invalid_file(store: Store, files: list[bytes]) -> None:
    """A file that is no valid adapter is refused and leaves no trace."""
    with pytest.raises(InvalidAdapter):
        store.put(parse(files[0][:-1]))
    assert state(store.folder) == {}
    assert store.entries() == []


@contextlib.contextmanager
def _no_file_above(size: int) -> Iterator[None]:
    """The kernel refuses to write more than `size` bytes into a file: what a full disk does, and
    root obeys."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 40, 1000])
def test_a_full_disk(store: Store, files: list[bytes], mrpc: bytes, room: int) -> None:
    """Where the disk does not take a file, a put says so and nothing has changed, in memory or on
    disk."""
    store.put(parse(files[0]))
    before, entries = state(store.folder), store.entries()
    for data in (files[1], mrpc):
        with (
            _no_file_above(room),
            pytest.raises(
                StoreError, match=f"the store {store.folder} cannot be written: File too large"
            ),
        ):
            store.put(parse(data))
    assert state(store.folder) == before
    assert store.entries() == entries == on_disk(store).entries()
    assert store.put(parse(files[1]))[1]


def test_a_pointer_that_cannot_be_written(store: Store, files: list[bytes]) -> None:
    """Where a version could be stored but not activated, the put fails and the version is gone
    again."""
    obstacle = store.folder / "sst2" / "active"
    obstacle.mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be written"):
        store.put(parse(files[0]))
    obstacle.rmdir()
    assert state(store.folder) == {}
    assert store.entries() == on_disk(store).entries() == []


def test_places_that_cannot_be_a_store(tmp_path: Path) -> None:
    """A store in the place of a file, or under one, cannot be opened."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreError, match=f"the store {place} cannot be "):
            Store(place)


def test_a_vanished_store(store: Store, files: list[bytes]) -> None:
    """A put into a store whose folder was taken away is a StoreError."""
    shutil.rmtree(store.folder)
    with pytest.raises(StoreError, match="cannot be written"):
        store.put(parse(files[0]))


def test_readers_during_replacement(tmp_path: Path, files: list[bytes]) -> None:
    """Readers, of the same store and of the same folder, only ever get a whole version while two
    are swapped."""
    # room for one adapter: the other one is always read from disk
    store = Store(tmp_path, cache_bytes=1)
    digests = {parse(data).digest for data in files[:2]}
    store.put(parse(files[0]))
    done = threading.Event()
    seen: list[set[str]] = [set() for _ in range(3)]
    reads: list[SimpleQueue[int]] = [SimpleQueue() for _ in range(3)]
    failures: list[BaseException] = []

    def read(number: int, get: object) -> None:
        try:
            while not done.is_set():
                adapter: Adapter = get()  # type: ignore[operator]
                assert (
                    adapter.digest == parse(store.path("sst2", adapter.digest).read_bytes()).digest
                )
                seen[number].add(adapter.digest)
                reads[number].put(number)
        except BaseException as error:
            failures.append(error)
            reads[number].put(number)

    doors = (
        lambda: store.get("sst2"),
        lambda: store.get("sst2"),
        lambda: Store(tmp_path, read_only=True).get("sst2"),
    )
    readers = [threading.Thread(target=read, args=(i, door)) for i, door in enumerate(doors)]
    for reader in readers:
        reader.start()
    try:
        for swap in range(60):
            store.put(parse(files[(swap + 1) % 2]))
            # so that a swift writer starves none of them; they go on reading meanwhile
            for queue in reads:
                queue.get(timeout=30)
            assert failures == []
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []
    assert all(s == digests for s in seen)


CRASHER = """
import os, random, signal, sys, time
from pathlib import Path

import torch

from adapters.file import load, parse, serialize
from adapters.store import Store

torch.set_num_threads(1)  # a forked child must not wait for threads that it has not
folder, sample, rounds = Path(sys.argv[1]), load(Path(sys.argv[2])), int(sys.argv[3])
acknowledged, rng = {}, random.Random(0)

def work(pipe, number):
    store = Store(folder)
    for i in range(10**9):
        about = {"task": f"task{i % 3}", "training": {"round": number, "i": i}}
        spec = sample.spec.model_copy(update=about)
        version, _ = store.put(parse(serialize(spec, sample.tensors)), activate=i % 5 != 0)
        os.write(pipe, f"{spec.task} {version.digest} {int(i % 5 != 0)}\\n".encode())

for number in range(rounds):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        work(writing, number)
    os.close(writing)
    first = os.read(reading, 1 << 16)  # it works
    time.sleep(rng.random() * 0.06)  # the moment of the crash, not a wait for something
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as rest:
        lines = (first + rest.read()).decode().split("\\n")[:-1]
    for line in lines:
        task, digest, active = line.split()
        versions, last = acknowledged.setdefault(task, ([], None))
        versions.append(digest)
        acknowledged[task] = (versions, digest if active == "1" else last)
    store = Store(folder)
    store.close()  # a forked child would share its lock
    for task, (versions, last) in acknowledged.items():
        entry = store.entry(task)
        stored = [version.digest for version in entry.versions]
        assert set(versions) <= set(stored), "an acknowledged version is lost"
        for digest in versions[-40:]:
            assert store.get(task, digest).digest == digest
        if last is not None:
            # The last acknowledged one, or the one that was being put when it crashed.
            assert entry.active == last or entry.active not in versions, (entry.active, last)
            store.get(task)
    assert not list(folder.glob("*/.tmp-*"))
print(sum(len(versions) for versions, _ in acknowledged.values()))
"""


def test_kill_9(tmp_path: Path, files: list[bytes]) -> None:
    """After `kill -9` at random moments every acknowledged version is there, whole, and `active`
    names a whole file."""
    (tmp_path / "sample").write_bytes(files[0])
    run = subprocess.run(
        [sys.executable, "-c", CRASHER, str(tmp_path / "store"), str(tmp_path / "sample"), "25"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 25


def test_a_folder_that_is_no_task_is_left_alone(tmp_path: Path, files: list[bytes]) -> None:
    """What stands in a store under a name that no task has, such as a volume's lost+found, is
    neither served nor touched."""
    version, _ = Store(tmp_path / "store").put(parse(files[0]))
    other = tmp_path / "store" / "lost+found"
    shutil.copytree(tmp_path / "store" / "sst2", other)
    store = Store(tmp_path / "store")
    assert [entry.task for entry in store.entries()] == ["sst2"]
    store.delete_task("sst2")
    assert (other / f"{version.digest}.safetensors").is_file()


HOLDER = """
import sys
from pathlib import Path
from adapters.store import Store

with Store(Path(sys.argv[1])) as store:
    print("open", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process has the store open."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.stdin.close()


def test_a_second_writer(store: Store, files: list[bytes]) -> None:
    """A store that another process may write to is refused, after a wait, with a sentence; read
    only it is served, and when the other process is gone, killed even, it can be written."""
    version, _ = store.put(parse(files[0]))
    store.close()
    with held_elsewhere(store.folder) as other:
        for seconds in (0.0, 0.2):
            started = time.monotonic()
            with pytest.raises(
                StoreError,
                match=f"the store {store.folder} is in use by another process, .*; expected one"
                " writer for a store: stop that process, or open the store read-only",
            ):
                Store(store.folder, lock_seconds=seconds)
            assert seconds <= time.monotonic() - started < seconds + 5
        assert on_disk(store).get("sst2").digest == version.digest
        other.kill()
        other.wait()
    with Store(store.folder) as again:
        assert again.put(parse(files[1]))[1]


def test_a_lock_that_is_freed_in_time(store: Store) -> None:
    """A start waits for the process before it to end."""
    store.close()
    with held_elsewhere(store.folder) as other:
        assert other.stdin is not None
        end = threading.Timer(0.1, other.stdin.close)
        end.start()
        with Store(store.folder, lock_seconds=30) as again:
            assert again.why_read_only is None
        end.join()


def writes(store: Store, files: list[bytes]) -> list[Callable[[], object]]:
    """Each way to change a store that holds files[0] and files[1] of sst2."""
    old = parse(files[0])
    return [
        lambda: store.put(parse(files[2])),
        lambda: store.put(old),
        lambda: store.activate("sst2", old.digest),
        lambda: store.delete_version("sst2", old.digest),
        lambda: store.delete_task("sst2"),
        store.mark_seeded,
    ]


def test_read_only(store: Store, files: list[bytes]) -> None:
    """A store opened read-only serves what is there, writes nothing, and says so to each write."""
    for data in files[:2]:
        store.put(parse(data))
    (store.folder / "sst2" / ".tmp-left").write_bytes(b"of a crash")
    store.close()
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    with Store(store.folder, read_only=True) as reader:
        assert reader.why_read_only == "it was opened so"
        assert reader.get("sst2").digest == parse(files[1]).digest
        for write in writes(reader, files):
            with pytest.raises(
                StoreError, match=f"the store {store.folder} is read-only: it was opened so; exp"
            ):
                write()
        assert reader.entries() == store.entries()
    assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")} == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written(
    store: Store, files: list[bytes], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A store on a read-only disk is served as it is; each write says why it is refused."""
    for data in files[:2]:
        store.put(parse(data))
    store.close()
    opened = os.open

    def refuse(path: Any, flags: int, *mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    again = Store(store.folder)
    assert again.why_read_only == os.strerror(number)
    assert again.get("sst2").digest == parse(files[1]).digest
    for write in writes(again, files):
        with pytest.raises(StoreError, match=f"is read-only: {os.strerror(number)}; expected a"):
            write()


def test_a_closed_store(store: Store, files: list[bytes]) -> None:
    """A closed store can be read, but not written."""
    store.put(parse(files[0]))
    store.close()
    store.close()
    assert store.get("sst2").digest == parse(files[0]).digest
    with pytest.raises(StoreError, match="is read-only: it was closed; expected"):
        store.put(parse(files[1]))


def test_seeded(store: Store, files: list[bytes]) -> None:
    """That a store was seeded is known to the next process, whatever was deleted since."""
    assert not store.seeded
    store.put(parse(files[0]))
    store.mark_seeded()
    store.delete_task("sst2")
    again = reopened(store)
    assert again.seeded
    assert again.entries() == []


@pytest.mark.parametrize("obstacle", ["active is a folder", "unreadable"])
def test_a_task_that_cannot_be_read(
    store: Store,
    files: list[bytes],
    mrpc: bytes,
    monkeypatch: pytest.MonkeyPatch,
    obstacle: str,
) -> None:
    """A task whose folder cannot be read keeps no other from being served; it says why, and once
    the folder can be read an upload brings it back."""
    store.put(parse(files[0]))
    store.put(parse(mrpc))
    active = store.folder / "sst2" / "active"
    content = active.read_bytes()
    if obstacle == "active is a folder":
        active.unlink()
        active.mkdir()
        reason = os.strerror(errno.EISDIR)
    else:
        scandir = os.scandir

        def refuse(path: Any) -> Any:
            if str(path).endswith("/sst2"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        reason = os.strerror(errno.EACCES)
    again = reopened(store)
    assert again.problems == (f"task 'sst2' cannot be read, and is left out: {reason}",)
    assert [entry.task for entry in again.entries()] == ["mrpc"]
    assert again.get("mrpc").spec.task == "mrpc"
    for call in (
        lambda: again.get("sst2"),
        lambda: again.activate("sst2", "beef"),
        lambda: again.delete_task("sst2"),
    ):
        with pytest.raises(DamagedAdapter, match=f"task 'sst2' cannot be read: {reason}"):
            call()
    with pytest.raises(StoreError, match=f"cannot be written: {reason}"):
        again.put(parse(files[1]))
    monkeypatch.undo()
    if obstacle == "active is a folder":
        active.rmdir()
        active.write_bytes(content)
    again.put(parse(files[1]), activate=False)
    assert again.find("sst2").digest == parse(files[0]).digest
    assert again.entries() == on_disk(again).entries()


def test_what_does_not_fit_is_not_kept(tmp_path: Path, files: list[bytes]) -> None:
    """The check of a store sees each adapter once, before it is served for the first time: what it
    refuses is not put, not activated and not got."""
    a, b = map(parse, files[:2])
    seen: list[str] = []

    def check(adapter: Adapter) -> None:
        seen.append(adapter.digest)
        if adapter.digest == b.digest:
            raise BackboneMismatch("of another backbone")

    with Store(tmp_path) as store:
        store.put(a)
        store.put(b, activate=False)
    with Store(tmp_path, check=check) as store:
        for _ in range(3):
            assert store.get("sst2").digest == a.digest
        assert seen == [a.digest]
        for call in (
            lambda: store.get("sst2", b.digest),
            lambda: store.activate("sst2", b.digest),
            lambda: store.put(b),
        ):
            with pytest.raises(BackboneMismatch, match="of another backbone"):
                call()
        assert not store.cached(b.digest)
        assert store.find("sst2").digest == on_disk(store).find("sst2").digest == a.digest


def test_headers_of_deleted_versions_leave_memory(store: Store, bert: Backbone) -> None:
    """However many versions come and go, memory keeps the header of the one that lists show."""
    spec, tensors, _ = random_adapter(bert, "t", ["a", "b"], bottleneck=1)
    digests = []
    for i in range(5):
        data = serialize(spec.model_copy(update={"training": {"i": i}}), tensors)
        digests.append(store.put(parse(data))[0].digest)
        assert store.summary("t", digests[0]).spec.training == {"i": 0}
        assert [*store.entry("t").summaries] == [digests[-1]]
    for digest in digests[:-1]:
        store.delete_version("t", digest)
    assert [*store.entry("t").summaries] == digests[-1:]


def test_a_deletion_that_the_disk_refuses(
    store: Store, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that the disk does not let go is served on, and is there after a restart."""
    store.put(parse(files[0]))

    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        for name in ("unlink", "replace", "rename", "rmdir"):
            patch.setattr(os, name, refuse)
        with pytest.raises(StoreError, match="cannot be written: Permission denied"):
            store.delete_task("sst2")
        assert store.get("sst2").digest == parse(files[0]).digest
    assert reopened(store).entries() == store.entries()


def test_pipes_in_the_store_hold_up_nobody(store: Store, files: list[bytes]) -> None:
    """A pipe where a file should be is no version, and `active` as a pipe names none; the store
    opens, and tells it."""
    store.put(parse(files[0]))
    folder = store.folder / "sst2"
    os.mkfifo(folder / f"{'0' * 64}.safetensors")
    assert len(on_disk(store).entry("sst2").versions) == 1
    (folder / "active").unlink()
    os.mkfifo(folder / "active")
    assert "its file 'active' holds ''" in on_disk(store).problems[0]


def test_who_may_only_read_cannot_lock(tmp_path: Path) -> None:
    """The lock's file is its owner's alone: whoever may open it may keep the service from
    starting."""
    with Store(tmp_path / "store"):
        assert (tmp_path / "store/.lock").stat().st_mode & 0o777 == 0o600
