"""The rows of each adapter in a batch, as a CPU's products take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# MKL shares a product's rows among its threads, and sums the last rows of a share in another order
# if they are fewer than four. A row's sums would then depend on how many other rows its adapter has
# in the batch, and int8 would round some of them to another step. Multiples of four have given the
# same sums with any number of threads; from 32 rows on, so has any number of rows (tried up to 16
# threads), except where an adapter's rank is 1, whose products are by a vector. In float32 only:
# half precision has other kernels, and there a weight may be infinite, whose product with 0 is NaN
# and would spoil another adapter's rows.
FOUR, ALIGNED_BELOW = 4, 32


class Parts:
    """The rows that follow an adapter's own join its products, up to a multiple of four. So the
    products must add 0 to them."""

    def __init__(self, tokens: Sequence[slice], dtype: torch.dtype) -> None:
        """`tokens[i]` are those of adapter i, in ascending order."""
        self._sizes, self._places = _cuts(tokens)
        self.end = tokens[-1].stop  # of the last adapter's rows
        self.own_heights = [part.stop - part.start for part in tokens]
        self.heights = self.own_heights  # of each adapter's products
        if dtype == torch.float32:
            self.heights = [n + -n % FOUR if n < ALIGNED_BELOW else n for n in self.own_heights]
        self._joined = {
            i: slice(part.start, part.start + n)
            for i, (part, n) in enumerate(zip(tokens, self.heights, strict=True))
            if n != self.own_heights[i]
        }

    def of(self, x: Tensor) -> list[Tensor]:
        """Each adapter's own rows of `x`, as views. `x` may end behind the last adapter's."""
        parts = split(x, [*self._sizes, len(x) - self.end])
        return [parts[place] for place in self._places]

    def whole(self, x: Tensor, own: list[Tensor]) -> list[Tensor]:
        """The rows of each adapter's products: views, but for the last ones of `x` a copy with
        zeros behind, which `settle` copies back."""
        whole = list(own)
        for i, rows in self._joined.items():
            lacking = rows.stop - len(x)
            whole[i] = x[rows] if lacking <= 0 else F.pad(x[rows], (0, 0, 0, lacking))
        return whole

    def settle(self, whole: Tensor, own: Tensor, i: int, rows: int) -> None:
        """Write adapter i's rows back where they were copied out of `rows`."""
        if i in self._joined and self._joined[i].stop > rows:
            own.copy_(whole[: len(own)])


def split(x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Views of so many rows each."""
    parts: tuple[Tensor, ...] = torch.split(x, sizes)
    return parts


def _cuts(parts: Sequence[slice]) -> tuple[list[int], list[int]]:
    """Sizes that cut the rows at the ends of all parts, and which of the pieces each part is."""
    sizes, places, end = [], [], 0
    for part in parts:
        if part.start > end:
            sizes.append(part.start - end)
        places.append(len(sizes))
        sizes.append(part.stop - part.start)
        end = part.stop
    return sizes, places
