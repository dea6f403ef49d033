"""What the store knows of a task without reading its adapters: its versions, and which is
active."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from adapters.disk import LEFTOVER, sync_folder
from adapters.file import Summary
from adapters.regular import descriptor_of
from adapters.spec import TASK_PATTERN, shown
from adapters.traffic import Split, unpacked

SUFFIX = ".safetensors"
ACTIVE = "active"
TRAFFIC = "traffic"
DELETED = "deleted"  # a task whose folder holds this file is deleted; the rest goes next
SHOWN_DIGITS = 12
LISTED = 8  # versions that a sentence names
MAX_TRAFFIC_BYTES = 1 << 16
TASK = re.compile(TASK_PATTERN)
_DIGEST = re.compile("[0-9a-f]{64}")
_FILE = re.compile(f"([0-9a-f]{{64}}){re.escape(SUFFIX)}")


@dataclass(frozen=True, slots=True)
class Version:
    """One stored file. `created` is when this store got it, in seconds since the epoch."""

    digest: str
    bytes: int
    created: float

    @property
    def short(self) -> str:
        """The first 12 digits. Two versions may share them; `Entry.shown` tells those apart."""
        return self.digest[:SHOWN_DIGITS]


@dataclass(frozen=True, slots=True)
class Entry:
    """One task: its versions, oldest first, and the digest of the active one, if there is one.

    `problem` says what is wrong with the file `active`: then no version is active, or the one that
    must have been. `summaries` holds what was read of the header of the version that lists show.
    `split` says which requests other versions than the active one get.
    """

    task: str
    versions: tuple[Version, ...] = ()
    active: str | None = None
    summaries: dict[str, Summary] = field(default_factory=dict, compare=False, repr=False)
    problem: str | None = None
    split: Split | None = None

    @property
    def active_version(self) -> Version | None:
        return self.version(self.active) if self.active is not None else None

    @property
    def listed_version(self) -> Version:
        """The version that lists show: the active one, or the newest if none is active."""
        return self.active_version or self.versions[-1]

    def version(self, digest: str) -> Version | None:
        """The version with this sha256, if it is stored."""
        return next((version for version in self.versions if version.digest == digest), None)

    def shown(self, version: Version) -> str:
        """The first digits of a version's sha256: 12, or as many as the task's other versions do
        not share."""
        others = [v.digest for v in self.versions if v.digest != version.digest]
        digits = SHOWN_DIGITS
        while any(digest.startswith(version.digest[:digits]) for digest in others):
            digits += 1
        return version.digest[:digits]

    def names(self) -> list[str]:
        """What `shown` gives each of the versions, in their order."""
        ordered = sorted(version.digest for version in self.versions)
        # RUF071: the digits that two names share, not the folders of two paths
        shared = [0, *(len(os.path.commonprefix(pair)) for pair in pairwise(ordered)), 0]  # noqa: RUF071
        digits = {
            digest: max(SHOWN_DIGITS, before + 1, after + 1)
            for digest, (before, after) in zip(ordered, pairwise(shared), strict=True)
        }
        return [version.digest[: digits[version.digest]] for version in self.versions]

    def choices(self) -> str:
        """The task's versions, as a sentence names them."""
        names = [self.shown(version) for version in self.versions[:LISTED]]
        return ", ".join(names) + (", …" if len(self.versions) > LISTED else "")

    def splits(self, split: Split) -> bool:
        """Whether a split is for this state of the task."""
        named = split.roles().values()
        return split.active == self.active and all(map(self.version, named))

    def changed(self, **changes: object) -> Entry:
        """A copy with these changes. Its versions are in order, and it keeps no header but that of
        the version that lists show. A split ends where another version becomes active."""
        entry = replace(self, **changes)  # type: ignore[arg-type]  # the fields' own names
        if entry.split is not None and not entry.splits(entry.split):
            entry = replace(entry, split=None)
        if not entry.versions:
            return replace(entry, summaries={})
        entry = replace(entry, versions=tuple(sorted(entry.versions, key=_age)))
        listed = entry.listed_version.digest
        kept = {digest: of for digest, of in entry.summaries.items() if digest == listed}
        return replace(entry, summaries=kept)


