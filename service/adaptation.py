"""The adapters of one batch, each added to its own rows, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from service.heads import Segment

# Products of fewer rows are summed in another order by MKL: the answer of a short text would depend, in its last bits, on
# whether there is another one of its task.
LEAST = 4


class Adaptation:
    """x += U·gelu(D·x + b_D) + b_U in place, each segment with its own adapter. All weights are views of the residents'."""

    def __init__(self, segments: Sequence[Segment], rows: int) -> None:
        """The segments follow each other from the first token on; the last few of `rows` may belong to none."""
        residents = [segment.resident for segment in segments]
        tokens = [segment.tokens.stop - segment.tokens.start for segment in segments]
        self._rows = [*tokens, rows - sum(tokens)]
        # [segment][layer]: views made once a batch; made in every layer they would cost as much as the smallest products.
        self._down = [list(zip(r.down_bias.unbind(), r.down.unbind(), strict=True)) for r in residents]
        self._up = [list(zip(r.up_bias.unbind(), r.up.unbind(), strict=True)) for r in residents]
        shapes = [(max(n, LEAST), resident.down.shape[2]) for n, resident in zip(tokens, residents, strict=True)]
        sizes = [n * width for n, width in shapes]
        self._inner = residents[0].down.new_empty(sum(sizes))  # of all segments, so that GELU is one call
        self._inners = [part.view(shape) for part, shape in zip(_split(self._inner, sizes), shapes, strict=True)]

    def __call__(self, layer: int, x: Tensor) -> None:
        """`x` is the feed-forward's output, `[rows, d]`."""
        parts = _split(x, self._rows)[:-1]
        enough = [_lengthened(part) for part in parts]
        for part, inner, down in zip(enough, self._inners, self._down, strict=True):
            bias, weight = down[layer]
            torch.addmm(bias, part, weight, out=inner)
        torch.ops.aten.gelu_(self._inner)
        for part, inner, up in zip(enough, self._inners, self._up, strict=True):
            bias, weight = up[layer]
            part.addmm_(inner, weight).add_(bias)
        for part, long in zip(parts, enough, strict=True):
            if long is not part:
                part.copy_(long[: len(part)])


def _lengthened(part: Tensor) -> Tensor:
    """The same with rows of zeros up to LEAST, if there are fewer."""
    lacking = LEAST - len(part)
    return part if lacking <= 0 else F.pad(part, (0, 0, 0, lacking))


def _split(x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = torch.split(x, sizes)
    return parts
