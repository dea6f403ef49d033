"""One backbone, many adapters: rows of any tasks in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.spec import Pooling
from service.engine.adaptation import adaptation_of
from service.engine.attention import by_bounds
from service.engine.encoder import PackedEncoder
from service.engine.heads import classify
from service.engine.kinds.registry import ON_CPU, Combine, Weights
from service.engine.native.adapters import combined
from service.engine.native.library import Library
from service.engine.packed import Packed, Split
from service.engine.resident import Resident, Segment
from service.engine.row import Row
from service.engine.sites import Adaptation
from service.engine.slots import Slots
from service.engine.trunks import stages

if TYPE_CHECKING:
    from service.engine.gpu.graphs import Graphs


class Engine:
    """The packed encoder, the slots, and the forward pass over both.

    A row's logits do not depend, to the bit, on what the other rows of its batch say. With the
    native kernels, in float32 and int8, they do not depend on the other rows at all; families with
    relative positions are excepted, whose attention is torch's. With torch's operators their
    number, tasks and lengths can change its last bits, because libraries order a sum by the size of
    the whole product: below 1e-5 in float32. In torch's int8 and in half precision a last bit can
    tip a rounding, and logits then differ by a step or two of that precision.
    """

    def __init__(
        self,
        backbone: Backbone,
        slots: Slots,
        device: torch.device,
        dtype: torch.dtype,
        *,
        native: Library | Literal["auto"] | None = "auto",
        graphs: bool = True,
        recorded: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        """`native` are the kernels that `service.engine.native.choice` chose. With `graphs`, short
        batches on a GPU in half precision are replayed from CUDA graphs; `recorded` is called with
        the number recorded so far and the number in all. Raises BackboneError for a backbone that
        the engine cannot compute."""
        self.encoder = PackedEncoder(backbone, device, dtype, native=native)
        self.slots = slots
        self._poolings: dict[Pooling, Callable[[Tensor, Packed], Tensor]] = {
            "mean": self.encoder.pool_mean,
            "cls": self.encoder.pool_first,
            "pooler": self.encoder.pool_pooler,
            "mask": self.encoder.pool_mask,
        }
        self._combine: Mapping[type[Weights], Combine] = ON_CPU
        self._heads: Callable[..., list[list[float]]] = classify
        if (library := self.encoder.native) is not None:
            self._combine, self._heads = combined(library), partial(classify, linear=library.dots)
        if device.type == "cuda":
            # it needs Triton, which torch brings for GPUs alone
            from service.engine.gpu import fused

            fused.compile_all(self.encoder.width, dtype, device)
            self._combine, self._heads = fused.ON_GPU, fused.fused_classify
        self._graphs: Graphs | None = None
        if graphs and self.encoder.attention is by_bounds:
            from service.engine.gpu.graphs import Graphs

            self._graphs = Graphs(self.encoder, recorded=recorded)

    @torch.inference_mode()
    def run(self, rows: Sequence[Row]) -> list[list[float]]:
        """The logits of each row, in the rows' order."""
        order = sorted(range(len(rows)), key=lambda i: _place(rows[i]))
        sorted_rows = [rows[i] for i in order]
        residents = self.slots.acquire(row.adapter for row in sorted_rows)
        hidden, batch = self._encode(sorted_rows, residents)
        answers = self._classify(hidden, batch, _segments(sorted_rows, residents))
        result: list[list[float]] = [[]] * len(rows)
        for place, answer in zip(order, answers, strict=True):
            result[place] = answer
        return result

    def _encode(self, rows: list[Row], residents: dict[str, Resident]) -> tuple[Tensor, Packed]:
        """The last hidden state of every token, `[T, d]`, and how the rows lie in it. Rows of the
        same tokens share their first layers."""
        branches = [residents[row.adapter_key].weights.branch for row in rows]
        first, *later = stages(rows, branches)
        start, adaptation = self._pack([rows[i] for i in first.rows], residents)
        if self._graphs is not None and not later:
            hidden = self._graphs.forward(start, adaptation)
            if hidden is not None:
                return hidden, start
        splits = {}
        batch = start
        for stage in later:
            batch, its_own = self._pack([rows[i] for i in stage.rows], residents)
            spare = [0] * (len(batch.ids) - batch.tokens)
            splits[stage.branch] = Split(batch, self.encoder.index(stage.tokens + spare), its_own)
        return self.encoder.forward(start, adaptation, splits), batch

    def _pack(self, rows: list[Row], residents: dict[str, Resident]) -> tuple[Packed, Adaptation]:
        prompted = any(row.adapter.spec.pooling == "mask" for row in rows)
        masks = [row.mask or 0 for row in rows] if prompted else None
        batch = self.encoder.pack([(row.ids, row.types) for row in rows], masks)
        segments = _segments(rows, residents)
        return batch, adaptation_of(segments, len(batch.ids), self._combine)

    def _classify(
        self, hidden: Tensor, batch: Packed, segments: list[Segment]
    ) -> list[list[float]]:
        poolings = {segment.resident.spec.pooling for segment in segments}
        pooled = {pooling: self._poolings[pooling](hidden, batch) for pooling in poolings}
        return self._heads(pooled, segments, self.encoder.eps)


def _place(row: Row) -> tuple[bool, str, int]:
    """Rows by their adapters. First those whose adapters touch the feed-forward's inner layer, so
    that it can stay in the cache for the others."""
    return row.adapter.spec.intermediate_size is None, row.adapter_key, row.tokens


def _segments(rows: list[Row], residents: dict[str, Resident]) -> list[Segment]:
    segments: list[Segment] = []
    row = token = 0
    for digest, group in groupby(rows, key=lambda r: r.adapter_key):
        lengths = [r.tokens for r in group]
        next_row, next_token = row + len(lengths), token + sum(lengths)
        segments.append(Segment(residents[digest], slice(row, next_row), slice(token, next_token)))
        row, token = next_row, next_token
    return segments
