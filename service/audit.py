"""The audit log: one JSON line for each write to the store. docs/keys.md describes the lines."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from adapters.errors import AdaMixError
from adapters.regular import descriptor_of

STDOUT = "-"

log = structlog.get_logger("service")


class NoAuditLog(AdaMixError):
    """An audit log that cannot be opened."""


@dataclass
class Write:
    """One write: what was asked of which task, by whom. `digest` is the sha256 of the file that it
    is about, `version` its first digits; `activated` is
    whether an upload is served from then on, `traffic` how the traffic is divided."""

    what: str
    task: str
    key: str | None = None
    client: str | None = None
    request_id: str | None = None
    version: str | None = None
    digest: str | None = None
    activated: bool | None = None
    traffic: dict[str, Any] | None = None
    reason: str | None = None
    result: str = "done"

    def about(self, digest: str | None) -> None:
        """The version that the write is about."""
        self.digest, self.version = digest, None if digest is None else digest[:12]


class AuditLog:
    """Appends lines to a file, or to stdout. The file is opened for each line: so a file that was
    renamed or deleted is made anew, and a line is written with one call."""

    def __init__(self, place: str, failed: Callable[[], None]) -> None:
        """`failed` is called for each line that cannot be written. Raises NoAuditLog."""
        self._place, self._failed = place, failed
        self._cut = False
        if place != STDOUT:
            try:
                os.close(self._open())
            except OSError as error:
                raise NoAuditLog(
                    f"setting ADAMIX_AUDIT_LOG is {place!r}, which cannot be written:"
                    f" {error.strerror}; expected a file in a folder that this user may write, or -"
                ) from None

    def add(self, write: Write) -> None:
        """Append a line. If it cannot be written, the log has an error with all that it says: the
        write to the store is done, and stays."""
        now = datetime.datetime.now(datetime.UTC)
        said = {"time": now.isoformat(timespec="milliseconds"), **_said(write)}
        try:
            # after a line that was cut, a new one begins
            line = self._cut * b"\n" + orjson.dumps(said) + b"\n"
            self._append(line)
            self._cut = False
        except (OSError, TypeError, ValueError) as error:  # of JSON, or of a stdout that was closed
            self._failed()
            reason = getattr(error, "strerror", None) or str(error)
            log.error("a line of the audit log could not be written", error=reason, line=said)

    def _append(self, line: bytes) -> None:
        if self._place == STDOUT:
            self._write(sys.stdout.fileno(), line)
            return
        descriptor = self._open()
        try:
            self._write(descriptor, line)
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        return descriptor_of(self._place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def _write(self, descriptor: int, line: bytes) -> None:
        written = os.write(descriptor, line)
        if written < len(line):  # the disk is full
            self._cut = True
            raise OSError(None, f"only {written} of {len(line)} bytes were written")


def _said(write: Write) -> dict[str, Any]:
    optional = ("activated", "traffic", "reason")
    fields = vars(write)
    return {
        name: value for name, value in fields.items() if name not in optional or value is not None
    }
