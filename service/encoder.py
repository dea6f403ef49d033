"""The packed encoder: a frozen BERT/RoBERTa encoder over rows laid end to end, without padding.

It computes what transformers' `BertModel`, `RobertaModel`, … compute in eval mode (tests hold it to 1e-5), with query,
key and value fused into one projection and each row attending to itself alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from adapters.backbone import Backbone, position_offset

Adapt = Callable[[int, Tensor], None]
"""Applies the adapters of layer `i` in place to the feed-forward's output `[T, d]`."""


@dataclass(frozen=True)
class Group:
    """Rows of one length, attended in one call. `tokens` are their places in the packed batch: a slice where the rows lie
    side by side, else the indices `[n·length]`."""

    rows: int
    length: int
    tokens: slice | Tensor


@dataclass(frozen=True)
class Packed:
    """Rows end to end: `ids`, `types` and `positions` are `[T]`, `starts` and `lengths` are `[B]`; `masks`, `[B]`, are the
    places of the prompts' masks in their rows, if there are prompts."""

    ids: Tensor
    types: Tensor
    positions: Tensor
    starts: Tensor
    lengths: Tensor
    groups: tuple[Group, ...]
    masks: Tensor | None


@dataclass(frozen=True)
class Split:
    """Where rows that were one row so far part: the batch from there on, and of each of its tokens the place before."""

    batch: Packed
    tokens: Tensor  # [T]


@dataclass(frozen=True)
class _Layer:
    qkv: tuple[Tensor, Tensor]  # [3d, d], [3d]
    attention_out: tuple[Tensor, Tensor]  # [d, d], [d]
    attention_norm: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]  # [4d, d], [4d]
    down: tuple[Tensor, Tensor]  # [d, 4d], [d]
    out_norm: tuple[Tensor, Tensor]


