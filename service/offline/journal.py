"""What has been answered so far, on disk: a file beside the output that a job goes on from.

The first line says what the job is. Each further line is one row's answer, in order. A line counts
once its line break is there, so a job that was killed loses at most what it was writing.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec

from adapters.disk import sync_folder
from adapters.regular import is_there
from adapters.spec import shown
from service.offline.answers import Answer
from service.offline.errors import CannotScore

SYNC_SECONDS = 1.0  # what a power cut may cost

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Answer)


class Journal:
    """The answers of one job. Only one process has it open."""

    def __init__(self, path: Path, file: BinaryIO, rows: int) -> None:
        self._path, self._file = path, file
        self._synced = time.monotonic()
        self.rows = rows

    @classmethod
    def of(cls, path: Path, job: dict[str, Any]) -> Self:
        """The job's own, begun or gone on with. Raises CannotScore if another job's lies there, or
        another process has it open, and OSError."""
        if is_there(path) and not path.is_file():  # nothing is ever read of a pipe
            raise CannotScore(f"{path} is no regular file; expected one, or none")
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise CannotScore(
                f"{path} is being written by another process; expected one at a time"
            ) from None
        try:
            return cls(path, file, _whole_rows(path, file, job))
        except BaseException:
            file.close()
            raise

    def add(self, answers: Sequence[Answer]) -> None:
        """Append answers. Raises OSError."""
        self._file.write(b"".join(_ENCODER.encode(answer) + b"\n" for answer in answers))
        self._file.flush()
        self.rows += len(answers)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def answers(self) -> Iterator[Answer]:
        """All of them, in order."""
        self._file.seek(0)
        next(self._file)
        for line in self._file:
            yield _DECODER.decode(line)

    def close(self) -> None:
        """Let go of it; what was answered stays."""
        self._file.close()

    def remove(self) -> None:
        """The job is done."""
        self._path.unlink()
        sync_folder(self._path.parent)


def _whole_rows(path: Path, file: BinaryIO, job: dict[str, Any]) -> int:
    """How many rows are there, after what a kill left half-written is cut off."""
    file.seek(0)
    head = file.readline()
    if not head.endswith(b"\n"):
        file.truncate(0)
        file.write(json.dumps(job).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        sync_folder(path.parent)
        return 0
    _check_same(path, head, job)
    rows, end = 0, len(head)
    for line in file:
        try:
            _DECODER.decode(line)
        except msgspec.MsgspecError:
            break
        if not line.endswith(b"\n"):
            break
        rows, end = rows + 1, end + len(line)
    file.truncate(end)
    return rows


def _check_same(path: Path, head: bytes, job: dict[str, Any]) -> None:
    try:
        found = json.loads(head)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.keys() != job.keys():
        raise CannotScore(f"{path} is no unfinished job; expected no such file, or one")
    for name, value in job.items():
        if found[name] != value:
            raise CannotScore(
                f"{path} is of a job with another {name} ({shown(found[name])}; now"
                f" {shown(value)}); expected the same to go on with it, or remove the file to begin"
                " anew"
            )
