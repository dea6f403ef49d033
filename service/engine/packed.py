"""A batch of rows laid end to end, and the batch that it becomes where rows stop sharing layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from service.engine.sites import Adaptation


@dataclass(frozen=True)
class Group:
    """Rows of one length, attended in one call. `tokens` are their places in the packed batch: a
    slice where the rows lie side by side, else the indices `[n·length]`."""

    rows: int
    length: int
    tokens: slice | Tensor


@dataclass(frozen=True)
class Packed:
    """Rows end to end, B of them with T tokens in all, of which `tokens` belong to a row: the last
    few may be spare."""

    tokens: int
    blocks: list[slice]  # what the linear layers take at once
    ids: Tensor  # [T]
    types: Tensor  # [T]
    positions: Tensor  # [T]
    starts: Tensor  # [B]
    lengths: Tensor  # [B]
    bounds: Tensor  # [B + 1], int32: where each row begins, and where the last one ends
    longest: int
    groups: tuple[Group, ...]  # empty unless attention goes by groups
    masks: Tensor | None  # [B]: each prompt's mask, counted from its row's start; None: no prompts


@dataclass(frozen=True)
class Split:
    """Rows that were computed as one row so far become rows of their own."""

    batch: Packed  # from here on
    tokens: Tensor  # [T]: for each of its tokens the place in the batch before
    adaptation: Adaptation  # from here on
