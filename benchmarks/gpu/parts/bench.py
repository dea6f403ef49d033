"""What the parts share: the device, the sizes, the clock, and material that is made once."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import Adapter
from adapters.text import encode
from benchmarks.gpu.parts import material
from benchmarks.gpu.parts.clock import Clock
from benchmarks.gpu.parts.sizes import Sizes
from service.engine.engine import Engine
from service.engine.row import Row
from service.engine.slots import Slots

# SST-2's dev texts in the embedded backbone's tokens: their mean, standard deviation, shortest and
# longest.
SST2 = (25, 10, 4, 55)
# numbers of a row that a system without heads gives back, as many as a head of the middling size
# would
LABELS = 4


@dataclass
class Bench:
    device: torch.device
    dtype: torch.dtype
    sizes: Sizes
    clock: Clock
    backbone: str
    texts_file: Path | None

    @cached_property
    def embedded(self) -> Backbone:
        """The backbone of real weights, in float32."""
        loaded = backbones.load(self.backbone)
        loaded.encoder.to(self.device)
        return loaded

    @cached_property
    def large(self) -> Backbone:
        return material.roberta(self.sizes.large, self.device)

    @cached_property
    def adapters(self) -> list[Adapter]:
        """For `large`."""
        return material.adapters(self.large, self.sizes.tasks)

    @cached_property
    def mixed(self) -> Engine:
        """Of `large`, with a slot for each of `adapters`."""
        return self.engine(self.large, self.sizes.tasks)

    @cached_property
    def texts(self) -> list[list[int]]:
        """The texts in the embedded backbone's tokens; none, if there is no file."""
        if self.texts_file is None:
            return []
        lines = self.texts_file.read_text(encoding="utf-8").splitlines()
        texts = [(json.loads(line)["text"],) for line in lines if line.strip()]
        return [row.ids for row in encode(self.embedded.tokenizer, texts, self.embedded.max_length)]

    @cached_property
    def lengths(self) -> list[int]:
        """Of the texts, in tokens, or made up as SST-2's are; no longer than a long row."""
        mean, deviation, shortest, longest = SST2
        rng = random.Random(0)
        made_up = [
            min(max(shortest, round(rng.gauss(mean, deviation))), longest) for _ in range(1000)
        ]
        return [
            min(length, self.sizes.length)
            for length in (map(len, self.texts) if self.texts else made_up)
        ]

    def engine(
        self,
        backbone: Backbone,
        slots: int,
        dtype: torch.dtype | None = None,
        *,
        graphs: bool = True,
    ) -> Engine:
        used = dtype or self.dtype
        return Engine(backbone, Slots(slots, self.device, used), self.device, used, graphs=graphs)

    def rows(self, adapters: list[Adapter], lengths: list[int], seed: int = 0) -> list[Row]:
        """For `large`."""
        return material.rows(adapters, lengths, self.sizes.large.vocabulary, random.Random(seed))


def encoded(engine: Engine, rows: list[Row]) -> Tensor:
    """The bare backbone's vector of each row's first token, `[B, d]`: no adapters, no heads. Rows
    of one length should lie side by side, as the engine itself lays those of a task."""
    packed = engine.encoder.pack([(row.ids, row.types) for row in rows])
    return engine.encoder.pool_first(engine.encoder.forward(packed), packed)


def by_length(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.tokens)


def flops(config: Any, lengths: list[int]) -> tuple[float, float]:
    """Of these rows: the linear layers', and with the attention products too."""
    d, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    linear = 2.0 * layers * sum(lengths) * (4 * d * d + 2 * d * inner)
    return linear, linear + 4.0 * layers * d * sum(length * length for length in lengths)
