"""Copy a store into another one: a folder into a bucket, or back."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from adapters.adapter_store import AdapterStore
from adapters.bucket.objects import connect, is_bucket
from adapters.bucket.store import BucketStore
from adapters.entry import Entry
from adapters.errors import StoreError
from adapters.regular import is_folder
from adapters.spec import BackboneRef
from adapters.store import LOCK, Store


def copied(source: str, target: str, timeout: float) -> int:
    """Put every version of `source` into `target`, each task's oldest first; activate the active
    ones, and divide their traffic as it is in `source`. Returns how many versions there are. Raises
    StoreError, also where `source` is no store or a part of it cannot be read, or DamagedAdapter at
    the first version that cannot be read; what was copied before stays. `timeout` is in seconds, of
    one access to a bucket."""
    if not is_bucket(source) and not is_folder(source):
        raise StoreError(f"there is no folder {source}; expected a store")
    count = 0
    with contextlib.ExitStack() as stack:
        try:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        except OSError as error:
            raise StoreError(
                f"there is no folder for temporary files: {error.strerror}; expected TMPDIR to be"
                " one to write to"
            ) from None
        here = _opened(source, cache, timeout, None, read_only=True)
        stack.callback(here.close)
        _check_whole(here, source)
        entries = here.entries()
        there = _opened(target, cache, timeout, _backbone(here, entries), read_only=False)
        stack.callback(there.close)
        for entry in entries:
            for version in entry.versions:
                adapter = here.get(entry.task, version.digest)
                there.put(adapter, activate=version.digest == entry.active)
                count += 1
            if entry.active is not None:
                there.set_split(entry.task, entry.split)
    return count


def _check_whole(store: AdapterStore, source: str) -> None:
    """Raises StoreError where a copy would have nothing, or less than was meant."""
    if isinstance(store, BucketStore):
        begun = store.generation > 0
    else:
        begun = len(store) > 0 or (Path(source) / LOCK).exists()
    if store.problems:
        raise StoreError(
            f"the store {source} is not whole: {store.problems[0]}; expected that to be mended"
            " before it is copied"
        )
    if not begun:
        raise StoreError(
            f"{source} is no store: it has no task; expected a folder or a bucket that a service"
            " had as ADAMIX_STORE"
        )


def _backbone(store: AdapterStore, entries: list[Entry]) -> BackboneRef | None:
    """The one backbone of a store's tasks. Raises StoreError where there are several: a store in a
    bucket is for one."""
    found: dict[str, BackboneRef] = {}
    for entry in entries:
        reference = store.summary(entry.task, entry.listed_version.digest).spec.backbone
        found.setdefault(reference.fingerprint, reference)
    if len(found) > 1:
        names = ", ".join(repr(reference.name) for reference in found.values())
        raise StoreError(
            f"the store's tasks are for several backbones: {names}; expected those of one"
        )
    return next(iter(found.values()), None)


def _opened(
    address: str, cache: Path, timeout: float, backbone: BackboneRef | None, *, read_only: bool
) -> AdapterStore:
    if not is_bucket(address):
        return Store(Path(address), 0, read_only=read_only)
    return BucketStore(
        connect(address, timeout),
        cache,
        backbone=backbone,
        cache_bytes=0,
        copies_bytes=0,
        timeout=timeout,
        read_only=read_only,
    )
