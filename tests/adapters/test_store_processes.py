"""A store and its processes: one writer, readers beside it, the crash of a writer, and a store that
can only be read."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from adapters.errors import StoreError
from adapters.file import Adapter, parse
from adapters.store import Store
from tests.adapters.store_on_disk import on_disk


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


def test_who_may_only_read_cannot_lock(tmp_path: Path) -> None:
    """The lock's file is its owner's alone: whoever may open it may keep the service from
    starting."""
    with Store(tmp_path / "store"):
        assert (tmp_path / "store/.lock").stat().st_mode & 0o777 == 0o600


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
