"""Faults under the store: whichever system call of a write fails, the answer, memory and the disk
agree; wherever a process dies, the next one finds the old state or the new one."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.backbone import Backbone
from adapters.errors import DamagedAdapter, StoreError
from adapters.file import Adapter, parse, serialize
from adapters.store import Store
from adapters.traffic import Canary, Left, Shadow, Split
from tests.tiny import random_adapter

# Each way that the store has to the operating system.
CALLS = {
    os: (
        *("open", "close", "write", "fsync", "fchmod", "utime", "replace", "rename", "unlink"),
        *("mkdir", "rmdir", "stat", "lstat", "scandir", "listdir"),
    ),
    io: ("open",),
}


class Crash(BaseException):
    """The process dies here."""


class Faults:
    """Lets calls fail by their number; `names` are those that were made."""

    def __init__(self, fails: Callable[[int], bool], error: Callable[[], BaseException]) -> None:
        self.names: list[str] = []
        self.fired = False
        self._fails, self._error = fails, error

    def wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.names.append(name)
            if self._fails(len(self.names) - 1):
                self.fired = True
                if name == "close":  # a descriptor is closed whatever its last write came to
                    call(*arguments, **options)
                raise self._error()
            return call(*arguments, **options)

        return counted

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for module, names in CALLS.items():
                for name in names:
                    # what fsync does is seen after a power cut only, and it takes most of the time
                    call = getattr(module, name) if name != "fsync" else lambda _: None
                    patch.setattr(module, name, self.wrapped(name, call))
            yield


@pytest.fixture(scope="module")
def versions(bert: Backbone) -> list[Adapter]:
    """Three versions of the task sst2."""
    return [
        parse(random_adapter(bert, "sst2", ["no", "yes"], bottleneck=1, seed=seed)[2])
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def mrpc(bert: Backbone) -> Adapter:
    return parse(random_adapter(bert, "mrpc", ["0", "1"], bottleneck=1)[2])


@pytest.fixture(scope="module")
def filled(
    tmp_path_factory: pytest.TempPathFactory, versions: list[Adapter], mrpc: Adapter
) -> Path:
    """A store with two versions of sst2, the newer one active, and an inactive one of mrpc."""
    folder = tmp_path_factory.mktemp("filled") / "store"
    with Store(folder) as store:
        for adapter in versions[:2]:
            store.put(adapter)
        store.put(mrpc, activate=False)
    return folder


Operation = Callable[[Store, list[Adapter], Adapter], object]

OPERATIONS: dict[str, Operation] = {
    "put a new task": lambda s, _, m: s.put(_renamed(m)),
    "put a new version": lambda s, v, _: s.put(v[2]),
    "put a new version, inactive": lambda s, v, _: s.put(v[2], activate=False),
    "put a known version, active": lambda s, v, _: s.put(v[1]),
    "put a known version, inactive": lambda s, v, _: s.put(v[0]),
    "put where none is active": lambda s, _, m: s.put(m),
    "activate": lambda s, v, _: s.activate("sst2", v[0].digest),
    "activate where none is": lambda s, _, m: s.activate("mrpc", m.digest),
    "delete a version": lambda s, v, _: s.delete_version("sst2", v[0].digest),
    "delete the last version": lambda s, _, m: s.delete_version("mrpc", m.digest),
    "delete a task": lambda s, *_: s.delete_task("sst2"),
    "delete a task without active": lambda s, *_: s.delete_task("mrpc"),
    "divide the traffic": lambda s, v, _: s.set_split("sst2", _split(v)),
    "divide it anew": lambda s, v, _: s.set_split("sst2", _split(v, percent=50)),
    "divide it no more": lambda s, *_: s.set_split("sst2", None),
    "end a canary": lambda s, v, _: s.end_canary(
        "sst2", _split(v), Left(v[0].digest, "it failed", 1.0)
    ),
    "activate the canary": lambda s, v, _: s.activate("sst2", v[0].digest),
    "activate the active version again": lambda s, v, _: s.activate("sst2", v[1].digest),
    "put a new version beside a canary": lambda s, v, _: s.put(v[2]),
    "delete a task with a canary": lambda s, *_: s.delete_task("sst2"),
    "mark as seeded": lambda s, *_: s.mark_seeded(),
    "put over a damaged file": lambda s, v, _: s.put(v[0], activate=False),
    "put after an interrupted deletion": lambda s, v, _: s.put(v[2]),
}


def _renamed(adapter: Adapter) -> Adapter:
    return parse(serialize(adapter.spec.model_copy(update={"task": "new"}), adapter.tensors))


def _damage(store: Store, versions: list[Adapter]) -> Store:
    """Damage a version's file while no process has the store open."""
    store.close()
    path = store.path("sst2", versions[0].digest)
    path.write_bytes(b"damage" + path.read_bytes()[6:])
    return Store(store.folder)


def _interrupt(store: Store, _: list[Adapter]) -> Store:
    """Delete a task, whose files the disk then does not let go."""

    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        store.delete_task("sst2")
    assert (store.folder / "sst2" / "deleted").exists()
    assert "sst2" not in store
    return store


def _split(versions: list[Adapter], percent: float = 5) -> Split:
    first, active = (adapter.digest for adapter in versions[:2])
    return Split(active=active, canary=Canary(first, percent), shadow=Shadow(first, 100))


