"""One backbone, many adapters: rows of any tasks in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.file import Adapter
from adapters.spec import Pooling
from service.engine.adaptation import Adaptation
from service.engine.attention import by_bounds
from service.engine.encoder import PackedEncoder
from service.engine.heads import Segment, classify
from service.engine.packed import Adapt, Packed, Split
from service.engine.slots import Resident, Slots
from service.engine.trunks import stages

if TYPE_CHECKING:
    from service.engine.gpu.graphs import Graphs


@dataclass(frozen=True, slots=True)
class Row:
    """One text of one task: the adapter it was admitted with, its token and type ids, and where a
    prompt's mask is."""

    adapter: Adapter
    ids: list[int]
    types: list[int]
    mask: int | None = None

    @property
    def task(self) -> str:
        return self.adapter.spec.task

    @property
    def adapter_key(self) -> str:
        return self.adapter.digest

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def first_layer(self) -> int:
        return self.adapter.spec.first_layer


class Engine:
    """The packed encoder, the slots, and the one forward pass that uses both."""

    def __init__(
        self,
        backbone: Backbone,
        slots: Slots,
        device: torch.device,
        dtype: torch.dtype,
        *,
        graphs: bool = True,
        recorded: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        """On a GPU in half precision short batches are replayed from CUDA `graphs`, if those are
        wanted; `recorded` is told how many are ready, of how many."""
        self.encoder = PackedEncoder(backbone, device, dtype)
        self.slots = slots
        self._poolings: dict[Pooling, Callable[[Tensor, Packed], Tensor]] = {
            "mean": self.encoder.pool_mean,
            "cls": self.encoder.pool_first,
            "pooler": self.encoder.pool_pooler,
            "mask": self.encoder.pool_mask,
        }
        self._adaptation: Callable[[Sequence[Segment], int], Adapt] = Adaptation
        self._heads = classify
        if device.type == "cuda":
            # it needs Triton, which torch brings for GPUs alone
            from service.engine.gpu import fused

            fused.compile_all(self.encoder.config.hidden_size, dtype, device)
            self._adaptation, self._heads = fused.FusedAdaptation, fused.fused_classify
        self._graphs: Graphs | None = None
        if graphs and self.encoder.attention is by_bounds:
            from service.engine.gpu.graphs import Graphs

            self._graphs = Graphs(self.encoder, recorded=recorded)

    @torch.inference_mode()
    def run(self, rows: Sequence[Row]) -> list[list[float]]:
        """The logits of each row, in the rows' order; a row's do not depend on its batch mates."""
        order = sorted(range(len(rows)), key=lambda i: (rows[i].adapter_key, rows[i].tokens))
        sorted_rows = [rows[i] for i in order]
        residents = self.slots.acquire(row.adapter for row in sorted_rows)
        hidden, batch = self._encode(sorted_rows, residents)
        answers = self._classify(hidden, batch, _segments(sorted_rows, residents))
        result: list[list[float]] = [[]] * len(rows)
        for place, answer in zip(order, answers, strict=True):
            result[place] = answer
        return result

    def _encode(self, rows: list[Row], residents: dict[str, Resident]) -> tuple[Tensor, Packed]:
        """The last hidden state of every token, `[T, d]`, and how the rows lie in it. Rows of one
        text share its trunk."""
        first, *later = stages(rows)
        start, adapt = self._pack([rows[i] for i in first.rows], residents)
        if self._graphs is not None and not later:
            hidden = self._graphs.forward(start, adapt)
            if hidden is not None:
                return hidden, start
        splits = {}
        batch = start
        for stage in later:
            batch, its_own = self._pack([rows[i] for i in stage.rows], residents)
            spare = [0] * (len(batch.ids) - batch.tokens)
            splits[stage.layer] = Split(batch, self.encoder.index(stage.tokens + spare), its_own)
        return self.encoder.forward(start, adapt, splits), batch

    def _pack(self, rows: list[Row], residents: dict[str, Resident]) -> tuple[Packed, Adapt]:
        prompted = any(row.adapter.spec.pooling == "mask" for row in rows)
        masks = [row.mask or 0 for row in rows] if prompted else None
        batch = self.encoder.pack([(row.ids, row.types) for row in rows], masks)
        return batch, self._adaptation(_segments(rows, residents), len(batch.ids))

    def _classify(
        self, hidden: Tensor, batch: Packed, segments: list[Segment]
    ) -> list[list[float]]:
        poolings = {segment.resident.spec.pooling for segment in segments}
        pooled = {pooling: self._poolings[pooling](hidden, batch) for pooling in poolings}
        return self._heads(pooled, segments, self.encoder.eps)


def _segments(rows: list[Row], residents: dict[str, Resident]) -> list[Segment]:
    segments: list[Segment] = []
    row = token = 0
    for digest, group in groupby(rows, key=lambda r: r.adapter_key):
        lengths = [r.tokens for r in group]
        next_row, next_token = row + len(lengths), token + sum(lengths)
        segments.append(Segment(residents[digest], slice(row, next_row), slice(token, next_token)))
        row, token = next_row, next_token
    return segments
