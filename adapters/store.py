"""Versions of adapters by task, in a folder: put, get, activate, list, delete.

    <folder>/<task>/<sha256>.safetensors     one file a version; never changed, only added and
    deleted
    <folder>/<task>/active                   the sha256 of the version that requests get

Every write is a temp file, fsync, rename, fsync of the folder, in that order, and a version's file
is there before `active` names it: so a reader never sees half a file, and a crash loses nothing
that a call has returned from.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rapidfuzz import process

from adapters.cache import AdapterCache
from adapters.entry import ACTIVE, SUFFIX, Entry, Version, scan
from adapters.errors import (
    AmbiguousVersion,
    DamagedAdapter,
    InvalidAdapter,
    NoActiveVersion,
    StoreError,
    UnknownTask,
    UnknownVersion,
    VersionIsActive,
)
from adapters.file import (
    Adapter,
    Summary,
    parse,
    read_summary,
    reread,
    sync_folder,
    write_atomically,
)
from adapters.spec import shown

DEFAULT_CACHE_BYTES = 512 << 20


class Store:
    """The adapters of one folder, the least recently used of which is not kept in memory beyond
    `cache_bytes` of files. Safe to use from several threads; one process writes."""

    def __init__(self, folder: Path, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._cache = AdapterCache(cache_bytes)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._writing(), os.scandir(folder) as tasks:
                self._entries = {
                    entry.task: entry for entry in map(scan, tasks) if entry is not None
                }
        except OSError as error:
            raise StoreError(f"the store {folder} cannot be opened: {error.strerror}") from None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, task: str) -> bool:
        return task in self._entries

    def entries(self) -> list[Entry]:
        """Every task, by name. As all that is known without the disk it waits for no writer, who
        may wait for the disk."""
        return sorted(list(self._entries.values()), key=lambda entry: entry.task)  # noqa: C414  # copied in one step

    def entry(self, task: str) -> Entry:
        """One task. Raises UnknownTask with the names that are closest."""
        entry = self._entries.get(task)
        if entry is None:
            raise UnknownTask(f"there is no task {shown(task)}; {self._closest(task)}")
        return entry

    def find(self, task: str, version: str | None = None) -> Version:
        """The active version, or the one whose sha256 begins with `version`.

        Raises UnknownTask, UnknownVersion, AmbiguousVersion or NoActiveVersion.
        """
        entry = self.entry(task)
        if version is None:
            if entry.active_version is None:
                known = ", ".join(v.short for v in entry.versions)
                raise NoActiveVersion(
                    f"task {task!r} has no active version; expected one of {known} to be activated"
                )
            return entry.active_version
        fitting = [v for v in entry.versions if version and v.digest.startswith(version)]
        if len(fitting) == 1:
            return fitting[0]
        known = ", ".join(v.short for v in fitting or entry.versions)
        if fitting:
            raise AmbiguousVersion(
                f"version {version!r} of task {task!r} fits {known}; expected a longer prefix"
            )
        raise UnknownVersion(
            f"task {task!r} has no version {shown(version)}; expected one of {known}"
        )

    def get(self, task: str, version: str | None = None) -> Adapter:
        """The parsed adapter. Raises as `find`, or DamagedAdapter if its file rotted."""
        found = self.find(task, version)
        adapter = self._cache.get(found.digest)
        if adapter is None:
            try:
                adapter = reread(self.read(task, found), found.digest)
            except InvalidAdapter as error:  # put there by another program, under its true digest
                raise DamagedAdapter(
                    f"version {found.short} of task {task!r} is damaged on disk: {error}"
                ) from None
            self._cache.put(adapter)
        return adapter

    def summary(self, task: str, digest: str) -> Summary:
        """The spec and size of one version, from its file's header; kept once read. Raises
        DamagedAdapter, or as `find` if it was deleted meanwhile."""
        summaries = self.entry(task).summaries
        if digest not in summaries:
            try:
                summaries[digest] = read_summary(self.path(task, digest))
            except (OSError, InvalidAdapter) as error:
                self.find(task, digest)
                raise DamagedAdapter(
                    f"version {digest[:12]} of task {task!r} is damaged on disk: {error}"
                ) from None
        return summaries[digest]

    def read(self, task: str, version: Version) -> bytearray:
        """A version's file, as its digest says. Raises DamagedAdapter, or as `find` if it was
        deleted meanwhile."""
        try:
            # Straight into the one buffer that the adapter keeps: a second one of its size would
            # leave holes in memory.
            data = bytearray(version.bytes)
            with self.path(task, version.digest).open("rb") as file:
                del data[file.readinto(data) :]
                data += file.read()
        except OSError as error:
            self.find(task, version.digest)  # deleted just now: say that, not that it is damaged
            raise DamagedAdapter(
                f"version {version.short} of task {task!r} cannot be read: {error.strerror}"
            ) from None
        found = hashlib.sha256(data).hexdigest()
        if found != version.digest:
            reason = f"its sha256 is {found[:12]}…; expected {version.short}…"
            raise DamagedAdapter(
                f"version {version.short} of task {task!r} is damaged on disk: {reason}"
            )
        return data

    def held(self, digest: str) -> Adapter | None:
        """The parsed adapter, if it is in memory."""
        return self._cache.get(digest)

    def cached(self, digest: str) -> bool:
        """Whether the parsed adapter is in memory."""
        return digest in self._cache

    def path(self, task: str, digest: str) -> Path:
        return self.folder / task / f"{digest}{SUFFIX}"

    def put(self, data: bytes, *, activate: bool = True) -> tuple[Version, bool]:
        """Store an adapter file under its spec's task; returns the version and whether it is new.

        Raises InvalidAdapter, and StoreError where the disk does not take it; then nothing has
        changed.
        """
        adapter = parse(data)
        task = adapter.spec.task
        with self._writing():
            entry = self._entries.get(task, Entry(task))
            known = next((v for v in entry.versions if v.digest == adapter.digest), None)
            version = (
                known if known and self._holds(task, known, data) else self._write(adapter, data)
            )
            if known is None:
                entry = replace(entry, versions=(*entry.versions, version))
            if activate and entry.active != adapter.digest:
                try:
                    self._point(task, adapter.digest)
                except OSError:
                    if known is None:
                        self.path(task, adapter.digest).unlink(missing_ok=True)
                    raise
                entry = replace(entry, active=adapter.digest)
            entry.summaries[adapter.digest] = Summary(adapter.spec, adapter.parameters)
            self._entries[task] = entry
        self._cache.put(adapter)
        return version, known is None

    def activate(self, task: str, version: str) -> Version:
        """Make a version the one that requests get. Raises as `find`."""
        with self._writing():
            found = self.find(task, version)
            self._point(task, found.digest)
            self._entries[task] = replace(self._entries[task], active=found.digest)
        return found

    def delete_task(self, task: str) -> None:
        """Delete a task with all its versions."""
        with self._writing():
            self._delete(self.entry(task))

    def delete_version(self, task: str, version: str) -> Version:
        """Delete an inactive version. Raises as `find`, or VersionIsActive."""
        with self._writing():
            found = self.find(task, version)
            entry = self._entries[task]
            if entry.active == found.digest:
                raise VersionIsActive(
                    f"version {found.short} is the active one of task {task!r}; "
                    "expected another one to be activated first, or the whole task to be deleted"
                )
            rest = tuple(v for v in entry.versions if v != found)
            if not rest:
                self._delete(entry)
                return found
            self.path(task, found.digest).unlink(missing_ok=True)
            sync_folder(self.folder / task)
            self._entries[task] = replace(entry, versions=rest)
            self._cache.drop(found.digest)
        return found

    def _delete(self, entry: Entry) -> None:
        folder = self.folder / entry.task
        del self._entries[entry.task]
        (folder / ACTIVE).unlink(missing_ok=True)
        for version in entry.versions:
            self.path(entry.task, version.digest).unlink(missing_ok=True)
            self._cache.drop(version.digest)
        # somebody put another file there: it is not ours to delete
        with contextlib.suppress(OSError):
            folder.rmdir()
        sync_folder(self.folder)

    def _holds(self, task: str, version: Version, data: bytes) -> bool:
        """Whether a version's file is what it was: uploading it again mends one that rotted."""
        try:
            return self.path(task, version.digest).read_bytes() == data
        except OSError:
            return False

    def _write(self, adapter: Adapter, data: bytes) -> Version:
        folder = self.folder / adapter.spec.task
        if not folder.is_dir():
            folder.mkdir()
            sync_folder(self.folder)
        path = self.path(adapter.spec.task, adapter.digest)
        write_atomically(path, data)
        return Version(adapter.digest, len(data), path.stat().st_mtime)

    def _point(self, task: str, digest: str) -> None:
        write_atomically(self.folder / task / ACTIVE, f"{digest}\n".encode())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time, among threads and among processes; what the disk refuses becomes a
        StoreError."""
        with self._lock:
            try:
                with (self.folder / ".lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    yield
            except OSError as error:
                raise StoreError(
                    f"the store {self.folder} cannot be written: {error.strerror}"
                ) from None

    def _closest(self, task: str) -> str:
        if not self._entries:
            return "the store is empty"
        names = [
            name
            for name, _, _ in process.extract(
                task[:64], list(self._entries), limit=3, score_cutoff=60
            )
        ]
        if names:
            return f"the closest are {', '.join(map(repr, names))}"
        some = ", ".join(map(repr, sorted(self._entries)[:5]))
        return f"expected one of {some}{'…' if len(self._entries) > 5 else ''}"
