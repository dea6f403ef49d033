"""The versions of a store's tasks: put, found by a prefix of their sha256, activated, listed and
deleted, and the same when the store is opened anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.backbone import Backbone
from adapters.errors import (
    AmbiguousVersion,
    BackboneMismatch,
    InvalidAdapter,
    NoActiveVersion,
    UnknownTask,
    UnknownVersion,
    VersionIsActive,
)
from adapters.file import Adapter, load, parse, serialize
from adapters.store import Store
from tests.adapters.store_on_disk import on_disk, reopened, state
from tests.tiny import random_adapter


def test_put_then_get(store: Store, files: list[bytes]) -> None:
    """What was put is got, as the active version, under the sha256 of its bytes."""
    version, new = store.put(parse(files[0]))
    adapter = store.get("sst2")
    assert new
    assert adapter.digest == version.digest == store.find("sst2").digest == parse(files[0]).digest
    assert adapter.spec.labels == ("negative", "positive")
    assert store.path("sst2", version.digest).read_bytes() == files[0]
    assert version.bytes == len(files[0])


def test_put_twice(store: Store, files: list[bytes]) -> None:
    """The same file again is not new and makes no second version."""
    first, _ = store.put(parse(files[0]))
    again, new = store.put(parse(files[0]))
    assert not new
    assert again == first
    assert len(store.entry("sst2").versions) == 1


def test_activation(store: Store, files: list[bytes]) -> None:
    """A put activates unless told not to, and a rollback is activating an older version."""
    a, b, c = (store.put(parse(data), activate=i < 2)[0] for i, data in enumerate(files))
    assert store.find("sst2") == b
    assert store.get("sst2", c.digest).digest == c.digest
    assert store.activate("sst2", a.short) == a
    assert store.get("sst2").digest == a.digest
    store.put(parse(files[1]))
    assert store.find("sst2") == b


def test_no_active_version(store: Store, files: list[bytes]) -> None:
    """A task with inactive versions only says which of them could be activated."""
    version, _ = store.put(parse(files[0]), activate=False)
    with pytest.raises(
        NoActiveVersion,
        match=f"'sst2' has no active version; expected one of {version.short} to be",
    ):
        store.get("sst2")


def test_listing(store: Store, files: list[bytes], mrpc: bytes) -> None:
    """Tasks are listed by name, their versions oldest first."""
    versions = [store.put(parse(data))[0] for data in files]
    store.put(parse(mrpc))
    assert [entry.task for entry in store.entries()] == ["mrpc", "sst2"]
    assert store.entry("sst2").versions == tuple(versions)
    assert store.entry("sst2").active == versions[-1].digest
    assert len(store) == 2


def test_summary(store: Store, files: list[bytes]) -> None:
    """A summary tells the spec and the number of parameters."""
    adapter = parse(files[0])
    store.put(parse(files[0]))
    assert store.summary("sst2", adapter.digest).spec == adapter.spec
    assert store.summary("sst2", adapter.digest).parameters == adapter.parameters


def test_prefixes(store: Store, files: list[bytes]) -> None:
    """A prefix finds the one version it fits; one that fits several, or none, is refused with those
    there are."""
    versions = [store.put(parse(data))[0] for data in files]
    for version in versions:
        assert store.find("sst2", version.digest) == store.find("sst2", version.short) == version
    for unknown in ("", "zzzz", versions[0].digest[:40] + "x", "../sst2"):
        with pytest.raises(
            UnknownVersion,
            match=rf"'sst2' has no version '{unknown}'; expected one of {versions[0].short}, ",
        ):
            store.find("sst2", unknown)


@pytest.mark.parametrize("prefix", ["", "1", "9a0", "zzzz", "9A0B", "../sst2", "9a0b\n"])
def test_short_prefixes(store: Store, files: list[bytes], prefix: str) -> None:
    """What is not at least four hex digits is no version, whatever it might fit."""
    store.put(parse(files[0]))
    digest = store.find("sst2").digest
    for version in (prefix, digest[:3], digest[:8].upper() + "A"):
        with pytest.raises(UnknownVersion, match=f"{digest[:12]}, by 4 digits or more"):
            store.find("sst2", version)
    assert store.find("sst2", digest[:4]).digest == digest


@pytest.fixture
def twins() -> list[Adapter]:
    """Two real files whose sha256 agree in their first 12 digits."""
    found = [load(Path(__file__).parent / f"twins-{name}.safetensors") for name in "ab"]
    assert found[0].version == found[1].version
    assert found[0].digest != found[1].digest
    return found


def test_versions_that_agree_in_12_digits(store: Store, twins: list[Adapter]) -> None:
    """Two versions that agree in the digits shown are told apart by more digits, everywhere."""
    a, b = (store.put(adapter)[0] for adapter in twins)
    entry = store.entry("twins")
    assert (entry.shown(a), entry.shown(b)) == (a.digest[:13], b.digest[:13])
    with pytest.raises(
        AmbiguousVersion,
        match=f"version '{a.short}' of task 'twins' fits {a.digest[:13]}, {b.digest[:13]}; expected"
        " a longer prefix",
    ):
        store.get("twins", a.short)
    assert store.get("twins", a.digest[:13]).digest == a.digest
    assert [entry.shown(a), entry.shown(b)] == entry.names() == [a.digest[:13], b.digest[:13]]
    assert store.activate("twins", a.digest) == a
    assert store.find("twins") == a
    assert store.delete_version("twins", b.digest) == b
    assert store.find("twins", a.short) == a
    assert store.entry("twins").shown(a) == a.short
    assert on_disk(store).entries() == store.entries()


def test_unknown_tasks(store: Store, files: list[bytes], mrpc: bytes) -> None:
    """An unknown task is refused with the closest names, or with those there are."""
    with pytest.raises(UnknownTask, match="there is no task 'sst2'; the store is empty"):
        store.get("sst2")
    store.put(parse(files[0]))
    store.put(parse(mrpc))
    with pytest.raises(UnknownTask, match=r"there is no task 'sst3'; the closest are 'sst2'$"):
        store.get("sst3")
    for odd in ("../sst2", "sst2/active", "x" * 1000, "", "SST2\n\0"):
        with pytest.raises(UnknownTask, match=r"there is no task .*'sst2'"):
            store.get(odd)


def test_deletion(store: Store, files: list[bytes]) -> None:
    """An inactive version can be deleted, the active one only with its whole task."""
    a, b, _ = (store.put(parse(data))[0] for data in files)
    assert store.delete_version("sst2", a.short) == a
    with pytest.raises(UnknownVersion):
        store.get("sst2", a.digest)
    assert not store.path("sst2", a.digest).exists()
    with pytest.raises(
        VersionIsActive, match="is the active one of task 'sst2'; expected another one"
    ):
        store.delete_version("sst2", store.find("sst2").digest)
    store.delete_task("sst2")
    for task in ("get", "delete_task"):
        with pytest.raises(UnknownTask):
            getattr(store, task)("sst2")
    assert not (store.folder / "sst2").exists()
    assert store.put(parse(files[1])) == (store.find("sst2", b.digest), True)


def test_the_last_version_takes_its_task_along(store: Store, files: list[bytes]) -> None:
    """Deleting the only version of a task with none active deletes the task."""
    version, _ = store.put(parse(files[0]), activate=False)
    store.delete_version("sst2", version.digest)
    assert store.entries() == []


def test_reopening(store: Store, files: list[bytes], mrpc: bytes) -> None:
    """A store opened anew has the same tasks, versions and active ones."""
    for data in (*files, mrpc):
        store.put(parse(data))
    store.activate("sst2", store.entry("sst2").versions[1].digest)
    again = reopened(store)
    assert again.entries() == store.entries()
    assert again.get("sst2").digest == parse(files[1]).digest


def test_an_adapter_in_hand_outlives_its_deletion(store: Store, files: list[bytes]) -> None:
    """A parsed adapter stays whole when its file is deleted."""
    store.put(parse(files[0]))
    adapter = store.get("sst2")
    store.delete_task("sst2")
    assert all(tensor.isfinite().all() for tensor in adapter.tensors.values())


def test_memory_is_bounded(tmp_path: Path, files: list[bytes]) -> None:
    """Parsed adapters beyond the cache's bytes leave memory, least recently used first, and load
    again."""
    store = Store(tmp_path, cache_bytes=2 * len(files[0]) + 100)
    a, b, c = (store.put(parse(data))[0].digest for data in files)
    assert [store.cached(digest) for digest in (a, b, c)] == [False, True, True]
    store.get("sst2", b)
    store.get("sst2", a)
    assert [store.cached(digest) for digest in (a, b, c)] == [True, True, False]
    assert store.get("sst2", c).digest == c


def test_an_invalid_file(store: Store, files: list[bytes]) -> None:
    """A file that is no valid adapter is refused and leaves no trace."""
    with pytest.raises(InvalidAdapter):
        store.put(parse(files[0][:-1]))
    assert state(store.folder) == {}
    assert store.entries() == []


def test_seeded(store: Store, files: list[bytes]) -> None:
    """That a store was seeded is known to the next process, whatever was deleted since."""
    assert not store.seeded
    store.put(parse(files[0]))
    store.mark_seeded()
    store.delete_task("sst2")
    again = reopened(store)
    assert again.seeded
    assert again.entries() == []


def test_what_does_not_fit_is_not_kept(tmp_path: Path, files: list[bytes]) -> None:
    """The check of a store sees each adapter once, before it is served for the first time: what it
    refuses is not put, not activated and not got."""
    a, b = map(parse, files[:2])
    seen: list[str] = []

    def check(adapter: Adapter) -> None:
        seen.append(adapter.digest)
        if adapter.digest == b.digest:
            raise BackboneMismatch("of another backbone")

    with Store(tmp_path) as store:
        store.put(a)
        store.put(b, activate=False)
    with Store(tmp_path, check=check) as store:
        for _ in range(3):
            assert store.get("sst2").digest == a.digest
        assert seen == [a.digest]
        for call in (
            lambda: store.get("sst2", b.digest),
            lambda: store.activate("sst2", b.digest),
            lambda: store.put(b),
        ):
            with pytest.raises(BackboneMismatch, match="of another backbone"):
                call()
        assert not store.cached(b.digest)
        assert store.find("sst2").digest == on_disk(store).find("sst2").digest == a.digest


def test_headers_of_deleted_versions_leave_memory(store: Store, bert: Backbone) -> None:
    """However many versions come and go, memory keeps the header of the one that lists show."""
    spec, tensors, _ = random_adapter(bert, "t", ["a", "b"], bottleneck=1)
    digests = []
    for i in range(5):
        data = serialize(spec.model_copy(update={"training": {"i": i}}), tensors)
        digests.append(store.put(parse(data))[0].digest)
        assert store.summary("t", digests[0]).spec.training == {"i": 0}
        assert [*store.entry("t").summaries] == [digests[-1]]
    for digest in digests[:-1]:
        store.delete_version("t", digest)
    assert [*store.entry("t").summaries] == digests[-1:]