class PackedEncoder:
    """The weights of one backbone on one device, and the forward pass over them."""

    def __init__(self, backbone: Backbone, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.config = backbone.config
        self._heads: int = self.config.num_attention_heads
        self.eps: float = self.config.layer_norm_eps
        self._offset = position_offset(self.config)
        self._activation = ACT2FN[self.config.hidden_act]
        encoder: Any = backbone.encoder
        self._words = self._on_device(encoder.embeddings.word_embeddings.weight)
        self._positions = self._on_device(encoder.embeddings.position_embeddings.weight)
        self._types = self._on_device(encoder.embeddings.token_type_embeddings.weight)
        self._embedding_norm = self._pair(encoder.embeddings.LayerNorm)
        project = getattr(encoder, "embeddings_project", None)  # ELECTRA's small embeddings
        self._project = self._pair(project) if project is not None else None
        self._pooler = self._pair(encoder.pooler.dense) if backbone.has_pooler else None
        self._layers = tuple(self._layer(layer) for layer in encoder.encoder.layer)

    @property
    def bytes(self) -> int:
        """What the weights take on the device."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def pack(self, rows: Sequence[tuple[list[int], list[int]]], masks: list[int] | None = None) -> Packed:
        """(ids, type ids) of each row → the packed batch on the device; `masks` only if a row has a prompt's."""
        lengths = [len(ids) for ids, _ in rows]
        starts = [0]
        for length in lengths[:-1]:
            starts.append(starts[-1] + length)
        typed = self._types.shape[0] > 1  # RoBERTa has one type only, whatever its tokeniser says
        return Packed(
            ids=self.index([i for ids, _ in rows for i in ids]),
            types=self.index([t if typed else 0 for _, types in rows for t in types]),
            positions=self.index([p for ids, _ in rows for p in self._row_positions(ids)]),
            starts=self.index(starts),
            lengths=self.index(lengths),
            groups=tuple(self._groups(starts, lengths)),
            masks=None if masks is None else self.index(masks),
        )

    def forward(self, batch: Packed, adapt: Adapt, splits: Mapping[int, Split] = MappingProxyType({})) -> Tensor:
        """The last hidden state of every token, `[T, d]`; `splits` are those before the adapters of layer `i`."""
        x = self._embed(batch)
        for i, layer in enumerate(self._layers):
            attended = F.linear(self._attend(F.linear(x, *layer.qkv), batch.groups), *layer.attention_out)
            x = self._norm(attended.add_(x), layer.attention_norm)
            y = F.linear(self._activation(F.linear(x, *layer.up)), *layer.down)
            if i in splits:
                batch, tokens = splits[i].batch, splits[i].tokens
                x, y = x[tokens], y[tokens]
            adapt(i, y)
            x = self._norm(y.add_(x), layer.out_norm)
        return x

    def pool_first(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: each row's first token."""
        return hidden[batch.starts]

    def pool_mean(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: the mean over each row's tokens, in float32."""
        return torch.segment_reduce(hidden.float(), "mean", lengths=batch.lengths)

    def pool_pooler(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: the backbone's own dense + tanh over each row's first token."""
        assert self._pooler is not None, "adapters that need a pooler are refused at upload where there is none"
        return torch.tanh(F.linear(self.pool_first(hidden, batch), *self._pooler))

    def pool_mask(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: the token at each prompt's mask; of rows without a prompt, any."""
        assert batch.masks is not None, "a batch that has a prompt is packed with its masks"
        return hidden[batch.starts + batch.masks]

    def _embed(self, batch: Packed) -> Tensor:
        x = F.embedding(batch.ids, self._words)
        x = x.add_(F.embedding(batch.types, self._types)).add_(F.embedding(batch.positions, self._positions))
        x = self._norm(x, self._embedding_norm)
        return x if self._project is None else F.linear(x, *self._project)

    def _row_positions(self, ids: list[int]) -> Sequence[int]:
        """From the offset on. RoBERTa's padding token, which a text may spell, is not counted and stands at its own id."""
        padding = self._offset - 1  # BERT and ELECTRA count every token: here it is -1, which is no token's id
        if padding not in ids:
            return range(self._offset, self._offset + len(ids))
        counted = accumulate(token != padding for token in ids)
        return [padding if token == padding else padding + n for token, n in zip(ids, counted, strict=True)]

    def _attend(self, qkv: Tensor, groups: tuple[Group, ...]) -> Tensor:
        """Scaled dot-product attention of every row with itself: `[T, 3d]` → `[T, d]`."""
        width = qkv.shape[1] // 3
        out = qkv.new_empty(qkv.shape[0], width)
        for group in groups:
            # [n·L, 3d] → 3 × [n, H, L, D]
            shape = (group.rows, group.length, 3, self._heads, width // self._heads)
            q, k, v = qkv[group.tokens].view(shape).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, width)
            out[group.tokens] = attended
        return out

    def _norm(self, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *weights, self.eps)

    def _groups(self, starts: list[int], lengths: list[int]) -> list[Group]:
        rows_of: dict[int, list[int]] = defaultdict(list)
        for row, length in enumerate(lengths):
            rows_of[length].append(row)
        groups = []
        for length, rows in rows_of.items():
            if rows[-1] - rows[0] == len(rows) - 1:
                start = starts[rows[0]]
                groups.append(Group(len(rows), length, slice(start, start + len(rows) * length)))
            else:
                places = [place for row in rows for place in range(starts[row], starts[row] + length)]
                groups.append(Group(len(rows), length, self.index(places)))
        return groups

    def _layer(self, layer: Any) -> _Layer:
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        return _Layer(
            qkv=(
                self._on_device(torch.cat([part.weight for part in parts])),
                self._on_device(torch.cat([part.bias for part in parts])),
            ),
            attention_out=self._pair(layer.attention.output.dense),
            attention_norm=self._pair(layer.attention.output.LayerNorm),
            up=self._pair(layer.intermediate.dense),
            down=self._pair(layer.output.dense),
            out_norm=self._pair(layer.output.LayerNorm),
        )

    def _tensors(self) -> list[Tensor]:
        pairs = [self._embedding_norm, self._project, self._pooler]
        for layer in self._layers:
            pairs += [layer.qkv, layer.attention_out, layer.attention_norm, layer.up, layer.down, layer.out_norm]
        flat = [tensor for pair in pairs if pair is not None for tensor in pair]
        return [self._words, self._positions, self._types, *flat]

    def _pair(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        return self._on_device(module.weight), self._on_device(module.bias)

    def _on_device(self, tensor: Any) -> Tensor:
        moved: Tensor = tensor.detach().to(self.device, self.dtype).contiguous()
        return moved

    def index(self, values: list[int]) -> Tensor:
        """Places, as this device takes them."""
        return torch.tensor(values, dtype=torch.long).to(self.device, non_blocking=True)
