"""The adapters of one batch, each added to its own rows, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.heads import Segment

# Products of fewer rows are summed in another order by MKL: the answer of a short text would
# depend, in its last bits, on whether there is another one of its task.
LEAST = 4


class Adaptation:
    """x += U·gelu(D·x + b_D) + b_U in place, each segment with its own adapter, if that has one in
    the layer. All weights are views of the residents'."""

    def __init__(self, segments: Sequence[Segment], rows: int) -> None:
        """The segments follow each other from the first token on; the last few of `rows` may belong
        to none."""
        residents = [segment.resident for segment in segments]
        tokens = [segment.tokens.stop - segment.tokens.start for segment in segments]
        self._rows = [*tokens, rows - sum(tokens)]
        self._first = [resident.spec.first_layer for resident in residents]
        self._layers = [resident.layers for resident in residents]
        shapes = [
            (max(n, LEAST), resident.down.shape[2])
            for n, resident in zip(tokens, residents, strict=True)
        ]
        sizes = [n * width for n, width in shapes]
        # of all segments, so that GELU is one call
        self._inner = residents[0].down.new_empty(sum(sizes))
        self._inners = [
            part.view(shape) for part, shape in zip(_split(self._inner, sizes), shapes, strict=True)
        ]

    def __call__(self, layer: int, x: Tensor) -> None:
        """`x` is the feed-forward's output, `[rows, d]`."""
        parts = _split(x, self._rows)[:-1]
        adapted = [(i, layer - first) for i, first in enumerate(self._first) if layer >= first]
        enough = {i: _lengthened(parts[i]) for i, _ in adapted}
        for i, own in adapted:
            down, bias, _, _ = self._layers[i][own]
            torch.addmm(bias, enough[i], down, out=self._inners[i])
        torch.ops.aten.gelu_(self._inner)
        for i, own in adapted:
            _, _, up, bias = self._layers[i][own]
            enough[i].addmm_(self._inners[i], up).add_(bias)
            if enough[i] is not parts[i]:
                parts[i].copy_(enough[i][: len(parts[i])])


def _lengthened(part: Tensor) -> Tensor:
    """The same with rows of zeros up to LEAST, if there are fewer."""
    lacking = LEAST - len(part)
    return part if lacking <= 0 else F.pad(part, (0, 0, 0, lacking))


def _split(x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = torch.split(x, sizes)
    return parts
