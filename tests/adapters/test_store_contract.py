"""A store in a folder and one in a bucket keep the same contract, and `copy` brings one into the
other."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from typer.testing import CliRunner

from adapters.__main__ import app
from adapters.adapter_store import AdapterStore
from adapters.backbone import Backbone
from adapters.bucket.objects import connect
from adapters.bucket.store import BucketStore
from adapters.errors import (
    ActiveHasChanged,
    AmbiguousVersion,
    BackboneMismatch,
    NoActiveVersion,
    StoreError,
    UnknownTask,
    UnknownVersion,
    VersionInTraffic,
    VersionIsActive,
)
from adapters.file import Adapter, load, parse
from adapters.store import Store
from adapters.traffic import Canary, Left, Rollback, Shadow, Split
from tests.adapters.faulty_bucket import BACKBONE, Faulty
from tests.buckets import S3

KINDS = ("folder", "memory", "seaweedfs")


Open = Callable[..., AdapterStore]
_numbers = itertools.count()


@pytest.fixture(params=KINDS)
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Open one store of a kind, each time as another process would, after the last one closed."""
    kind, last = request.param, list[AdapterStore]()
    memory = Faulty()
    if kind == "seaweedfs":
        server = request.getfixturevalue("s3")
        server.export(monkeypatch)
        objects = connect(server.url(f"contract-{next(_numbers)}"), 5)

    def another(**options: Any) -> AdapterStore:
        for store in last:
            store.close()
        last.clear()
        store: AdapterStore
        if kind == "folder":
            store = Store(tmp_path / "store", **options)
        else:
            bucket = memory if kind == "memory" else objects
            store = BucketStore(bucket, tmp_path / "cache", backbone=BACKBONE, **options)
        last.append(store)
        return store

    yield another
    for store in last:
        store.close()


def test_the_contract_of_a_store(opened: Open, files: list[bytes], mrpc: bytes) -> None:
    """What is put, activated and deleted in a store of any kind is so at once and for the next
    process; what is not there, or may not be done, is refused with the same errors."""
    store = opened()
    with pytest.raises(UnknownTask, match="there is no task 'sst2'; the store is empty"):
        store.get("sst2")
    a, new = store.put(parse(files[0]))
    assert new
    assert store.put(parse(files[0])) == (a, False)
    b, _ = store.put(parse(files[1]))
    c, _ = store.put(parse(files[2]), activate=False)
    only, _ = store.put(parse(mrpc), activate=False)
    assert store.find("sst2") == b
    assert [entry.task for entry in store.entries()] == ["mrpc", "sst2"]
    assert store.entry("sst2").versions == (a, b, c)
    with pytest.raises(NoActiveVersion):
        store.get("mrpc")
    with pytest.raises(UnknownVersion, match="by 4 digits or more"):
        store.find("sst2", "1")
    with pytest.raises(UnknownVersion):
        store.activate("sst2", "0123456789ab")
    with pytest.raises(VersionIsActive):
        store.delete_version("sst2", b.short)
    assert store.activate("sst2", a.short) == a == store.find("sst2")
    assert store.delete_version("sst2", b.digest) == b
    before = store.entries()
    store = opened()
    assert store.entries() == before
    assert bytes(store.read("sst2", a)) == files[0]
    with store.open("sst2", a) as file:
        assert file.read() == files[0]
    assert store.get("sst2").digest == a.digest
    assert store.cached(a.digest)
    assert store.held(a.digest) is store.get("sst2")
    assert store.summary("sst2", c.digest).spec == parse(files[2]).spec
    assert store.summary("mrpc", only.digest).parameters == parse(mrpc).parameters
    store.delete_version("mrpc", only.digest)
    store.delete_task("sst2")
    for missing in (lambda: store.delete_task("sst2"), lambda: store.find("mrpc")):
        with pytest.raises(UnknownTask):
            missing()
    assert len(opened()) == 0
    assert opened().put(parse(files[1]))[1]
    assert "sst2" in opened()


