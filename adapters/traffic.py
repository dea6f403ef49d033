"""How a task's requests are divided among its versions: the active one, a canary that answers a
part of them, and a shadow that is only compared.

A request has a *place*, one of `PLACES`: by the hash of its key, so the same key has the same place
in every process. The canary takes the first places. So more keys join it when its percentage grows,
and none leaves.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

PLACES = 1_000_000

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Canary(msgspec.Struct, frozen=True):
    """A version that answers `percent` of the keys."""

    digest: str
    percent: Percent

    @property
    def places(self) -> int:
        """How many places it takes, of `PLACES`."""
        return round(self.percent * PLACES / 100)


class Shadow(msgspec.Struct, frozen=True):
    """A version that runs `percent` of the texts again and answers nobody."""

    digest: str
    percent: Percent


class Rollback(msgspec.Struct, frozen=True):
    """When the canary leaves by itself: once more than a share `disagreement` of `after` compared
    rows or more got another label than the active version gives, or more than a share `errors` of
    `after` requests or more could not be answered by it."""

    disagreement: Share | None = None
    errors: Share | None = None
    after: Annotated[int, msgspec.Meta(ge=1)] = 200


class Left(msgspec.Struct, frozen=True):
    """A canary that left by its rule: when (seconds since the epoch), and why in one sentence."""

    digest: str
    reason: str
    at: float


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """How a task's requests are divided while the version `active` is active; digests are whole.
    `since` (seconds since the epoch, by the writer's clock) tells it from an earlier one."""

    active: str
    since: float = 0.0
    canary: Canary | None = None
    shadow: Shadow | None = None
    rollback: Rollback | None = None
    left: Left | None = None
    labels_may_differ: bool = False

    def roles(self) -> dict[str, str]:
        """By role, the digests of the versions that it names beside the active one."""
        parts = {"canary": self.canary, "shadow": self.shadow}
        return {role: part.digest for role, part in parts.items() if part is not None}

    def without_canary(self, left: Left) -> Split:
        """The same after its canary left by its rule."""
        return msgspec.structs.replace(self, canary=None, rollback=None, left=left)


def place_of(task: str, key: bytes) -> int:
    """The place of a key among a task's requests: the first 8 bytes of sha256(task + NUL + key),
    big-endian, modulo PLACES. Each task has places of its own."""
    digest = hashlib.sha256(task.encode() + b"\0" + key).digest()
    return int.from_bytes(digest[:8], "big") % PLACES


def packed(split: Split) -> bytes:
    """A split as JSON."""
    return msgspec.json.encode(split)


def unpacked(data: bytes) -> Split:
    """The split that was packed. Raises ValueError, of which msgspec's own errors are."""
    try:
        return msgspec.json.decode(data, type=Split)
    except RecursionError as error:
        raise ValueError(str(error)) from None
