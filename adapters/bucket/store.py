"""A store of adapters in a bucket, which several processes read and write at once.

    <prefix>/blobs/<sha256>.safetensors    one file per version; never changed
    <prefix>/log/…, <prefix>/snapshots/…   which versions a task has: `adapters.bucket.log`

    <cache>/blobs/<sha256>.safetensors     copies
    <cache>/state-….json                   the state that was seen last, for a start without the
                                           bucket
    <cache>/quarantine/                    files that had another sha256

A write puts the file first and the change last; nothing that was acknowledged is lost with a
process.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import BinaryIO, Self

from adapters.bucket.blobs import Blobs
from adapters.bucket.changes import SPLIT_FORMAT, Change, Kind, State
from adapters.bucket.kept_state import KeptState
from adapters.bucket.log import Log, key_of
from adapters.bucket.objects import NotPermitted, Objects
from adapters.cache import AdapterCache
from adapters.entry import Entry, Version
from adapters.errors import (
    DamagedAdapter,
    InvalidAdapter,
    StoreError,
    StoreUnreachable,
    for_operators,
)
from adapters.file import Adapter, Summary, reread
from adapters.lookup import check_split, check_unused, unknown, version_of
from adapters.regular import opened
from adapters.spec import BackboneRef
from adapters.traffic import Left, Split

DEFAULT_CACHE_BYTES = 512 << 20
DEFAULT_COPIES_BYTES = 16 << 30
DEFAULT_TIMEOUT = 5.0


class BucketStore:
    """The adapters under one prefix of a bucket. Safe to use from several threads and processes.

    Has the methods of `adapters.store.Store`, with the same meaning and errors; and
    StoreUnreachable where the bucket is needed and gives no answer. What others write is seen by
    `refresh`, which a thread calls again and again once `follow` was called.

    `check`, `cache_bytes` and `read_only` are `Store`'s. `deleted` is called with each task that
    goes, `fetched` with the seconds of each file that comes, `failed` at each error of the bucket,
    `told` with the error when it can be read no more, and with None when it can be read again.
    """

    def __init__(
        self,
        objects: Objects,
        folder: Path,
        *,
        backbone: BackboneRef | None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        copies_bytes: int = DEFAULT_COPIES_BYTES,
        timeout: float = DEFAULT_TIMEOUT,
        read_only: bool = False,
        check: Callable[[Adapter], None] | None = None,
        deleted: Callable[[str], None] = lambda _: None,
        fetched: Callable[[float], None] = lambda _: None,
        failed: Callable[[], None] = lambda: None,
        told: Callable[[StoreError | None], None] = lambda _: None,
    ) -> None:
        """Open the prefix, or begin a store there for `backbone`; where the bucket does not answer,
        with the state that `folder` holds. Raises StoreError where there is neither, and for a
        bucket that ignores conditions, another backbone's store, a prefix with objects of others,
        or a log of a newer format."""
        self.url = objects.url
        self._objects, self._backbone, self._check = objects, backbone, check
        self._deleted, self._failed = deleted, failed
        self._problems: list[str] = []
        self._why_read_only: str | None = "it was opened so" if read_only else None
        self._conditions_hold = False
        self._founder = False
        self._closed = threading.Event()
        self._wanted = threading.Event()
        self._next: Future[None] = Future()
        self._next_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._unverified = False
        self._silent = False  # the bucket, when it was read last
        self.reached = False
        self._told = told
        self._readable = False  # as was told last
        self._cache = AdapterCache(cache_bytes)
        self._log = Log(
            objects, f"{socket.gethostname()}/{os.getpid()}", 2 * timeout, self._applied
        )
        name = hashlib.sha256(self.url.encode()).hexdigest()[:12]
        self._kept = KeptState(folder / f"state-{name}.json")
        try:
            self._blobs = Blobs(objects, folder, copies_bytes, fetched)
        except OSError as error:
            raise StoreError(
                f"the folder {folder} for copies of the bucket cannot be used: {error.strerror};"
                " expected ADAMIX_CACHE to be a folder to write to"
            ) from None
        try:
            self._open()
        except StoreUnreachable as error:
            failed()
            self._open_without_bucket(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Follow and write no more. What is stored can still be read."""
        self._closed.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
        self._kept.write(self._log.state, at_once=True)
        self._why_read_only = "it was closed"

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, task: str) -> bool:
        return task in self._entries

    @property
    def _entries(self) -> dict[str, Entry]:
        return self._log.state.entries

    @property
    def generation(self) -> int:
        """How many changes are known."""
        return self._log.state.generation

    @property
    def age(self) -> float:
        """Seconds since the last complete poll began; infinite if there was none."""
        return self._log.age

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
        """Whether another process gives the store the shipped adapters: all but the one that began
        its log."""
        return not self._founder

    def mark_seeded(self) -> None:
        """Nothing more is to be recorded: the log has begun."""
        self._founder = False

    def entries(self) -> list[Entry]:
        """List every task, by name."""
        return sorted(list(self._entries.values()), key=lambda entry: entry.task)  # noqa: C414  # copied in one step

    def entry(self, task: str) -> Entry:
        """Return one task. Raises UnknownTask with the closest names."""
        entry = self._entries.get(task)
        if entry is None:
            raise unknown(task, self._entries)
        return entry

    def find(self, task: str, version: str | None = None) -> Version:
        """Return the active version, or the one whose sha256 begins with `version`. Raises as
        `Store.find`."""
        return version_of(self.entry(task), version)

    def get(self, task: str, version: str | None = None) -> Adapter:
        """Return the parsed adapter. Raises as `find`, as `check`, StoreUnreachable if its file is
        not at hand, or DamagedAdapter."""
        found = self.find(task, version)
        return self._cache.get(found.digest) or self._load(task, found)

    def summary(self, task: str, digest: str) -> Summary:
        """Return the spec and size of one version, from its file's header. Raises as `get`."""
        entry = self.entry(task)
        known = entry.summaries.get(digest)
        if known is not None:
            return known
        found = self.find(task, digest)
        if not self._blobs.path(digest).exists():
            self._check_answers()
        summary = self._blobs.header(found)
        if summary is None:  # the whole file says what is wrong with it
            adapter = self._parsed(task, found)
            summary = Summary(adapter.spec, adapter.parameters)
        if digest == entry.listed_version.digest:
            entry.summaries[digest] = summary
        return summary

    def read(self, task: str, version: Version) -> memoryview:
        """Read a version's file and check its sha256. Raises DamagedAdapter, StoreUnreachable, or
        as `find` if it was deleted meanwhile."""
        self.find(task, version.digest)
        if not self._blobs.path(version.digest).exists():
            self._check_answers()
        try:
            return self._blobs.read(version.digest)
        except StoreUnreachable:
            self._failed()
            raise

    def open(self, task: str, version: Version) -> BinaryIO:
        """Open a version's file to be read, as `Store.open`. Raises as `read`."""
        data = self.read(task, version)
        try:
            return opened(self._blobs.path(version.digest))
        except OSError:  # no copy could be kept
            return io.BytesIO(data)

    def held(self, digest: str) -> Adapter | None:
        """Return the parsed adapter if it is in memory."""
        return self._cache.get(digest)

    def cached(self, digest: str) -> bool:
        """Whether the parsed adapter is in memory."""
        return digest in self._cache

    def put(self, adapter: Adapter, *, activate: bool = True) -> tuple[Version, bool]:
        """Store a parsed adapter's file under its task. Returns the version, and whether it is new.
        Putting a version again mends its file. Raises StoreError, or as `check`."""
        if self._check is not None:
            self._check(adapter)
        task, digest = adapter.spec.task, adapter.digest
        new = False

        def decide(state: State) -> Change | None:
            nonlocal new
            entry = state.entries.get(task)
            new = entry is None or entry.version(digest) is None
            if new:
                kind: Kind = "upload" if activate else "upload_inactive"
                return Change(change=kind, task=task, digest=digest, bytes=adapter.bytes)
            if not activate or entry is None or entry.active == digest:
                return None
            return Change(change="activate", task=task, digest=digest)

        with self._writing():
            self._blobs.write(digest, adapter.data)
            if self._log.commit(decide):
                self._blobs.mend(digest, adapter.data)
        self._cache.put(adapter)
        entry = self._entries.get(task)
        version = None if entry is None else entry.version(digest)
        if entry is None or version is None:  # another replica has just deleted it
            return Version(digest, adapter.bytes, 0.0), new
        if entry.listed_version.digest == digest:
            entry.summaries[digest] = Summary(adapter.spec, adapter.parameters)
        return version, new

    def activate(self, task: str, version: str) -> Version:
        """Make a version the one that all requests get, as `Store.activate`. Raises as `get`, or
        StoreError."""

        def decide(state: State) -> Change | None:
            found = version_of(self.entry(task), version)
            entry = state.entries[task]
            if entry.active == found.digest and entry.split is None:
                return None
            return Change(change="activate", task=task, digest=found.digest)

        with self._writing():
            self._log.refresh()
            self._load(task, self.find(task, version))  # what cannot be served is not activated
            self._log.commit(decide)
            return self.find(task, version)

    def set_split(self, task: str, split: Split | None) -> Entry:
        """Divide a task's requests from now on, as `Store.set_split`. Raises UnknownTask,
        UnknownVersion, ActiveHasChanged or StoreError."""

        def decide(_: State) -> Change | None:
            entry = self.entry(task)
            if split is not None:
                check_split(entry, split)
            return None if entry.split == split else _divided(task, split)

        with self._writing():
            self._log.commit(decide)
            return self.entry(task)

    def end_canary(self, task: str, split: Split, left: Left) -> bool:
        """Compare and swap, as `Store.end_canary`: one writer of all replicas wins. Raises
        StoreError."""

        def decide(state: State) -> Change | None:
            entry = state.entries.get(task)
            if entry is None or entry.split != split:
                return None
            return _divided(task, split.without_canary(left))

        with self._writing():
            return self._log.commit(decide)

    def delete_task(self, task: str) -> None:
        """Delete a task with all its versions. Raises UnknownTask or StoreError."""

        def decide(_: State) -> Change:
            return Change(change="delete_task", task=self.entry(task).task)

        with self._writing():
            self._log.commit(decide)

    def delete_version(self, task: str, version: str) -> Version:
        """Delete a version that no request gets; the last one takes its task along. Raises as
        `find`, VersionIsActive, VersionInTraffic or StoreError."""
        found: Version | None = None

        def decide(_: State) -> Change:
            nonlocal found
            entry = self.entry(task)
            found = version_of(entry, version)
            check_unused(entry, found)
            return Change(change="delete_version", task=task, digest=found.digest)

        with self._writing():
            self._log.commit(decide)
        assert found is not None  # `decide` found it, or raised
        return found

    def refresh(self) -> None:
        """See what others wrote until now. Raises StoreUnreachable, or StoreError for a change of a
        newer format."""
        try:
            if self._unverified:
                self._verify()
            self._log.refresh()
            self._kept.write(self._log.state)
        except StoreError as error:
            self._silent = isinstance(error, StoreUnreachable)
            self.reached = False
            self._failed()
            if self._readable:
                self._readable = False
                self._told(error)
            raise
        self._silent = False
        self.reached = True
        if not self._readable:
            self._readable = True
            self._told(None)

    def follow(self, seconds: float) -> None:
        """Refresh every so many seconds from now on, until `close`."""
        self._thread = threading.Thread(
            target=self._follow, args=(seconds,), name="store", daemon=True
        )
        self._thread.start()

    def soon(self) -> Future[None]:
        """Refresh now, in the thread of `follow`. The future has what that raises."""
        with self._next_lock:
            wanted = self._next
        self._wanted.set()
        return wanted

    def _follow(self, seconds: float) -> None:
        while not self._closed.is_set():
            self._wanted.wait(seconds)
            self._wanted.clear()
            with self._next_lock:
                asked, self._next = self._next, Future()
            try:
                self.refresh()
            except StoreError as error:
                asked.set_exception(error)
            else:
                asked.set_result(None)

    def _open(self) -> None:
        self._log.load()
        if self._log.state.generation == 0:
            others = self._objects.foreign()
            if others:
                raise StoreError(
                    f"the bucket {self.url} holds {', '.join(map(repr, others))}, which is no"
                    " store's; expected a prefix with nothing in it, or a store"
                )
        self._check_backbone()
        if self._why_read_only is None:
            try:
                self._check_conditions()
                self._found()
            except NotPermitted as error:
                self._why_read_only = str(error)
                self._problems.append(f"nothing can be written: {for_operators(error)}")
        self._kept.write(self._log.state)
        self.reached = self._readable = True

    def _open_without_bucket(self, error: StoreUnreachable) -> None:
        try:
            state = self._kept.read()
        except OSError:
            raise StoreUnreachable(
                f"{error}; and the folder {self._kept.path.parent} holds no earlier state of this"
                " store to begin with",
                error.detail,
            ) from None
        self._log.state, self._unverified = state, True
        self._check_backbone()
        self._problems.append(f"the store is served as it was seen last: {for_operators(error)}")

    def _verify(self) -> None:
        """After a start without the bucket: its log must be the one that the kept state is of."""
        first = self._objects.read(key_of(1))
        founded = self._log.state.founded
        if first is None or founded is None or founded.nonce.encode() not in first:
            raise StoreError(
                f"the bucket {self.url} has another log than the one that {self._kept.path} is a"
                " state of; expected a restart, which reads the bucket's"
            )
        self._unverified = False

    def _check_backbone(self) -> None:
        founded = self._log.state.founded
        if founded is None or self._backbone is None:
            return
        if founded.digest != self._backbone.fingerprint:
            raise StoreError(
                f"the store {self.url} is for the backbone {founded.task!r} with fingerprint"
                f" {founded.digest[:12]}, and this service runs {self._backbone.name!r} with"
                f" fingerprint {self._backbone.fingerprint[:12]}; expected a prefix of its own for"
                " each backbone"
            )

    def _check_conditions(self) -> None:
        if not self._conditions_hold:
            self._objects.check_conditions()
            self._conditions_hold = True

    def _found(self) -> None:
        """Begin the log, if nobody has."""
        backbone = self._backbone
        if backbone is None or self._log.state.generation:
            return

        def decide(state: State) -> Change | None:
            if state.generation:
                return None
            return Change(change="found", task=backbone.name, digest=backbone.fingerprint)

        self._founder = self._log.commit(decide)
        self._check_backbone()

    def _applied(self, change: Change) -> None:
        if change.change == "delete_version":
            self._cache.drop(change.digest)
        if change.change != "found" and change.task not in self._log.state.entries:
            self._deleted(change.task)

    def _load(self, task: str, version: Version) -> Adapter:
        adapter = self._parsed(task, version)
        if self._check is not None:
            self._check(adapter)
        self._cache.put(adapter)
        return adapter

    def _parsed(self, task: str, version: Version) -> Adapter:
        try:
            return reread(self.read(task, version), version.digest)
        except InvalidAdapter as error:  # put there by another program, under its true digest
            raise DamagedAdapter(
                f"version {version.short} of task {task!r} is damaged in the bucket {self.url}:"
                f" {error}"
            ) from None

    def _check_answers(self) -> None:
        """Raises StoreUnreachable where the thread that follows the log got no answer last: it will
        notice the next one, for which all who ask would wait in vain."""
        if self._thread is not None and self._silent:
            raise StoreUnreachable(
                f"the bucket {self.url} gave no answer when it was read last; expected one: try"
                " again in a second"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        if self._why_read_only is not None:
            raise StoreError(
                f"the store {self.url} is read-only: {self._why_read_only}; expected a bucket that"
                " this process may write to"
            )
        self._check_answers()
        try:
            if self._unverified:
                self._verify()
            self._check_conditions()
            yield
        except (StoreUnreachable, NotPermitted):
            self._failed()
            raise
        finally:
            self._kept.write(self._log.state)


def _divided(task: str, split: Split | None) -> Change:
    return Change(change="traffic", task=task, split=split, format=SPLIT_FORMAT)
