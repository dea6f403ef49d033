"""Adapter files of a bucket, with copies on the local disk: each is checked by its sha256 whenever
it is read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from adapters import disk, header
from adapters.bucket.objects import Objects
from adapters.entry import SUFFIX, Version
from adapters.errors import DamagedAdapter, InvalidAdapter, StoreError
from adapters.file import Summary, read_summary, summary_of
from adapters.pieces import read_file

TRASH = "trash"  # where `gc` moves files before it deletes them
QUARANTINE = "quarantine"
USUAL_HEADER_BYTES = 64 << 10


def key_of(digest: str) -> str:
    """Where the bucket has a file."""
    return f"blobs/{digest}{SUFFIX}"


def trash_of(digest: str) -> str:
    """The folder into which `gc` moves a file, under another name each time."""
    return f"{TRASH}/{digest}"


class Blobs:
    """Files by digest. Safe to use from several threads.

    `fetched` is called with the seconds of each fetch from the bucket. Copies beyond `max_bytes`
    are removed, those used longest ago first.
    """

    def __init__(
        self, objects: Objects, folder: Path, max_bytes: int, fetched: Callable[[float], None]
    ) -> None:
        """Raises OSError where the folder cannot be made or read."""
        self._objects, self._folder, self._max_bytes = objects, folder / "blobs", max_bytes
        self._quarantine = folder / QUARANTINE
        self._fetched = fetched
        self._lock = threading.Lock()
        self._folder.mkdir(parents=True, exist_ok=True)
        found = [
            (file.stat(), file.name) for file in os.scandir(self._folder) if _is_copy(file.name)
        ]
        found.sort(key=lambda pair: pair[0].st_mtime_ns)
        self._copies = OrderedDict((name, about.st_size) for about, name in found)

    def path(self, digest: str) -> Path:
        """Where the copy is, if there is one."""
        return self._folder / f"{digest}{SUFFIX}"

    def read(self, digest: str) -> memoryview:
        """A file's bytes, from the copy or the bucket. What has another sha256 is put into
        quarantine, and fetched once more.

        Raises StoreUnreachable, or DamagedAdapter where the bucket has no such file or a damaged
        one."""
        data = self._copy(digest)
        if data is not None:
            return data
        for _ in range(2):
            began = time.perf_counter()
            found = self._found(digest)
            if found is None:
                raise DamagedAdapter(
                    f"the bucket {self._objects.url} has no {key_of(digest)!r}; expected the"
                    " adapter to be uploaded again"
                )
            self._fetched(time.perf_counter() - began)
            sha256 = hashlib.sha256(found).hexdigest()
            if sha256 == digest:
                self.keep(digest, found)
                return found
            self._set_aside(digest, found)
        raise DamagedAdapter(
            f"{key_of(digest)!r} of the bucket {self._objects.url} is damaged: its sha256 is"
            f" {sha256[:12]}…; expected {digest[:12]}…, and the adapter to be uploaded again"
        )

    def _found(self, digest: str) -> memoryview | None:
        found = self._objects.fetch(key_of(digest))
        if found is None:  # `gc` may have moved it, and may put it back
            for moved in self._objects.under(trash_of(digest)):
                found = found or self._objects.fetch(moved.key)
            found = found or self._objects.fetch(key_of(digest))
        return found

    def header(self, version: Version) -> Summary | None:
        """What a file's header says, from the copy, or else from the bucket, which then gives no
        more than the header. None where that gives none that is valid: `read` says why.

        A header alone cannot be held to a sha256: it is for lists, and nothing is computed by it.
        """
        with contextlib.suppress(OSError, InvalidAdapter):
            return read_summary(self.path(version.digest))
        most = min(USUAL_HEADER_BYTES, version.bytes)
        with contextlib.suppress(InvalidAdapter, StoreError):
            start = self._objects.fetch_start(key_of(version.digest), most)
            if start is not None and (needed := header.bytes_needed(start, version.bytes)) > most:
                start = self._objects.fetch_start(key_of(version.digest), needed)
            return None if start is None else summary_of(start, version.bytes)
        return None

    def write(self, digest: str, data: bytes | bytearray | memoryview) -> None:
        """Write a file to the bucket, over one that is there, and keep a copy. Raises as
        `Objects.write`."""
        self._objects.write(key_of(digest), data)
        self.keep(digest, data)

    def mend(self, digest: str, data: bytes | bytearray | memoryview) -> None:
        """Write a file to the bucket if it is not there: `gc` may have deleted it while its upload
        was under way, before the log had the change that names it."""
        if not self._objects.exists(key_of(digest)):
            self._objects.write(key_of(digest), data)

    def keep(self, digest: str, data: bytes | bytearray | memoryview) -> None:
        """Keep a copy. Where the disk has no room the bucket is read again."""
        path = self.path(digest)
        with contextlib.suppress(OSError):
            disk.write_atomically(path, data)
            with self._lock:
                self._copies[path.name] = len(data)
                self._copies.move_to_end(path.name)
                while len(self._copies) > 1 and sum(self._copies.values()) > self._max_bytes:
                    name, _ = self._copies.popitem(last=False)
                    (self._folder / name).unlink(missing_ok=True)

    def _copy(self, digest: str) -> memoryview | None:
        path = self.path(digest)
        try:
            data = read_file(path, path.stat().st_size)
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != digest:
            self._set_aside(digest, data)
            with self._lock, contextlib.suppress(OSError):
                self._copies.pop(path.name, None)
                path.unlink(missing_ok=True)
            return None
        with self._lock, contextlib.suppress(OSError):
            if path.name in self._copies:
                self._copies.move_to_end(path.name)
            os.utime(path)
        return data

    def _set_aside(self, digest: str, data: memoryview) -> None:
        """Keep what was found in place of a file, for whoever looks for the reason."""
        with contextlib.suppress(OSError):
            self._quarantine.mkdir(exist_ok=True)
            disk.write_atomically(self._quarantine / f"{digest}{SUFFIX}", data)


def _is_copy(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(disk.LEFTOVER)
