"""A batch of rows laid end to end, and where rows that share their first layers part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Adapt = Callable[[int, Tensor], None]
"""Applies the adapters of layer `i` in place to the feed-forward's output `[T, d]`."""


@dataclass(frozen=True)
class Group:
    """Rows of one length, attended in one call. `tokens` are their places in the packed batch: a
    slice where the rows lie side by side, else the indices `[n·length]`."""

    rows: int
    length: int
    tokens: slice | Tensor


@dataclass(frozen=True)
class Packed:
    """Rows end to end: `ids`, `types` and `positions` are `[T]`, `starts` and `lengths` are `[B]`,
    `bounds`, `[B + 1]` of int32, where each begins and the last one ends; `masks`, `[B]`, are the
    places of the prompts' masks in their rows, if there are prompts. Of the T tokens the last few
    may belong to no row: `tokens` do. `blocks` are what the linear layers take at once. `groups`
    are there where attention goes by them."""

    tokens: int
    blocks: list[slice]
    ids: Tensor
    types: Tensor
    positions: Tensor
    starts: Tensor
    lengths: Tensor
    bounds: Tensor
    longest: int
    groups: tuple[Group, ...]
    masks: Tensor | None


@dataclass(frozen=True)
class Split:
    """Where rows that were one row so far part: the batch from there on, of each of its tokens the
    place before, and its adapters."""

    batch: Packed
    tokens: Tensor  # [T]
    adapt: Adapt
