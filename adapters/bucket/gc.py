"""Remove files from a bucket that no version names any more: by an operator's command alone."""

from __future__ import annotations

import datetime

from adapters.bucket.blobs import key_of
from adapters.bucket.log import Log
from adapters.bucket.objects import Objects


def collect(objects: Objects, older_than: float) -> list[str]:
    """Delete the files that no version names and that were last written more than `older_than`
    seconds ago, by the bucket's clock and this machine's. Returns their keys. Raises StoreError.

    The grace period is for uploads under way, which write the file before the change that names it.
    """
    limit = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=older_than)
    old = [found.key for found in objects.under("blobs") if found.modified <= limit]
    log = Log(objects, "gc", 0, lambda _: None)
    log.load()  # after the list: what was named meanwhile is seen
    named = {
        key_of(version.digest) for entry in log.state.entries.values() for version in entry.versions
    }
    unneeded = [key for key in old if key not in named]
    for key in unneeded:
        objects.delete(key)
    return unneeded
