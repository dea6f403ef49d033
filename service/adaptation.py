"""The adapters of one batch, each added to its own rows, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from service.heads import Segment


class Adaptation:
    """x += U·gelu(D·x + b_D) + b_U in place, each segment with its own adapter. All weights are views of the residents'."""

    def __init__(self, segments: Sequence[Segment], rows: int) -> None:
        """The segments follow each other from the first token on; the last few of `rows` may belong to none."""
        residents = [segment.resident for segment in segments]
        tokens = [segment.tokens.stop - segment.tokens.start for segment in segments]
        self._rows = [*tokens, rows - sum(tokens)]
        # [segment][layer]: views made once a batch, which costs more than the smallest products if it is done in every layer.
        self._down = [list(zip(r.down_bias.unbind(), r.down.unbind(), strict=True)) for r in residents]
        self._up = [list(zip(r.up_bias.unbind(), r.up.unbind(), strict=True)) for r in residents]
        widths = [resident.down.shape[2] for resident in residents]
        sizes = [n * width for n, width in zip(tokens, widths, strict=True)]
        self._inner = residents[0].down.new_empty(sum(sizes))  # all bottlenecks in one: GELU is one call
        parts = self._inner.split(sizes)
        self._inners = [part.view(-1, width) for part, width in zip(parts, widths, strict=True)]

    def __call__(self, layer: int, x: Tensor) -> None:
        """`x` is the feed-forward's output, `[rows, d]`."""
        parts = x.split(self._rows)[:-1]
        for part, inner, down in zip(parts, self._inners, self._down, strict=True):
            bias, weight = down[layer]
            torch.addmm(bias, part, weight, out=inner)
        torch.ops.aten.gelu_(self._inner)
        for part, inner, up in zip(parts, self._inners, self._up, strict=True):
            bias, weight = up[layer]
            part.addmm_(inner, weight).add_(bias)