def scan(
    task: str, folder: str, *, repair: bool, told: Callable[[str], None] = lambda _: None
) -> Entry | None:
    """Read from disk what a task's folder holds; None if that is no version and no `active`.

    With `repair`, removes what a crash left over and completes a deletion that it interrupted. An
    entry without versions has a `problem`. `told` gets a sentence about a split that cannot be
    read: the active version then gets all requests. Raises OSError.

    Makes no `Path` of a file: that would take most of the time that ten thousand tasks take.
    """
    versions = []
    deleted = divided = False
    # First: where another process writes, the version that it names is there when it is read.
    active = read_active(folder)
    with os.scandir(folder) as files:
        for file in files:
            if (found := _FILE.fullmatch(file.name)) is not None:
                with contextlib.suppress(FileNotFoundError):  # another process just deleted it
                    about = file.stat()
                    if stat.S_ISREG(about.st_mode):  # a pipe would hold up who reads it
                        versions.append(Version(found[1], about.st_size, created(about)))
            elif file.name == DELETED:
                deleted = True
            elif file.name == TRAFFIC:
                divided = True
            elif file.name.startswith(LEFTOVER) and repair:
                with contextlib.suppress(OSError):  # it takes a little room, nothing else
                    os.unlink(file.path)  # noqa: PTH108
    if deleted:
        if repair:
            with contextlib.suppress(OSError):  # deleted it is; `Store.put` tries again
                clear(Path(folder))
        return None
    if not versions and active is None:
        return None
    versions.sort(key=_age)
    if active is None or any(version.digest == active for version in versions):
        entry = Entry(task, tuple(versions), active)
        return _with_split(entry, folder, repair=repair, told=told) if divided else entry
    found_there = f"its file {ACTIVE!r} holds {shown(active)}"
    if _DIGEST.fullmatch(active):  # nobody activated the other versions
        reason = f"{found_there}, a version whose file is gone"
        return Entry(task, tuple(versions), problem=reason)
    if len(versions) != 1:
        return Entry(task, tuple(versions), problem=f"{found_there}, which names no version")
    # A version was active, and no active one is ever deleted: it is the only one that there is.
    only = versions[0]
    problem = f"{found_there}; its only version {only.short} is taken for the active one"
    return Entry(task, (only,), only.digest, problem=problem)


def read_active(folder: str) -> str | None:
    """Read what a task's file `active` holds; None if there is none. Raises OSError."""
    try:
        return _read(f"{folder}/{ACTIVE}", 256).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None


def _read(path: str, most: int) -> bytes:
    """The beginning of a file, which may be a pipe. Raises OSError."""
    descriptor = descriptor_of(path)
    try:
        return os.read(descriptor, most)
    finally:
        os.close(descriptor)


def _with_split(entry: Entry, folder: str, *, repair: bool, told: Callable[[str], None]) -> Entry:
    """With the split that the file `traffic` holds, if it is for the version that is active. Else a
    crash came between an activation and the end of its split."""
    try:
        split = unpacked(_read(f"{folder}/{TRAFFIC}", MAX_TRAFFIC_BYTES))
    except FileNotFoundError:  # another process just ended it
        return entry
    except (OSError, ValueError) as error:
        told(
            f"task {entry.task!r}: its file {TRAFFIC!r} cannot be read: {error}; the active version"
            " gets all requests"
        )
        return entry
    if entry.splits(split):
        return replace(entry, split=split)
    if repair:
        with contextlib.suppress(OSError):  # the next change of it writes it anew
            os.unlink(f"{folder}/{TRAFFIC}")  # noqa: PTH108
    return entry


def clear(folder: Path) -> None:
    """Complete a task's deletion: remove the store's own files, the mark of the deletion last.
    Raises OSError."""
    for path in folder.iterdir():
        if (
            path.name in (ACTIVE, TRAFFIC)
            or _FILE.fullmatch(path.name)
            or path.name.startswith(LEFTOVER)
        ):
            path.unlink(missing_ok=True)
    sync_folder(folder)  # before the mark goes: else a power cut might bring a version back
    (folder / DELETED).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds somebody else's file, which stays
        folder.rmdir()


def created(about: os.stat_result) -> float:
    """A file's modification time in whole microseconds: as a float it gives the same again, after
    it was written back."""
    return about.st_mtime_ns // 1000 / 1e6


def _age(version: Version) -> tuple[float, str]:
    return version.created, version.digest