def _divide(store: Store, versions: list[Adapter]) -> Store:
    store.set_split("sst2", _split(versions))
    return store


PREPARATIONS: dict[str, Callable[[Store, list[Adapter]], Store]] = {
    "put over a damaged file": _damage,
    "put after an interrupted deletion": _interrupt,
    "divide it anew": _divide,
    "divide it no more": _divide,
    "end a canary": _divide,
    "activate the canary": _divide,
    "activate the active version again": _divide,
    "put a new version beside a canary": _divide,
    "delete a task with a canary": _divide,
}


Tasks = dict[str, tuple[set[str], str | None, Split | None]]
NO_TASK: tuple[set[str], None, None] = (set(), None, None)


def tasks(store: Store) -> Tasks:
    return {e.task: ({v.digest for v in e.versions}, e.active, e.split) for e in store.entries()}


class Write:
    """One write, to be tried on copies of a store."""

    def __init__(
        self, name: str, filled: Path, scratch: Path, versions: list[Adapter], mrpc: Adapter
    ) -> None:
        self._prepare = PREPARATIONS.get(name)
        self._operation = OPERATIONS[name]
        self._filled, self._scratch = filled, scratch
        self._versions, self._mrpc = versions, mrpc
        with self._copy("whole") as store:
            self.before = tasks(store)
            self._act(store)
            self.after = tasks(store)

    def trials(self, make: Callable[[int], Faults]) -> Iterator[tuple[Store, bool, str]]:
        """Do it with a fault at its first call, its second, and so on, while there are calls: the
        store after it, whether it said that it was done, and the call that failed."""
        for number in range(1000):
            store, faults, done = self._copy(str(number)), make(number), True
            try:
                with faults.at_work():
                    self._act(store)
            except (StoreError, Crash):
                done = False
            if not faults.fired:
                assert done
                assert number > 0
                return
            yield store, done, f"call {number}, {faults.names[number]}"
            store.close()
            shutil.rmtree(store.folder)
        raise AssertionError("no end of calls")

    def _copy(self, name: str) -> Store:
        shutil.copytree(self._filled, self._scratch / name)
        store = Store(self._scratch / name)
        return store if self._prepare is None else self._prepare(store, self._versions)

    def _act(self, store: Store) -> None:
        self._operation(store, self._versions, self._mrpc)


@pytest.fixture(params=OPERATIONS)
def write(
    request: pytest.FixtureRequest,
    filled: Path,
    tmp_path: Path,
    versions: list[Adapter],
    mrpc: Adapter,
) -> Write:
    return Write(request.param, filled, tmp_path, versions, mrpc)


def check_whole(store: Store, write: Write, where: str, *, exactly: Tasks | None = None) -> None:
    """Each task is as it was before the write or as it is after it, and its files are whole, but
    for the one that was damaged before."""
    found = tasks(store)
    assert exactly is None or found == exactly, where
    for task in write.before.keys() | write.after.keys():
        digests, *traffic = found.get(task, NO_TASK)
        allowed = [state.get(task, NO_TASK) for state in (write.before, write.after)]
        assert tuple(traffic) in {state[1:] for state in allowed}, where
        assert allowed[0][0] & allowed[1][0] <= digests <= allowed[0][0] | allowed[1][0], where
    for entry in store.entries():
        for version in entry.versions:
            try:
                store.read(entry.task, version)
            except DamagedAdapter:
                assert store.path(entry.task, version.digest).read_bytes()[:6] == b"damage", where


def failing(number: int, *, lasting: bool) -> Callable[[int], Faults]:
    """A fault at one call, or at each call from one on."""
    return lambda at: Faults(
        lambda i: i >= at if lasting else i == at, lambda: OSError(number, os.strerror(number))
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_one_call_fails(write: Write, number: int) -> None:
    """Where any one call of a write fails, either it is done or nothing has changed, and the
    answer, memory and disk say the same."""
    for store, done, where in write.trials(failing(number, lasting=False)):
        state = write.after if done else write.before
        disk = Store(store.folder, read_only=True)
        assert tasks(store) == state, where
        assert store.entries() == disk.entries(), where
        check_whole(disk, write, where, exactly=state)
        store.close()
        with Store(store.folder) as again:
            check_whole(again, write, where, exactly=state)
            assert again.problems == (), where
        assert not [*store.folder.glob("*/.tmp-*"), *store.folder.glob("*/deleted")], where


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_a_disk_that_fails_for_good(write: Write, number: int) -> None:
    """Where all calls fail from one on, nothing that was acknowledged is lost, and what is said to
    be done is done."""
    for store, done, where in write.trials(failing(number, lasting=True)):
        disk = Store(store.folder, read_only=True)
        check_whole(disk, write, where, exactly=write.after if done else None)
        assert not done or tasks(store) == write.after, where


def test_a_crash_at_any_call(write: Write) -> None:
    """Wherever a process dies in a write, the next one finds the old state or the new one, and
    leaves nothing of the write behind."""
    for store, _, where in write.trials(lambda at: Faults(lambda i: i >= at, Crash)):
        store.close()
        with Store(store.folder) as again:
            check_whole(again, write, where)
            assert again.problems == (), where
        assert not [*store.folder.glob("*/.tmp-*"), *store.folder.glob("*/deleted")], where
