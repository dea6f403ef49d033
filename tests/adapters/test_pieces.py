"""Copies of large buffers: right to the byte, and no thread stands still meanwhile."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import get_args

import pytest
import torch

from adapters.backbone import Backbone
from adapters.bucket.blobs import Blobs
from adapters.file import parse, reread
from adapters.pieces import PIECE_BYTES, copied, joined, read_file
from adapters.spec import LoraSite
from adapters.store import Store
from tests.adapters.faulty_bucket import Faulty
from tests.interpreter_lock import BYTES, gives_way
from tests.tiny import random_adapter


@pytest.fixture(scope="module")
def large(embedded: Backbone) -> bytes:
    """One of the largest files that there are for the embedded backbone."""
    ranks = {site: 256 for site in get_args(LoraSite) if site != "gate"}
    data = random_adapter(
        embedded, "large", ["a", "b"], ranks=ranks, dense=True, dtype=torch.float32
    )[2]
    assert len(data) >= BYTES
    return data


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 7])
def test_copies_are_right_to_the_byte(tmp_path: Path, size: int) -> None:
    """A copy, pieces joined and a file read hold the same bytes, whatever their size; also a file
    that is longer or shorter than it was."""
    data = torch.randint(256, (size,), dtype=torch.uint8).numpy().tobytes()
    assert copied(data) == copied(bytearray(data)) == copied(memoryview(data)) == data
    pieces = [bytearray(data[start : start + 1000]) for start in range(0, size, 1000)]
    assert joined(pieces) == data
    assert pieces == []
    path = tmp_path / "file"
    path.write_bytes(data)
    for expected in (0, size, size + 5, max(0, size - 5)):
        assert read_file(path, expected) == data


def test_no_thread_stands_still_while_a_file_is_parsed(large: bytes) -> None:
    """A large upload's file is joined, checked and parsed without keeping the interpreter's lock
    for as long as a copy of it takes."""

    def upload() -> None:
        view = memoryview(large)
        pieces = [
            bytearray(view[start : start + PIECE_BYTES])
            for start in range(0, len(large), PIECE_BYTES)
        ]
        parse(joined(pieces))

    assert gives_way(upload)
    assert gives_way(lambda: parse(large))


def test_no_thread_stands_still_while_a_store_reads_and_writes(
    large: bytes, tmp_path: Path
) -> None:
    """The same holds for a store's writes and reads, and for an upload of what is there already."""
    adapter = parse(large)
    with Store(tmp_path / "store") as store:
        version, _ = store.put(adapter)
        assert gives_way(lambda: store.put(adapter))
        assert gives_way(lambda: reread(store.read("large", version), version.digest))


def test_no_thread_stands_still_while_a_bucket_reads_and_writes(
    large: bytes, tmp_path: Path
) -> None:
    """The same holds for a bucket's files, read from the bucket and from their copies."""
    data, digest = memoryview(large), hashlib.sha256(large).hexdigest()
    blobs = Blobs(Faulty(), tmp_path, 1 << 30, lambda _: None)
    assert gives_way(lambda: blobs.write(digest, data))
    assert gives_way(lambda: blobs.read(digest))

    def fetch() -> None:
        blobs.path(digest).unlink()
        blobs.read(digest)

    assert gives_way(fetch)
