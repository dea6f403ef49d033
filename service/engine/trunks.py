"""Rows of the same tokens are one row, a trunk, until the lowest layer that one of their tasks
adapts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

EMBEDDINGS = -1  # before all layers


class Row(Protocol):
    """What must be known of a row: its tokens, and the lowest layer that its task adapts."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def types(self) -> list[int]: ...
    @property
    def first_layer(self) -> int: ...


@dataclass(frozen=True)
class Stage:
    """The rows, by their places, that are computed from the adapters of `layer` on (in the first
    stage from the embeddings on), and where each of their tokens is in the stage before (in the
    first stage nowhere)."""

    layer: int
    rows: list[int]
    tokens: list[int]


def stages(rows: Sequence[Row]) -> list[Stage]:
    """One stage if no two rows have the same tokens; the last one has all rows.

    In layer `i` the adapters come last, so tasks that leave `i` layers bare share the work of `i +
    1`.
    """
    leaders: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    leader = [
        leaders.setdefault((tuple(row.ids), tuple(row.types)), i) for i, row in enumerate(rows)
    ]
    lowest: dict[int, int] = {}
    for i, row in zip(leader, rows, strict=True):
        lowest[i] = min(lowest.get(i, row.first_layer), row.first_layer)
    parts_at = [EMBEDDINGS if leader[i] == i else lowest[leader[i]] for i in range(len(rows))]
    found = [Stage(EMBEDDINGS, [i for i, layer in enumerate(parts_at) if layer == EMBEDDINGS], [])]
    for before, layer in pairwise(sorted({EMBEDDINGS, *parts_at})):
        kept = [i for i, parted in enumerate(parts_at) if parted <= layer]
        sources = [i if parts_at[i] <= before else leader[i] for i in kept]
        found.append(Stage(layer, kept, _places(rows, found[-1].rows, sources)))
    return found


def _places(rows: Sequence[Row], packed: list[int], wanted: list[int]) -> list[int]:
    """Where the tokens of the `wanted` rows lie in a batch of the `packed` ones."""
    starts: dict[int, int] = {}
    end = 0
    for i in packed:
        starts[i] = end
        end += len(rows[i].ids)
    return [place for i in wanted for place in range(starts[i], starts[i] + len(rows[i].ids))]
