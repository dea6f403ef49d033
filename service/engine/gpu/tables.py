"""What a launch over many segments reads: the rows of each of its programs, and the addresses of
their segment's weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tables:
    """Two int64 tables on the device. A kernel's launch depends on their sizes alone, never on what
    they hold.

    `tiles` is `[n, 3]`: a tile's first row, its rows (at most `height`; 0 where there is nothing to
    do) and its segment. `segments` is `[s, c]`, c even: of each segment the addresses of its
    weights and its sizes; the kernel says which. `widest` is the largest of the sizes that the
    launch must hold. The caller keeps alive what lies at the addresses.
    """

    tiles: Tensor
    segments: Tensor
    height: int
    widest: int

    @classmethod
    def of(
        cls,
        rows: Sequence[slice],
        segments: Sequence[tuple[int, ...]],
        device: torch.device,
        *,
        height: int,
        widest: int,
    ) -> Tables:
        """`rows[i]` are those of `segments[i]`. Both tables are made by one copy, which the host
        does not wait for."""
        tiles = [number for tile in _tiles(rows, height) for number in tile]
        known = [number for segment in segments for number in segment]
        # The segments first: each takes a multiple of 16 bytes, so the tiles' address is a multiple
        # of 16 too. For another alignment Triton would compile the kernels again.
        both = torch.tensor(known + tiles, dtype=torch.int64, pin_memory=device.type == "cuda")
        both = both.to(device, non_blocking=True)
        return cls(
            both[len(known) :].view(-1, 3),
            both[: len(known)].view(len(segments), -1),
            height,
            widest,
        )

    @classmethod
    def idle(
        cls,
        tiles: int,
        segments: int,
        columns: int,
        device: torch.device,
        *,
        height: int,
        widest: int,
    ) -> Tables:
        """Tables of that size that do nothing until others are copied into them."""
        zeros = torch.zeros(3 * tiles + columns * segments, dtype=torch.int64, device=device)
        return cls(
            zeros[columns * segments :].view(-1, 3),
            zeros[: columns * segments].view(-1, columns),
            height,
            widest,
        )


def _tiles(rows: Sequence[slice], height: int) -> Iterator[tuple[int, int, int]]:
    for segment, part in enumerate(rows):
        for first in range(part.start, part.stop, height):
            yield first, min(height, part.stop - first), segment
