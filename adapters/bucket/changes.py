"""What a log holds: changes, one a generation; and the state that they make of an empty store.

A change was valid in the state before it, since its writer had seen that very state and won the
generation after it. So to apply one never fails.
"""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Literal, TypeVar

import msgspec

from adapters.entry import TASK, Entry, Version
from adapters.errors import StoreError
from adapters.spec import TASK_PATTERN, shown
from adapters.traffic import Split

FORMAT = 1
SPLIT_FORMAT = 2  # of what holds a split: a service that knows none would let it pass unseen
FORMATS = (FORMAT, SPLIT_FORMAT)
Kind = Literal[
    "found", "upload", "upload_inactive", "activate", "delete_task", "delete_version", "traffic"
]
T = TypeVar("T", bound=msgspec.Struct)
# A digest names files here and in the bucket: another string could name any.
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Generation = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
TaskName = Annotated[str, msgspec.Meta(pattern=TASK_PATTERN.replace("$", r"\Z"))]
STEP = (
    1e-6  # seconds: versions of a task are in the log's order, whatever their writers' clocks say
)


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """One change. `writer` and `nonce` tell who made it; `created` is the writer's clock, in
    seconds since the epoch. `found` begins a log: its `digest` is the fingerprint of the backbone
    that the store is for, `task` that backbone's name. `traffic` sets the task's `split`."""

    change: Kind
    task: str
    digest: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    bytes: Bytes = 0
    writer: str = ""
    nonce: str = ""
    created: float = 0.0
    split: Split | None = None
    format: int = FORMAT

    def signed(self, writer: str) -> Change:
        """With the writer's name, its time and a nonce of its own."""
        return msgspec.structs.replace(
            self, writer=writer, nonce=secrets.token_hex(16), created=time.time()
        )


class _StoredVersion(msgspec.Struct, array_like=True):
    digest: Digest
    bytes: Bytes
    created: float


class _StoredTask(msgspec.Struct, array_like=True):
    task: TaskName
    active: Digest | None
    versions: list[_StoredVersion]
    split: Split | None = None


class _Snapshot(msgspec.Struct):
    generation: Generation
    founded: Change | None
    tasks: list[_StoredTask]
    format: int = FORMAT


class _Format(msgspec.Struct):
    format: int = 0


class DamagedState(StoreError):
    """A change or a snapshot that is not what this service writes, in a format that it knows."""


class State:
    """The tasks after the changes up to `generation`. `founded` is the log's first change."""

    def __init__(self) -> None:
        self.generation = 0
        self.founded: Change | None = None
        self.entries: dict[str, Entry] = {}

    def apply(self, change: Change) -> None:
        """Take the next generation's change in."""
        entry = self.entries.get(change.task, Entry(change.task))
        if change.change == "found":
            self.founded = change
        elif change.change == "delete_task":
            self.entries.pop(change.task, None)
        elif change.change == "delete_version":
            rest = tuple(v for v in entry.versions if v.digest != change.digest)
            self.keep(entry.changed(versions=rest))
        elif change.change == "traffic":
            self.keep(entry.changed(split=change.split))
        else:
            if entry.version(change.digest) is None and change.change != "activate":
                entry = entry.changed(versions=(*entry.versions, self._version(entry, change)))
            if change.change != "upload_inactive":
                entry = entry.changed(active=change.digest, split=None)
            self.keep(entry)
        self.generation += 1

    def packed(self) -> bytes:
        """As a snapshot."""
        tasks = [
            _StoredTask(
                entry.task,
                entry.active,
                [_StoredVersion(v.digest, v.bytes, v.created) for v in entry.versions],
                entry.split,
            )
            for entry in list(self.entries.values())
        ]
        divided = any(task.split is not None for task in tasks)
        form = SPLIT_FORMAT if divided else FORMAT
        return msgspec.json.encode(_Snapshot(self.generation, self.founded, tasks, form))

    def _version(self, entry: Entry, change: Change) -> Version:
        after = entry.versions[-1].created + STEP if entry.versions else 0.0
        return Version(change.digest, change.bytes, max(change.created, after))

    def keep(self, entry: Entry) -> None:
        """Put a task in the place of what is known of it."""
        if entry.versions:
            self.entries[entry.task] = entry
        else:
            self.entries.pop(entry.task, None)


def unpacked(data: bytes, where: str) -> State:
    """The state of a snapshot. Raises StoreError."""
    snapshot = _decoded(data, _Snapshot, where)
    state = State()
    state.generation, state.founded = snapshot.generation, snapshot.founded
    for task in snapshot.tasks:
        versions = tuple(Version(v.digest, v.bytes, v.created) for v in task.versions)
        # As `State.apply` leaves it: no task without a version, no split for another state.
        state.keep(Entry(task.task, versions, task.active).changed(split=task.split))
    return state


def encoded(change: Change) -> bytes:
    """A change as the log holds it."""
    return msgspec.json.encode(change)


def decoded(data: bytes, where: str) -> Change:
    """The change of a log's entry. Raises StoreError for one that this version cannot read."""
    change = _decoded(data, Change, where)
    if change.change != "found" and TASK.fullmatch(change.task) is None:
        raise DamagedState(
            f"{where} is damaged: its task is {shown(change.task)}; expected a task's name"
        )
    return change


def _decoded(data: bytes, kind: type[T], where: str) -> T:
    expected = " or ".join(map(str, FORMATS))
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found not in FORMATS:
            raise StoreError(
                f"{where} has format {found}, of another version of this service; expected format"
                f" {expected}: update this service to read further"
            )
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:  # ValueErrors are msgspec's, and no UTF-8
        raise DamagedState(
            f"{where} is damaged: {error}; expected JSON of format {expected}"
        ) from None