def test_the_contract_of_a_split(opened: Open, files: list[bytes]) -> None:
    """A split holds for the next process until it is replaced, a version is activated or the task
    goes; it keeps its versions from deletion; its canary is ended once, by one who knows it."""
    store = opened()
    a, b, c = (store.put(parse(data), activate=not i)[0] for i, data in enumerate(files))
    split = Split(
        active=a.digest,
        since=1764347000.25,
        canary=Canary(b.digest, 5),
        shadow=Shadow(c.digest, 100),
        rollback=Rollback(disagreement=0.2),
    )
    assert store.set_split("sst2", split).split == split
    assert store.entry("sst2").split == split
    store.put(parse(files[0]))  # the active version again: nothing has changed
    store = opened()
    assert store.entry("sst2").split == split
    for version, role in ((b, "canary"), (c, "shadow")):
        with pytest.raises(VersionInTraffic, match=f"{version.short} is the {role} of task 'sst2'"):
            store.delete_version("sst2", version.short)
    gone = Split(active=a.digest, canary=Canary("0" * 64, 5))
    with pytest.raises(UnknownVersion, match=r"has no version '0{64}'"):
        store.set_split("sst2", gone)
    with pytest.raises(ActiveHasChanged, match=f"{b.short} is not the active one .* {a.short}"):
        store.set_split("sst2", Split(active=b.digest, canary=Canary(a.digest, 5)))
    with pytest.raises(UnknownTask):
        store.set_split("mrpc", split)
    assert store.entry("sst2").split == split
    left = Left(b.digest, "its answers differ", 1.0)
    earlier = structs.replace(split, since=split.since - 1)
    assert not store.end_canary("sst2", earlier, left)
    assert store.end_canary("sst2", split, left)
    assert not store.end_canary("sst2", split, left)
    assert not store.end_canary("mrpc", split, left)
    store = opened()
    kept = store.entry("sst2").split
    assert kept == split.without_canary(left)
    assert (kept.canary, kept.shadow, kept.rollback) == (None, split.shadow, None)
    store.delete_version("sst2", b.short)
    store.set_split("sst2", None)
    assert store.entry("sst2").split is None
    for end in (c.digest, a.digest):  # another version, then the one that is active
        store.set_split("sst2", Split(active=a.digest, canary=Canary(c.digest, 5)))
        store.activate("sst2", end)
        assert store.entry("sst2").split is None
        assert opened().entry("sst2").split is None
        store = opened()
        store.activate("sst2", a.digest)
    store.set_split("sst2", Split(active=a.digest, canary=Canary(c.digest, 5)))
    store.put(parse(files[1]))
    assert store.entry("sst2").split is None
    store.set_split("sst2", Split(active=b.digest, shadow=Shadow(c.digest, 1)))
    store.delete_task("sst2")
    store.put(parse(files[1]))
    assert opened().entry("sst2").split is None


def test_what_a_check_refuses_is_not_stored(opened: Open, files: list[bytes]) -> None:
    """What `check` raises of an adapter, a put raises, and nothing has changed."""

    def check(_: Adapter) -> None:
        raise BackboneMismatch("no")

    with pytest.raises(BackboneMismatch):
        opened(check=check).put(parse(files[0]))
    assert len(opened()) == 0


def test_a_store_that_was_opened_to_be_read(opened: Open, files: list[bytes]) -> None:
    """A store opened read-only serves what is there, and says why it writes nothing."""
    opened().put(parse(files[0]))
    store = opened(read_only=True)
    assert store.get("sst2").digest == parse(files[0]).digest
    for write in (lambda: store.delete_task("sst2"), lambda: store.put(parse(files[1]))):
        with pytest.raises(StoreError, match="is read-only: it was opened so"):
            write()


def test_versions_that_agree_in_12_digits(opened: Open) -> None:
    """A prefix that fits two versions is refused in a store of any kind."""
    store = opened()
    a, b = (
        store.put(load(Path(__file__).parent / f"twins-{name}.safetensors"))[0] for name in "ab"
    )
    with pytest.raises(AmbiguousVersion, match=f"{a.digest[:13]}, {b.digest[:13]}"):
        store.get("twins", a.short)


@pytest.mark.parametrize("url", ["s3://", "s4://bucket/store"])
def test_an_address_that_is_none(url: str) -> None:
    """An address that no bucket can have is refused with what is expected."""
    with pytest.raises(StoreError, match=r"cannot be opened: .*; expected s3://BUCKET/PREFIX"):
        connect(url, 5)


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:secret@bucket/p",
        "s3://KEY:a/secret@bucket/p",
        "az://bucket/p?sig=secret",
        "gs://bucket#secret",
    ],
)
def test_an_address_with_a_password(url: str, tmp_path: Path) -> None:
    """An address with a user, a query or a fragment, with which no bucket would be asked, is
    refused, and not shown."""
    for arguments in (("gc", url, "--older-than", "1"), ("copy", url, str(tmp_path / "back"))):
        code, _, sentence = command(*arguments)
        assert code == 2
        assert "BUCKET/PREFIX alone, and credentials in the cloud's own variables" in sentence
        assert "secret" not in sentence


