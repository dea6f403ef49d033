"""Remove files from a bucket that no version names any more: by an operator's command alone."""

from __future__ import annotations

import datetime

from adapters.bucket.blobs import key_of
from adapters.bucket.log import Log
from adapters.bucket.objects import Objects
from adapters.errors import StoreError


def collect(objects: Objects, older_than: float) -> list[str]:
    """Delete the files that no version names and that were last written more than `older_than`
    seconds ago, by the bucket's clock and this machine's. Returns their keys. Raises StoreError.

    The grace period is for uploads under way, which write the file before the change that names it.
    """
    try:
        limit = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=older_than)
    except OverflowError:  # before the calendar begins: nothing is so old
        return []
    old = [found.key for found in objects.under("blobs") if found.modified <= limit]
    log = Log(objects, "gc", 0, lambda _: None)
    log.load()  # after the list: what was named meanwhile is seen
    named = {
        key_of(version.digest) for entry in log.state.entries.values() for version in entry.versions
    }
    if old and not log.state.generation:
        raise StoreError(
            f"the bucket {objects.url} has files and no log, so that no version names any; expected"
            " a store's: nothing was deleted"
        )
    deleted = []
    for key in old:
        # To delete many takes long. An upload under way may have written one of them again, which a
        # change then names that this process has not read.
        if key not in named and _is_old(objects, key, limit):
            objects.delete(key)
            deleted.append(key)
    return deleted


def _is_old(objects: Objects, key: str, limit: datetime.datetime) -> bool:
    modified = objects.modified(key)
    return modified is not None and modified <= limit
