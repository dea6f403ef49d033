"""Rows of the same tokens are computed once, as one trunk, until the first place where one of their
tasks has an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from service.engine.row import Row
from service.engine.sites import Branch

EMBEDDINGS = Branch(-1, late=False)  # before all layers


@dataclass(frozen=True)
class Stage:
    """What is computed from one place on: `rows` by their numbers, and for each of their tokens its
    place in the stage before. The first stage begins at EMBEDDINGS and has no `tokens`."""

    branch: Branch
    rows: list[int]
    tokens: list[int]


def stages(rows: Sequence[Row], branches: Sequence[Branch]) -> list[Stage]:
    """`branches[i]` is where the adapter of `rows[i]` first changes it. One stage if no two rows
    have the same tokens; the last stage has all rows.

    A bottleneck comes last in its layer, so tasks that leave `i` layers bare share the work of
    `i + 1`. LoRA comes first, so its tasks share the work of `i`.
    """
    leaders: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    leader = [
        leaders.setdefault((tuple(row.ids), tuple(row.types)), i) for i, row in enumerate(rows)
    ]
    first: dict[int, Branch] = {}
    for i, branch in zip(leader, branches, strict=True):
        first[i] = min(first.get(i, branch), branch)
    own_from = [EMBEDDINGS if leader[i] == i else first[leader[i]] for i in range(len(rows))]
    start = [i for i, branch in enumerate(own_from) if branch == EMBEDDINGS]
    found = [Stage(EMBEDDINGS, start, [])]
    for before, branch in pairwise(sorted({EMBEDDINGS, *own_from})):
        kept = [i for i, own in enumerate(own_from) if own <= branch]
        sources = [i if own_from[i] <= before else leader[i] for i in kept]
        found.append(Stage(branch, kept, _places(rows, found[-1].rows, sources)))
    return found


def _places(rows: Sequence[Row], packed: list[int], wanted: list[int]) -> list[int]:
    """Where the tokens of the `wanted` rows lie in a batch of the `packed` ones."""
    starts: dict[int, int] = {}
    end = 0
    for i in packed:
        starts[i] = end
        end += len(rows[i].ids)
    return [place for i in wanted for place in range(starts[i], starts[i] + len(rows[i].ids))]
