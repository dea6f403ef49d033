"""What the store knows of a task without reading its files: versions, and which one is active."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from adapters.file import Summary
from adapters.spec import TASK_PATTERN

SUFFIX = ".safetensors"
ACTIVE = "active"


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


def scan(folder: Path) -> Entry:
    """What a task's folder holds: whole version files, and an active one only if its file is there. A folder whose name no
    task has (`lost+found`, which only root may read) is left alone."""
    if not re.fullmatch(TASK_PATTERN, folder.name) or not folder.is_dir():
        return Entry(folder.name)
    versions = []
    active = None
    with os.scandir(folder) as files:
        for file in files:
            if file.name.endswith(SUFFIX) and len(file.name) == 64 + len(SUFFIX):
                stat = file.stat()
                versions.append(Version(file.name.removesuffix(SUFFIX), stat.st_size, stat.st_mtime))
            elif file.name == ACTIVE:
                active = Path(file.path).read_bytes().decode("ascii", "replace").strip()
    versions.sort(key=lambda version: version.created)
    return Entry(folder.name, tuple(versions), active if active in {v.digest for v in versions} else None)
