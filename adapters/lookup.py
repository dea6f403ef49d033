"""Find a version in a task's entry, and name what is there where it is not: the same sentences for
every store."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rapidfuzz import fuzz, process

from adapters.errors import (
    ActiveHasChanged,
    AmbiguousVersion,
    DamagedAdapter,
    NoActiveVersion,
    UnknownTask,
    UnknownVersion,
    VersionInTraffic,
    VersionIsActive,
)
from adapters.spec import shown

if TYPE_CHECKING:  # a front end does without torch, which these need
    from adapters.entry import Entry, Version
    from adapters.traffic import Split

MIN_PREFIX = 4  # digits, as git has it: clients send versions such as "1" by habit
_PREFIX = re.compile(f"[0-9a-f]{{{MIN_PREFIX},64}}")


def version_of(entry: Entry, version: str | None) -> Version:
    """The active version, or the one whose sha256 begins with `version`.

    Raises UnknownVersion, AmbiguousVersion, NoActiveVersion or DamagedAdapter.
    """
    if version is None:
        return _active(entry)
    fitting = [v for v in entry.versions if v.digest.startswith(version)]
    if not _PREFIX.fullmatch(version) or not fitting:
        raise UnknownVersion(
            f"task {entry.task!r} has no version {shown(version)}; expected one of"
            f" {entry.choices()}, by {MIN_PREFIX} digits or more"
        )
    if len(fitting) > 1:
        raise AmbiguousVersion(
            f"version {version!r} of task {entry.task!r} fits"
            f" {', '.join(map(entry.shown, fitting))}; expected a longer prefix"
        )
    return fitting[0]


def check_unused(entry: Entry, version: Version) -> None:
    """Raises VersionIsActive or VersionInTraffic for a version that requests may get."""
    if entry.active == version.digest:
        raise VersionIsActive(
            f"version {entry.shown(version)} is the active one of task {entry.task!r}; "
            "expected another one to be activated first, or the whole task to be deleted"
        )
    for role, digest in entry.split.roles().items() if entry.split is not None else ():
        if digest == version.digest:
            raise VersionInTraffic(
                f"version {entry.shown(version)} is the {role} of task {entry.task!r}; expected"
                f" that to be ended first, by DELETE /adapters/{entry.task}/traffic or another PUT"
            )


def check_split(entry: Entry, split: Split) -> None:
    """Raises ActiveHasChanged or UnknownVersion for a split that is for another state of a task."""
    if split.active != entry.active:
        found, active = entry.version(split.active), entry.active_version
        raise ActiveHasChanged(
            f"version {split.active[:12] if found is None else entry.shown(found)} is not the"
            f" active one of task {entry.task!r};"
            f" expected {'one to be' if active is None else entry.shown(active) + ', or it'}"
            f" activated first, by POST /adapters/{entry.task}/activate"
        )
    for digest in split.roles().values():
        version_of(entry, digest)


def unknown(task: str, tasks: Iterable[str]) -> UnknownTask:
    """The error for a task that is none of `tasks`, with the closest of them."""
    return UnknownTask(f"there is no task {shown(task)}; {_closest(task, list(tasks))}", task)


def _active(entry: Entry) -> Version:
    if entry.active_version is not None:
        return entry.active_version
    if entry.problem is not None:
        raise DamagedAdapter(
            f"task {entry.task!r} has no active version: {entry.problem};"
            f" expected one of {entry.choices()} to be activated"
        )
    raise NoActiveVersion(
        f"task {entry.task!r} has no active version; expected one of {entry.choices()} to be"
        " activated"
    )


def _closest(task: str, known: list[str]) -> str:
    if not known:
        return "the store is empty"
    # `ratio` takes a millisecond of the event loop over 10,000 names; the library's default
    # takes eight.
    closest = process.extract(task[:64], known, scorer=fuzz.ratio, limit=3, score_cutoff=60)
    names = [name for name, _, _ in closest]
    if names:
        return f"the closest are {', '.join(map(repr, names))}"
    some = ", ".join(map(repr, heapq.nsmallest(5, known)))
    return f"expected one of {some}{'…' if len(known) > 5 else ''}"
