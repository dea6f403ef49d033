"""What the disk holds of a store in a folder: its files, and the store that they make when it is
opened anew."""

from __future__ import annotations

from pathlib import Path

from adapters.store import Store


def state(folder: Path) -> dict[str, bytes]:
    """Every file of a store but its lock."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*")}


def reopened(store: Store) -> Store:
    """The store as the next process opens it."""
    store.close()
    return Store(store.folder)


def on_disk(store: Store) -> Store:
    """What the disk holds now."""
    return Store(store.folder, read_only=True)
