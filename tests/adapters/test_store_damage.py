"""A store whose files are damaged or gone, or whose disk refuses a write: what is whole is served,
what is not is refused with a sentence that says why."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from adapters.errors import DamagedAdapter, NoActiveVersion, StoreError, UnknownVersion
from adapters.file import parse
from adapters.store import Store
from adapters.traffic import Canary, Split
from tests.adapters.store_on_disk import on_disk, reopened, state

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


def test_a_split_that_cannot_be_read(store: Store, files: list[bytes]) -> None:
    """A damaged file of a split is said, and the active version gets all requests; one that is for
    a version that is not active any more, as a crash leaves it, is removed; another split mends
    both."""
    a, b = (store.put(parse(data), activate=not i)[0] for i, data in enumerate(files[:2]))
    split = Split(active=a.digest, canary=Canary(b.digest, 5))
    path = store.folder / "sst2" / "traffic"
    for content in (
        *(b"", b"{", b'{"active": 1}', b"\xff", b'{"active": "\xff"}'),
        b'{"active": "", "x": ' + b"[" * 50_000,
        json.dumps({"active": a.digest, "canary": {"digest": b.digest, "percent": 1e308}}).encode(),
        *(
            json.dumps({"active": a.digest, "rollback": rule}).encode()
            for rule in ({"errors": 7}, {"disagreement": -1}, {"after": 0})
        ),
    ):
        store.set_split("sst2", split)
        path.write_bytes(content)
        store = reopened(store)
        assert (store.find("sst2"), store.entry("sst2").split) == (a, None)
        (problem,) = store.problems
        assert problem.startswith("task 'sst2': its file 'traffic' cannot be read: ")
        store.set_split("sst2", None)
        assert not path.exists()
    store.set_split("sst2", split)
    (store.folder / "sst2" / "active").write_text(b.digest)
    store = reopened(store)
    assert (store.find("sst2"), store.entry("sst2").split) == (b, None)
    assert not path.exists()
    assert store.problems == ()


def test_a_split_beside_a_damaged_pointer(store: Store, files: list[bytes]) -> None:
    """A split that was passed over, since `active` could not be read, is not in force again after
    its version was activated and the store was opened anew."""
    a, b = (store.put(parse(data), activate=not i)[0] for i, data in enumerate(files[:2]))
    store.set_split("sst2", Split(active=a.digest, canary=Canary(b.digest, 5)))
    (store.folder / "sst2" / "active").write_text("garbage")
    store = reopened(store)
    store.activate("sst2", a.digest)
    assert (store.find("sst2"), store.entry("sst2").split) == (a, None)
    store = reopened(store)
    assert (store.find("sst2"), store.entry("sst2").split) == (a, None)
