"""Write files so that a crash or a power cut leaves the old state or the new one, never half of
it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

LEFTOVER = ".tmp-"  # the prefix of a file that is not complete yet, or not needed any more


def write_atomically(
    path: Path, data: bytes | bytearray | memoryview, *, time_ns: int | None = None
) -> None:
    """Write a whole file: temporary file, fsync, rename, fsync of the folder. Its modification time
    is `time_ns`, or now.

    A reader sees the old file or the new one, also after a crash. Raises OSError; where the last
    step alone fails, the new file is there but may not survive a power cut.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=LEFTOVER)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fchmod(descriptor, 0o644)
            # The kernel's own time of a change may be some milliseconds old, and files that were
            # written one after the other would seem equally old.
            written = time.time_ns() if time_ns is None else time_ns
            os.utime(descriptor, ns=(written, written))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)  # noqa: PTH105  # a Path would be made for nothing
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108  # likewise
        raise
    sync_folder(path.parent)


def rename(old: Path, new: Path) -> None:
    """Rename a file within its folder. Raises OSError, as `write_atomically` does."""
    old.replace(new)
    sync_folder(new.parent)


def remove(path: Path) -> None:
    """Remove a file, if it is there. Raises OSError, as `write_atomically` does."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the renames and removals in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file to write to, which takes the place of `path` at the end of the context, as
    in `write_atomically`; if that raises, nothing is left. Raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=LEFTOVER)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
