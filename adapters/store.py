"""Keep versions of adapters by task in a folder: put, get, activate, divide, list, delete.

    <folder>/<task>/<sha256>.safetensors     one file per version; never changed
    <folder>/<task>/active                   the sha256 of the version that requests get
    <folder>/<task>/traffic                  which requests other versions get; void once `active`
                                             names another version than it does
    <folder>/<task>/deleted                  the task is deleted; its other files go next
    <folder>/.lock                           locked by the process that may write
    <folder>/.seeded                         the store was given the shipped adapters once

A write changes the disk first and memory last. Each step on disk has a step that undoes it; where a
step fails, those before it are undone, and memory stays as it was. Where that fails too, memory
becomes what the disk holds. So the answer, memory and disk agree.

A crash loses nothing that a call has returned from: each step is a temporary file, fsync, rename,
fsync of the folder, and a version's file is there before `active` names it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from adapters import disk
from adapters.cache import AdapterCache
from adapters.disk import LEFTOVER
from adapters.entry import (
    ACTIVE,
    DELETED,
    SUFFIX,
    TASK,
    TRAFFIC,
    Entry,
    Version,
    clear,
    created,
    read_active,
    scan,
)
from adapters.errors import (
    DamagedAdapter,
    InvalidAdapter,
    StoreError,
)
from adapters.file import Adapter, Summary, read_summary, reread
from adapters.lookup import check_split, check_unused, unknown, version_of
from adapters.pieces import read_file
from adapters.regular import opened, read_bytes
from adapters.traffic import Left, Split, packed

DEFAULT_CACHE_BYTES = 512 << 20
LOCK = ".lock"
LOCK_SECONDS = 5.0
LOCK_POLL_SECONDS = 0.05
SEEDED = ".seeded"
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

Undo = list[Callable[[], None]]


class Store:
    """The adapters of one folder. Safe to use from several threads.

    Parsed adapters stay in memory up to `cache_bytes` of files; the least recently used go first.
    `check` is called with each adapter before it is kept in memory for the first time; what it
    raises, `put`, `get` and `activate` raise.

    One process writes to a folder: it holds a lock until `close`, or its end. Where the folder
    cannot be written, or with `read_only`, the store serves what was there when it was opened, and
    each write raises StoreError.
    """

    def __init__(
        self,
        folder: Path,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        *,
        read_only: bool = False,
        lock_seconds: float = LOCK_SECONDS,
        check: Callable[[Adapter], None] | None = None,
    ) -> None:
        """Open a folder, or make it. Raises StoreError if it cannot be read, or if another process
        holds its lock for `lock_seconds`."""
        self.folder = folder
        self._lock = threading.RLock()
        self._cache = AdapterCache(cache_bytes)
        self._check = check
        self._entries: dict[str, Entry] = {}
        self._unreadable: dict[str, str] = {}
        self._problems: list[str] = []
        self._release: Callable[[], object] | None = None
        self._why_read_only: str | None = "it was opened so" if read_only else None
        try:
            if not read_only:
                self._claim(lock_seconds)
            self._scan()
        except OSError as error:
            raise StoreError(f"the store {folder} cannot be opened: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write no more, and let another process write. What is stored can still be read."""
        with self._lock:
            if self._release is not None:
                self._release()
                self._release = None
                self._why_read_only = "it was closed"

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, task: str) -> bool:
        return task in self._entries

    @property
    def why_read_only(self) -> str | None:
        """Why nothing can be written, if that is so."""
        return self._why_read_only

    @property
    def problems(self) -> tuple[str, ...]:
        """What was found wrong when the store was opened, one sentence each, for a log."""
        return tuple(self._problems)

    @property
    def seeded(self) -> bool:
        """Whether `mark_seeded` was called in any process."""
        return (self.folder / SEEDED).exists()

    def mark_seeded(self) -> None:
        """Record that the store was given the shipped adapters: deleted ones shall not come back.
        Raises StoreError."""
        with self._writing():
            disk.write_atomically(self.folder / SEEDED, b"")

    def entries(self) -> list[Entry]:
        """List every task, by name. Waits for no writer, who may wait for the disk."""
        return sorted(list(self._entries.values()), key=lambda entry: entry.task)  # noqa: C414  # copied in one step

    def entry(self, task: str) -> Entry:
        """Return one task. Raises UnknownTask with the closest names, or DamagedAdapter for a task
        whose folder cannot be read."""
        entry = self._entries.get(task)
        if entry is not None:
            return entry
        if task in self._unreadable:
            raise DamagedAdapter(f"task {task!r} cannot be read: {self._unreadable[task]}")
        raise unknown(task, self._entries)

    def find(self, task: str, version: str | None = None) -> Version:
        """Return the active version, or the one whose sha256 begins with `version`.

        Raises UnknownTask, UnknownVersion, AmbiguousVersion, NoActiveVersion or DamagedAdapter.
        """
        return version_of(self.entry(task), version)

    def get(self, task: str, version: str | None = None) -> Adapter:
        """Return the parsed adapter. Raises as `find`, as `check`, or DamagedAdapter if its file is
        damaged."""
        found = self.find(task, version)
        return self._cache.get(found.digest) or self._load(task, found)

    def summary(self, task: str, digest: str) -> Summary:
        """Return the spec and size of one version, from its file's header.

        That of the version that lists show is kept in memory. Raises DamagedAdapter, or as `find`
        if the version was deleted meanwhile.
        """
        entry = self.entry(task)
        known = entry.summaries.get(digest)
        if known is not None:
            return known
        try:
            summary = read_summary(self.path(task, digest))
        except (OSError, InvalidAdapter) as error:
            found = self.find(task, digest)
            raise DamagedAdapter(
                f"version {entry.shown(found)} of task {task!r} is damaged on disk: {error}"
            ) from None
        if digest == entry.listed_version.digest:
            entry.summaries[digest] = summary
        return summary

    def read(self, task: str, version: Version) -> memoryview:
        """Read a version's file and check its sha256. Raises DamagedAdapter, or as `find` if it was
        deleted meanwhile."""
        try:
            data = read_file(self.path(task, version.digest), version.bytes)
        except OSError as error:
            raise self._not_read(task, version, error) from None
        found = hashlib.sha256(data).hexdigest()
        if found != version.digest:
            reason = f"its sha256 is {found[:12]}…; expected {version.short}…"
            raise DamagedAdapter(
                f"version {version.short} of task {task!r} is damaged on disk: {reason}"
            )
        return data

    def open(self, task: str, version: Version) -> BinaryIO:
        """Open a version's file to be read, after a look through all of it. It can be read to its
        end, though it is deleted meanwhile. Raises as `read`."""
        self.read(task, version)
        try:
            return opened(self.path(task, version.digest))
        except OSError as error:
            raise self._not_read(task, version, error) from None

    def held(self, digest: str) -> Adapter | None:
        """Return the parsed adapter if it is in memory."""
        return self._cache.get(digest)

    def cached(self, digest: str) -> bool:
        """Whether the parsed adapter is in memory."""
        return digest in self._cache

    def path(self, task: str, digest: str) -> Path:
        """Where a version's file is."""
        return self.folder / task / f"{digest}{SUFFIX}"

    def put(self, adapter: Adapter, *, activate: bool = True) -> tuple[Version, bool]:
        """Store a parsed adapter's file under its task. Returns the version, and whether it is new.

        Putting a version again mends its file if that is damaged. Raises StoreError, or as `check`;
        then nothing has changed.
        """
        if self._check is not None:
            self._check(adapter)
        task, digest = adapter.spec.task, adapter.digest
        with self._writing(task) as undo:
            entry = self._prepare(task, undo)
            known = entry.version(digest)
            version = known
            if version is None:
                undo.append(partial(disk.remove, self.path(task, digest)))
                version = self._write(adapter)
            elif not self._holds(task, version):
                version = self._write(adapter, version.created)
            others = tuple(v for v in entry.versions if v.digest != digest)
            entry = entry.changed(versions=(*others, version))
            if activate and not self._points(entry, digest):
                entry = self._activated(entry, digest, undo)
            if entry.listed_version.digest == digest:
                entry.summaries[digest] = Summary(adapter.spec, adapter.parameters)
            self._remember(entry)
        self._cache.put(adapter)
        return version, known is None

    def activate(self, task: str, version: str) -> Version:
        """Make a version the one that all requests get: a split of the traffic ends. Raises as
        `get`, or StoreError."""
        with self._writing(task) as undo:
            found = self.find(task, version)
            self._load(task, found)  # from disk: what cannot be served is not activated
            entry = self._entries[task]
            if not self._points(entry, found.digest) or self._divided(entry):
                self._remember(self._activated(entry, found.digest, undo))
        return found

    def set_split(self, task: str, split: Split | None) -> Entry:
        """Divide a task's requests from now on, or let the active version get all of them. Raises
        UnknownTask, UnknownVersion, ActiveHasChanged where `split` is for another active version,
        DamagedAdapter or StoreError."""
        with self._writing(task) as undo:
            entry = self.entry(task)
            if split is not None:
                check_split(entry, split)
            if entry.split != split or (split is None and self._divided(entry)):
                self._divide(task, split, undo)
                entry = entry.changed(split=split)
                self._remember(entry)
        return entry

    def end_canary(self, task: str, split: Split, left: Left) -> bool:
        """Compare and swap: end the canary of a split and keep why it left, if the task's requests
        are divided so still; whether they were. Raises StoreError."""
        with self._writing(task) as undo:
            entry = self._entries.get(task)
            if entry is None or entry.split != split:
                return False
            rest = split.without_canary(left)
            self._divide(task, rest, undo)
            self._remember(entry.changed(split=rest))
        return True

    def delete_task(self, task: str) -> None:
        """Delete a task with all its versions. Raises UnknownTask, DamagedAdapter or StoreError."""
        with self._writing(task) as undo:
            self._delete(self.entry(task), undo)

    def delete_version(self, task: str, version: str) -> Version:
        """Delete a version that no request gets; the last one takes its task along. Raises as
        `find`, VersionIsActive, VersionInTraffic or StoreError."""
        with self._writing(task) as undo:
            found = self.find(task, version)
            entry = self._entries[task]
            check_unused(entry, found)
            rest = tuple(v for v in entry.versions if v != found)
            if not rest:
                self._delete(entry, undo)
                return found
            path = self.path(task, found.digest)
            unneeded = path.with_name(f"{LEFTOVER}{found.digest}")
            if path.exists():
                undo.append(partial(_rename_back, unneeded, path))
                disk.rename(path, unneeded)
            self._remember(entry.changed(versions=rest))
            self._cache.drop(found.digest)
            with contextlib.suppress(OSError):  # the next start removes it
                unneeded.unlink(missing_ok=True)
        return found

    def _claim(self, seconds: float) -> None:
        """Lock the folder for this process, or find that it can only be read."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(
                # A user who may read it may lock it, too.
                self.folder / LOCK,
                os.O_RDWR | os.O_CREAT,
                0o600,
            )
        except OSError as error:
            if error.errno not in _NOT_WRITABLE or not self.folder.is_dir():
                raise
            self._why_read_only = str(error.strerror)
            return
        try:
            _wait_for_lock(descriptor, self.folder, seconds)
        except BaseException:
            os.close(descriptor)
            raise
        # also when the last reference to the store goes
        self._release = weakref.finalize(self, _close, descriptor)

    def _scan(self) -> None:
        """Read every task. One that cannot be read holds up no other."""
        repair = self._release is not None
        with os.scandir(self.folder) as folders:
            for folder in folders:
                # A name that no task has, such as a volume's `lost+found`, is not the store's.
                if not TASK.fullmatch(folder.name):
                    continue
                try:
                    entry = (
                        scan(folder.name, folder.path, repair=repair, told=self._problems.append)
                        if folder.is_dir()
                        else None
                    )
                except OSError as error:
                    self._set_aside(folder.name, str(error.strerror))
                    continue
                if entry is not None and entry.problem is not None:
                    self._problems.append(f"task {entry.task!r}: {entry.problem}")
                    entry = self._mended(entry) if repair else entry
                self._adopt(folder.name, entry)

    def _set_aside(self, task: str, reason: str) -> None:
        self._problems.append(f"task {task!r} cannot be read, and is left out: {reason}")
        self._entries.pop(task, None)
        self._unreadable[task] = reason

    def _mended(self, entry: Entry) -> Entry:
        """Write the `active` that a task must have had, so that a further version does not make it
        doubtful again."""
        if entry.active is None:
            return entry
        try:
            disk.write_atomically(self.folder / entry.task / ACTIVE, f"{entry.active}\n".encode())
        except OSError:  # the next write of `active` mends it
            return entry
        return entry.changed(problem=None)

    def _adopt(self, task: str, entry: Entry | None) -> None:
        """Make memory what the disk holds of a task."""
        if entry is None:
            self._entries.pop(task, None)
            self._unreadable.pop(task, None)
        elif entry.versions:
            self._remember(entry)
        else:
            self._entries.pop(task, None)
            self._unreadable[task] = entry.problem or "it has no versions"

    def _remember(self, entry: Entry) -> None:
        self._unreadable.pop(entry.task, None)
        self._entries[entry.task] = entry

    def _load(self, task: str, version: Version) -> Adapter:
        """Read, check and keep one version."""
        try:
            adapter = reread(self.read(task, version), version.digest)
        except InvalidAdapter as error:  # put there by another program, under its true digest
            raise DamagedAdapter(
                f"version {version.short} of task {task!r} is damaged on disk: {error}"
            ) from None
        if self._check is not None:
            self._check(adapter)
        self._cache.put(adapter)
        entry = self._entries.get(task)
        if entry is None or entry.version(version.digest) is None:
            self._cache.drop(version.digest)  # deleted meanwhile
        return adapter

    def _holds(self, task: str, version: Version) -> bool:
        """Whether a version's file is what it was."""
        try:
            self.read(task, version)
        except DamagedAdapter:
            return False
        return True

    def _prepare(self, task: str, undo: Undo) -> Entry:
        """The task's entry, and its folder ready to be written to."""
        known, folder = self._entries.get(task), self.folder / task
        # Somebody may have taken it away: then the disk says what there is.
        if known is not None and folder.is_dir():
            return known
        if (folder / DELETED).exists():
            clear(folder)
        if not folder.is_dir():
            undo.append(partial(_remove_folder, folder))
            folder.mkdir()
            disk.sync_folder(self.folder)
        return scan(task, str(folder), repair=True) or Entry(task)

    def _write(self, adapter: Adapter, since: float | None = None) -> Version:
        path = self.path(adapter.spec.task, adapter.digest)
        time_ns = None if since is None else round(since * 1e6) * 1000
        disk.write_atomically(path, adapter.data, time_ns=time_ns)
        return Version(adapter.digest, adapter.bytes, created(path.stat()))

    def _points(self, entry: Entry, digest: str) -> bool:
        """Whether a version is the active one, in memory and on disk."""
        if entry.active != digest or entry.problem is not None:
            return False
        return read_active(str(self.folder / entry.task)) == digest

    def _point(self, task: str, digest: str, undo: Undo) -> None:
        """Make `active` name a version."""
        path = self.folder / task / ACTIVE
        undo.append(partial(_restore, path, _content(path)))
        disk.write_atomically(path, f"{digest}\n".encode())

    def _activated(self, entry: Entry, digest: str, undo: Undo) -> Entry:
        """Make a version active on disk, then end the split: it is void by then."""
        if not self._points(entry, digest):
            self._point(entry.task, digest, undo)
        if self._divided(entry):
            self._divide(entry.task, None, undo)
        return entry.changed(active=digest, problem=None, split=None)

    def _divided(self, entry: Entry) -> bool:
        """Whether there is a file `traffic`, also one that could not be read or was void: it must
        not come to life when its `active` is activated again."""
        return entry.split is not None or os.path.lexists(self.folder / entry.task / TRAFFIC)

    def _divide(self, task: str, split: Split | None, undo: Undo) -> None:
        """Make `traffic` hold a split, or be gone."""
        path = self.folder / task / TRAFFIC
        undo.append(partial(_restore, path, _content(path)))
        if split is None:
            disk.remove(path)
        else:
            disk.write_atomically(path, packed(split))

    def _delete(self, entry: Entry, undo: Undo) -> None:
        """One rename deletes the task, `active`'s if that is there: it takes no room on a full
        disk."""
        folder = self.folder / entry.task
        files = (folder / ACTIVE, *(self.path(entry.task, v.digest) for v in entry.versions))
        there = next((path for path in files if path.exists()), None)
        if there is not None:
            undo.append(partial(_rename_back, folder / DELETED, there))
            disk.rename(there, folder / DELETED)
        self._adopt(entry.task, None)
        for version in entry.versions:
            self._cache.drop(version.digest)
        with contextlib.suppress(OSError):  # the next start, or the next upload, completes it
            clear(folder)

    def _not_read(self, task: str, version: Version, error: OSError) -> DamagedAdapter:
        """What to raise for a file that cannot be read. Raises as `find` where it was deleted just
        now."""
        self.find(task, version.digest)
        return DamagedAdapter(
            f"version {version.short} of task {task!r} cannot be read: {error.strerror}"
        )

    @contextlib.contextmanager
    def _writing(self, task: str | None = None) -> Iterator[Undo]:
        """Let one thread write at a time. If it fails, undo the steps that it lists; what the disk
        refuses becomes a StoreError."""
        with self._lock:
            if self._release is None:
                raise StoreError(
                    f"the store {self.folder} is read-only: {self._why_read_only}; expected a"
                    " folder that this process may write to"
                )
            undo: Undo = []
            try:
                yield undo
            except BaseException as error:
                undone = self._undo(task, undo)
                if isinstance(error, OSError):
                    raise StoreError(
                        f"the store {self.folder} cannot be written: {error.strerror}"
                        + ("" if undone else "; what was written could not be taken back either")
                    ) from None
                raise

    def _undo(self, task: str | None, undo: Undo) -> bool:
        """Undo steps, the last one first; whether that succeeded.

        It ends at the first step that cannot be undone: a version's file must not go while `active`
        may name it. Memory then becomes what the disk holds.
        """
        try:
            for step in reversed(undo):
                step()
        except OSError:
            if task is not None:
                with contextlib.suppress(OSError):
                    self._adopt(task, scan(task, str(self.folder / task), repair=False))
            return False
        return True


def _wait_for_lock(descriptor: int, folder: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"the store {folder} is in use by another process, which may write to it;"
                    " expected one writer for a store: stop that process, or open the store"
                    " read-only"
                ) from None
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # the lock is gone either way
        os.close(descriptor)


def _content(path: Path) -> bytes | None:
    try:
        return read_bytes(path) if path.is_file() else None
    except FileNotFoundError:
        return None


def _restore(path: Path, content: bytes | None) -> None:
    """Give a file the content that it had. One that still has it needs no room on a full disk."""
    if content is None:
        disk.remove(path)
    elif _content(path) != content:
        disk.write_atomically(path, content)


def _rename_back(new: Path, old: Path) -> None:
    if new.exists():
        disk.rename(new, old)


def _remove_folder(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
