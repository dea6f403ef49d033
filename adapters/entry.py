"""What the store knows of a task without reading its files: versions, and which one is active."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from adapters.file import LEFTOVER, Summary
from adapters.spec import TASK_PATTERN

SUFFIX = ".safetensors"
ACTIVE = "active"
_TASK = re.compile(TASK_PATTERN)


@dataclass(frozen=True, slots=True)
class Version:
    """One stored file. `created` is when this store got it, in seconds since the epoch."""

    digest: str
    bytes: int
    created: float

    @property
    def short(self) -> str:
        return self.digest[:12]


@dataclass(frozen=True, slots=True)
class Entry:
    """One task: its versions, oldest first, and the digest of the active one, if any.

    `summaries` holds what was read of the versions' headers so far.
    """

    task: str
    versions: tuple[Version, ...] = ()
    active: str | None = None
    summaries: dict[str, Summary] = field(default_factory=dict, compare=False, repr=False)

    @property
    def active_version(self) -> Version | None:
        return next((version for version in self.versions if version.digest == self.active), None)


def scan(folder: os.DirEntry[str]) -> Entry | None:
    """What a task's folder holds: whole version files, and an active one only if its file is there.
    What a crash left half-written is removed. A folder whose name no task has (`lost+found`, which
    only root may read) is left alone.

    No `Path` objects: they would take most of the time that ten thousand tasks take.
    """
    if not _TASK.fullmatch(folder.name) or not folder.is_dir():
        return None
    versions = []
    active = None
    with os.scandir(folder.path) as files:
        for file in files:
            if file.name.endswith(SUFFIX) and len(file.name) == 64 + len(SUFFIX):
                stat = file.stat()
                versions.append(
                    Version(file.name.removesuffix(SUFFIX), stat.st_size, stat.st_mtime)
                )
            elif file.name == ACTIVE:
                active = _content(file.path)
            elif file.name.startswith(LEFTOVER):
                os.unlink(file.path)  # noqa: PTH108
    versions.sort(key=lambda version: version.created)
    known = any(version.digest == active for version in versions)
    return Entry(folder.name, tuple(versions), active if known else None) if versions else None


def _content(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 256).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)
