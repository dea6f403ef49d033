"""Remove files from a bucket that no version names any more: by an operator's command alone.

An upload may write such a file again, and a change may name it, at any moment. So a file is moved
to `trash/`. Then the log is read: where a change names the file by now, it is put back. A change
that comes later was made by an upload that looks for its file afterwards, and writes it again. A
file that is missing is read from the trash. From there a later run deletes it.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from dataclasses import dataclass

from adapters.bucket.blobs import TRASH, key_of, trash_of
from adapters.bucket.log import Log
from adapters.bucket.objects import Objects
from adapters.errors import StoreError


@dataclass(frozen=True)
class Collected:
    """The keys of the files that were moved to the trash, and of those that were deleted there."""

    moved: list[str]
    deleted: list[str]


def collect(objects: Objects, older_than: float) -> Collected:
    """Move the files to the trash that no version names and that were last written more than
    `older_than` seconds ago, by the bucket's clock and this machine's. Delete what is in the trash
    for as long. Raises StoreError; also, in the end, for an old file that is damaged, which stays.

    The grace period is for uploads under way, which write the file before the change that names it;
    and for a deletion that the bucket does later than it was asked to.
    """
    try:
        limit = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=older_than)
    except OverflowError:  # before the calendar begins: nothing is so old
        return Collected([], [])
    old = [found.key for found in objects.under("blobs") if found.modified <= limit]
    log = Log(objects, "gc", 0, lambda _: None)
    log.load()  # after the list: what was named meanwhile is seen
    if old and not log.state.generation:
        raise StoreError(
            f"the bucket {objects.url} has files and no log, so that no version names any; expected"
            " a store's: nothing was deleted"
        )
    moved, damaged = [], []
    named = _named(log)
    for key in old:
        # To move many takes long: one of them may have been written again meanwhile.
        if key in named or not _is_old(objects, key, limit):
            continue
        data = objects.fetch(key)
        if data is None:
            continue
        digest = hashlib.sha256(data).hexdigest()
        if key_of(digest) != key:  # it could not be put back as it must be
            damaged.append(key)
            continue
        objects.write(f"{trash_of(digest)}/{secrets.token_hex(8)}", data)
        objects.delete(key)
        moved.append(key)
    log.refresh()
    deleted = _empty_trash(objects, _named(log), limit)
    if damaged:
        raise StoreError(
            f"{len(damaged)} old files of the bucket {objects.url} are damaged, such as"
            f" {damaged[0]!r}, which no version names; expected them to be deleted by hand"
        )
    return Collected(moved, deleted)


def _empty_trash(objects: Objects, named: set[str], limit: datetime.datetime) -> list[str]:
    """Put back what a version names, and delete what is old. Returns what was deleted."""
    deleted = []
    for found in list(objects.under(TRASH)):
        key = key_of(found.key.split("/")[1])
        if key in named and (data := objects.fetch(found.key)) is not None:
            objects.create(key, bytes(data))
        if found.modified <= limit:
            objects.delete(found.key)
            deleted.append(found.key)
    return deleted


def _named(log: Log) -> set[str]:
    """The keys of the files that versions name."""
    return {
        key_of(version.digest) for entry in log.state.entries.values() for version in entry.versions
    }


def _is_old(objects: Objects, key: str, limit: datetime.datetime) -> bool:
    modified = objects.modified(key)
    return modified is not None and modified <= limit
