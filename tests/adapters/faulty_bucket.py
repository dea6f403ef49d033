"""A bucket in memory whose calls fail as a test says, and the backbone of the stores in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from obstore.store import MemoryStore, ObjectStore

from adapters.bucket.objects import Listed, Objects
from adapters.bucket.store import BucketStore
from adapters.errors import StoreUnreachable
from adapters.spec import BackboneRef

BACKBONE = BackboneRef(
    name="tiny", model_type="bert", hidden_size=32, num_layers=2, fingerprint="a" * 64
)


class Faulty(Objects):
    """A bucket, in memory if no other is given: `before` is called before a call with its name and
    key, and may raise; `after` is called after one that creates. `dated` says when objects were
    last written, by key, in place of the bucket."""

    def __init__(self, store: ObjectStore | None = None) -> None:
        super().__init__("memory:///", store or MemoryStore())
        self.before: Callable[[str, str], None] = lambda *_: None
        self.after: Callable[[str, str], None] = lambda *_: None
        self.dated: Callable[[str], datetime] | None = None

    def fetch(self, key: str) -> memoryview | None:
        self.before("read", key)
        return super().fetch(key)

    def fetch_start(self, key: str, most: int) -> memoryview | None:
        self.before("read start", key)
        return super().fetch_start(key, most)

    def create(self, key: str, data: bytes) -> bool:
        self.before("create", key)
        created = super().create(key, data)
        self.after("create", key)
        return created

    def write(self, key: str, data: bytes | bytearray | memoryview) -> None:
        self.before("write", key)
        super().write(key, data)

    def modified(self, key: str) -> datetime | None:
        self.before("modified", key)
        modified = super().modified(key)
        return modified if modified is None or self.dated is None else self.dated(key)

    def under(self, folder: str, after: str | None = None) -> Iterator[Listed]:
        self.before("list", folder)
        for found in super().under(folder, after):
            modified = found.modified if self.dated is None else self.dated(found.key)
            yield Listed(found.key, found.bytes, modified)

    def delete(self, key: str) -> None:
        self.before("delete", key)
        super().delete(key)


def gone(*_: str) -> None:
    raise StoreUnreachable("nobody answers")


Replica = Callable[..., BucketStore]
