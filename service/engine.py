"""One backbone, many adapters: rows of any tasks in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from adapters.backbone import Backbone
from adapters.file import Adapter
from adapters.spec import Pooling
from service.adaptation import Adaptation
from service.encoder import Packed, PackedEncoder
from service.heads import Segment, logits
from service.slots import Resident, Slots


@dataclass(frozen=True, slots=True)
class Row:
    """One text of one task: the adapter it was admitted with, its token and type ids, and where a prompt's mask is."""

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


class Engine:
    """The packed encoder, the slots, and the one forward pass that uses both."""

    def __init__(self, backbone: Backbone, slots: Slots, device: torch.device, dtype: torch.dtype) -> None:
        self.encoder = PackedEncoder(backbone, device, dtype)
        self.slots = slots
        self._poolings: dict[Pooling, Callable[[Tensor, Packed], Tensor]] = {
            "mean": self.encoder.pool_mean,
            "cls": self.encoder.pool_first,
            "pooler": self.encoder.pool_pooler,
            "mask": self.encoder.pool_mask,
        }

    @torch.inference_mode()
    def run(self, rows: Sequence[Row]) -> list[list[float]]:
        """The logits of each row, in the rows' order; a row's do not depend on its batch mates."""
        order = sorted(range(len(rows)), key=lambda i: (rows[i].adapter_key, rows[i].tokens))
        sorted_rows = [rows[i] for i in order]
        residents = self.slots.acquire(row.adapter for row in sorted_rows)
        segments = _segments(sorted_rows, residents)
        poolings = {segment.resident.spec.pooling for segment in segments}
        masks = [row.mask or 0 for row in sorted_rows] if "mask" in poolings else None
        batch = self.encoder.pack([(row.ids, row.types) for row in sorted_rows], masks)
        hidden = self.encoder.forward(batch, Adaptation(segments, len(batch.ids)))
        answers = self._classify(hidden, batch, segments, poolings)
        result: list[list[float]] = [[]] * len(rows)
        for place, answer in zip(order, answers, strict=True):
            result[place] = answer
        return result

    def _classify(self, hidden: Tensor, batch: Packed, segments: list[Segment], poolings: set[Pooling]) -> list[list[float]]:
        pooled = {pooling: self._poolings[pooling](hidden, batch) for pooling in poolings}
        answers: list[list[float]] = []
        for segment in segments:
            rows = pooled[segment.resident.spec.pooling][segment.rows]
            answers += logits(rows, segment.resident, self.encoder.eps).tolist()
        return answers


def _segments(rows: list[Row], residents: dict[str, Resident]) -> list[Segment]:
    segments: list[Segment] = []
    row = token = 0
    for digest, group in groupby(rows, key=lambda r: r.adapter_key):
        lengths = [r.tokens for r in group]
        next_row, next_token = row + len(lengths), token + sum(lengths)
        segments.append(Segment(residents[digest], slice(row, next_row), slice(token, next_token)))
        row, token = next_row, next_token
    return segments