def command(*arguments: str) -> tuple[int, str, str]:
    """Run `python -m adapters` with these: its exit code, and what it said on both streams."""
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stdout, done.stderr


def test_copying_a_store(
    s3: S3,
    tmp_path: Path,
    bert: Backbone,
    files: list[bytes],
    mrpc: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`copy` brings every version and the active ones from a folder into a bucket and back, and
    twice is as once; `gc` then finds nothing that is old enough."""
    s3.export(monkeypatch)
    bucket, folder = s3.url("copied"), tmp_path / "store"
    with Store(folder) as store:
        versions = [store.put(parse(data))[0] for data in (*files, mrpc)]
        store.activate("sst2", versions[0].digest)
    for _ in range(2):
        assert command("copy", str(folder), bucket) == (
            *(0, f"copied 4 versions from {folder} to {bucket}\n"),
            "",
        )
    assert command("copy", bucket, str(tmp_path / "back"))[0] == 0
    with Store(tmp_path / "back") as back:
        assert [entry.task for entry in back.entries()] == ["mrpc", "sst2"]
        assert {v.digest for v in back.entry("sst2").versions} == {v.digest for v in versions[:3]}
        assert back.find("sst2").digest == versions[0].digest
    code, said, _ = command("gc", bucket, "--older-than", "1")
    assert (code, said.partition(",")[0]) == (0, f"moved 0 files of {bucket} to its trash")
    with BucketStore(connect(bucket, 5), tmp_path / "cache", backbone=bert.reference) as served:
        assert served.get("sst2").digest == versions[0].digest


def test_a_copy_of_divided_traffic(
    s3: S3, tmp_path: Path, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`copy` divides each task's traffic as the source does, also where the target divided it
    otherwise, or the source divides it no more."""
    s3.export(monkeypatch)
    folder, bucket = tmp_path / "store", s3.url("divided")

    def copied() -> Split | None:
        assert command("copy", str(folder), bucket)[0] == 0
        assert command("copy", bucket, str(tmp_path / "back"))[0] == 0
        with Store(tmp_path / "back") as back:
            return back.entry("sst2").split

    with Store(folder) as store:
        a, b, c = (store.put(parse(data), activate=not i)[0] for i, data in enumerate(files))
        split = Split(active=a.digest, canary=Canary(b.digest, 5), shadow=Shadow(c.digest, 100))
        store.set_split("sst2", split)
    assert copied() == split
    left = Left(b.digest, "why", 1.0)
    ended = split.without_canary(left)
    with Store(folder) as store:
        assert store.end_canary("sst2", split, left)
    assert copied() == ended
    with Store(folder) as store:
        store.set_split("sst2", None)
    assert copied() is None


def test_a_copy_of_what_is_no_whole_store(
    s3: S3, tmp_path: Path, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`copy` refuses a folder of other files, a prefix without a log, and a store of which a task
    cannot be read; an empty store is one."""
    s3.export(monkeypatch)
    target, other = str(tmp_path / "to"), tmp_path / "other"
    other.mkdir()
    (other / "sst2.safetensors").write_bytes(files[0])
    for source in (str(other), s3.url("nothing")):
        code, said, sentence = command("copy", source, target)
        assert (code, said) == (2, "")
        assert f"{source} is no store" in sentence
    Store(tmp_path / "empty").close()
    assert command("copy", str(tmp_path / "empty"), target)[0] == 0
    with Store(tmp_path / "store") as store:
        store.put(parse(files[0]))
    (tmp_path / "store" / "mrpc").mkdir()
    (tmp_path / "store" / "mrpc" / "active").write_text("0" * 64)
    code, said, sentence = command("copy", str(tmp_path / "store"), target)
    assert (code, said) == (2, "")
    assert "is not whole: task 'mrpc'" in sentence


def test_a_copy_without_room_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`copy` where there is no folder for temporary files ends with code 2 and a sentence."""
    Store(tmp_path / "from").close()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    code, _, said = command("copy", str(tmp_path / "from"), str(tmp_path / "to"))
    assert code == 2
    assert said.startswith("error: there is no folder for temporary files: ")


def test_commands_for_what_is_no_store(tmp_path: Path) -> None:
    """`copy` of no folder and `gc` of a folder end with code 2 and a sentence."""
    code, _, said = command("copy", str(tmp_path / "none"), "s3://bucket/store")
    assert (code, said) == (2, f"error: there is no folder {tmp_path}/none; expected a store\n")
    code, _, said = command("gc", str(tmp_path), "--older-than", "1")
    assert code == 2
    assert said == (
        f"error: {tmp_path} is no bucket's address; expected one, such as s3://bucket/prefix\n"
    )
