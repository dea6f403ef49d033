"""What other programs put into a store's bucket: changes and snapshots that no service wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.bucket import log
from adapters.errors import StoreError
from adapters.file import parse
from tests.adapters.faulty_bucket import Faulty, Replica


@pytest.mark.parametrize(
    "wrong",
    [
        {"digest": "../../outside"},
        {"digest": "/tmp/outside"},
        {"digest": "a" * 64 + "\n"},
        {"task": "../outside"},
        {"task": "x" * 65},
        {"task": "x\n"},
        {"bytes": -1},
        {"bytes": 1 << 62},
        {"created": "now"},
    ],
)
def test_a_change_that_no_service_wrote_is_not_read(
    wrong: dict[str, Any], tmp_path: Path, bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """A change whose digest is a path, whose task is none or whose size is none is damaged: the
    state stays, no start reads past it, and no file is read or written by such a name."""
    store = replica("one")
    version, _ = store.put(parse(files[0]))
    change = {"change": "upload", "task": "t", "digest": "b" * 64, "bytes": 1, "format": 1, **wrong}
    bucket.write(log.key_of(store.generation + 1), json.dumps(change).encode())
    with pytest.raises(StoreError, match="is damaged"):
        store.refresh()
    assert store.find("sst2") == version
    assert [entry.task for entry in store.entries()] == ["sst2"]
    with pytest.raises(StoreError, match="is damaged"):
        replica("two")
    assert not [path for path in tmp_path.rglob("*") if "outside" in path.name]


def snapshot(generation: int, *tasks: list[Any]) -> bytes:
    return json.dumps(
        {"generation": generation, "founded": None, "tasks": tasks, "format": 1}
    ).encode()


VERSION = ["c" * 64, 1, 1.0]
SPLIT = {"active": "c" * 64, "canary": {"digest": "../outside", "percent": 50}}


@pytest.mark.parametrize(
    ("hint", "key", "content"),
    [
        pytest.param(b"9" * 5000, "", b"", id="a number of 5,000 digits"),
        pytest.param(b"9" * 20, "9" * 20, snapshot(10**20 - 1), id="a generation of 20 digits"),
        pytest.param(b"1", f"{1:020d}", snapshot(10**30), id="a generation of 31 digits"),
        pytest.param(b"1", f"{1:020d}", snapshot(7), id="another generation"),
        pytest.param(b"1", f"{1:020d}", snapshot(-1), id="a negative generation"),
        pytest.param(b"1", f"{1:020d}", b"{", id="no JSON"),
        pytest.param(
            b"1", f"{1:020d}", snapshot(1, ["t", None, [["../../x", 1, 1.0]]]), id="a path"
        ),
    ],
)
def test_a_damaged_snapshot_is_passed_over(
    hint: bytes, key: str, content: bytes, bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """A snapshot saves time and nothing else: where it is not what a service wrote, the whole log
    is read."""
    version, _ = replica("one").put(parse(files[0]))
    bucket.write("snapshots/latest", hint)
    if key:
        bucket.write(f"snapshots/{key}.json", content)
    assert replica("two").find("sst2").digest == version.digest


def test_a_snapshot_is_taken_in_as_changes_are(
    bucket: Faulty, replica: Replica, files: list[bytes]
) -> None:
    """A snapshot's task without a version is none, and a split of versions that are not there is
    void."""
    replica("one").put(parse(files[0]))
    bucket.write("snapshots/latest", b"1")
    tasks: list[list[Any]] = [["empty", None, []], ["split", "c" * 64, [VERSION], SPLIT]]
    bucket.write(f"snapshots/{1:020d}.json", snapshot(1, *tasks))
    store = replica("two")
    assert {entry.task for entry in store.entries()} == {"split", "sst2"}
    assert store.entry("split").split is None
