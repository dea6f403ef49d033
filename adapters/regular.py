"""Open files that must be regular ones.

To open a pipe waits for whoever writes to it, perhaps for ever, and a device such as /dev/zero
never ends. Where another program put one in place of a file, it must hold up nobody.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

NOT_REGULAR = "it is no regular file"


def opened(path: Path | str) -> BufferedReader:
    """A regular file, to be read. Raises OSError, also for a pipe, a socket or a device."""
    return _opened(path, pipes=False)


def opened_input(path: Path | str) -> BufferedReader:
    """The same for a file that a user names, who may name a pipe: it must have its writer, as a
    shell's `<(…)` has. One that has none is empty."""
    return _opened(path, pipes=True)


def read_bytes(path: Path | str) -> bytes:
    """All of a regular file. Raises as `opened`."""
    with opened(path) as file:
        return file.read()


def read_text(path: Path | str) -> str:
    """The same as text. Raises as `opened`, or UnicodeDecodeError where it is not UTF-8."""
    return read_bytes(path).decode("utf-8")


def is_folder(path: Path | str) -> bool:
    """Whether a path that a user gave leads to a folder; Path's own method raises OSError where a
    name is too long, or the folder above may not be read."""
    return os.path.isdir(path)  # noqa: PTH112


def is_there(path: Path | str) -> bool:
    """Whether there is anything at a path that a user gave."""
    return os.path.exists(path)  # noqa: PTH110


def check_regular(path: Path) -> None:
    """Raises OSError where a path leads to something else than a regular file, or to nothing: for
    a library that opens it by its name."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))


def descriptor_of(path: Path | str, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """A descriptor that is opened without waiting for the other end of a pipe, and that does not
    wait when it is used. `flags` and `mode` are `os.open`'s. Raises OSError."""
    flags |= os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NONBLOCK, mode)
    except BlockingIOError:
        # Another program has a lease of the file, such as a file server's. The kernel takes it away
        # in time (/proc/sys/fs/lease-break-time).
        check_regular(Path(path))
        return os.open(path, flags, mode)


def _opened(path: Path | str, *, pipes: bool) -> BufferedReader:
    descriptor = descriptor_of(path)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not (stat.S_ISREG(mode) or (pipes and stat.S_ISFIFO(mode))):
            raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
