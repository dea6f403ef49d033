"""The packed encoder: a frozen BERT/RoBERTa encoder over rows laid end to end, without padding.

It computes what transformers' `BertModel`, `RobertaModel`, … compute in eval mode (tests hold it to
1e-5), with query, key and value fused into one projection and each row attending to itself alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from adapters.backbone import Backbone, position_offset
from service.engine.attention import Attention, attention_for, by_groups, groups_of
from service.engine.linear import (
    ROUND,
    FeedForward,
    Linear,
    Plain,
    Prepacked,
    Table,
    blocks,
    in_blocks,
    prepacks,
)
from service.engine.outliers import largest_inputs
from service.engine.packed import Adapt, Packed, Split
from service.engine.quantized import Quantized, QuantizedTable

# The least that an activation gives, where that is near 0.
LOWEST = {"gelu": -0.17, "gelu_new": -0.1701, "relu": 0.0}


@dataclass(frozen=True)
class _Layer:
    qkv: Linear  # d → 3d
    attention_out: Linear  # d → d
    attention_norm: tuple[Tensor, Tensor]
    feed_forward: Linear  # d → 4d → d
    out_norm: tuple[Tensor, Tensor]


class PackedEncoder:
    """The weights of one backbone on one device, and the forward pass over them."""

    def __init__(
        self,
        backbone: Backbone,
        device: torch.device,
        dtype: torch.dtype,
        attention: Attention | None = None,
    ) -> None:
        """With int8 the layers' linear weights and the embeddings of words are int8, all else is
        float32."""
        self.device = device
        self.dtype = torch.float32 if dtype == torch.int8 else dtype
        self._linear: type[Plain | Prepacked | Quantized] = (
            Quantized if dtype == torch.int8 else Plain
        )
        if device.type == "cpu" and dtype == torch.float32 and prepacks():
            self._linear = Prepacked
        self.attention = attention or attention_for(device, self.dtype)
        self._add_norm = _add_norm
        if device.type == "cuda":
            # it needs Triton, which torch brings for GPUs alone
            from service.engine.gpu import kernels

            self._add_norm = kernels.add_norm
        self.config = backbone.config
        self._heads: int = self.config.num_attention_heads
        self.eps: float = self.config.layer_norm_eps
        self._offset = position_offset(self.config)
        encoder: Any = backbone.encoder
        words = self._on_device(encoder.embeddings.word_embeddings.weight)
        self._words = QuantizedTable(words) if dtype == torch.int8 else Table(words)
        self._positions = self._on_device(encoder.embeddings.position_embeddings.weight)
        self._types = self._on_device(encoder.embeddings.token_type_embeddings.weight)
        self._embedding_norm = self._pair(encoder.embeddings.LayerNorm)
        project = getattr(encoder, "embeddings_project", None)  # ELECTRA's small embeddings
        self._project = self._pair(project) if project is not None else None
        self._pooler = self._pair(encoder.pooler.dense) if backbone.has_pooler else None
        seen = (
            largest_inputs(backbone) if dtype == torch.int8 else [{} for _ in encoder.encoder.layer]
        )
        self._layers = tuple(
            self._layer(*each) for each in zip(encoder.encoder.layer, seen, strict=True)
        )

    @property
    def bytes(self) -> int:
        """What the weights take on the device."""
        return sum(map(_bytes, self._tensors()))

    def pack(
        self, rows: Sequence[tuple[list[int], list[int]]], masks: list[int] | None = None
    ) -> Packed:
        """(ids, type ids) of each row → the packed batch on the device; `masks` only if a row has a
        prompt's."""
        lengths = [len(ids) for ids, _ in rows]
        bounds = list(accumulate(lengths, initial=0))
        tokens = bounds[-1]
        typed = self._types.shape[0] > 1  # RoBERTa has one type only, whatever its tokeniser says
        spare = 0 if self._linear is Plain else -tokens % ROUND
        padding = [0] * spare
        parts = [
            [i for ids, _ in rows for i in ids] + padding,
            [t if typed else 0 for _, types in rows for t in types] + padding,
            [p for ids, _ in rows for p in self._row_positions(ids)] + padding,
            bounds,
            lengths,
            masks or [],
        ]
        on_device = self.index(list(chain.from_iterable(parts)))  # in one copy
        ids, types, positions, ends, sizes, places = torch.split(
            on_device, [len(part) for part in parts]
        )
        return Packed(
            tokens=tokens,
            blocks=[slice(0, tokens)] if self._linear is Plain else blocks(tokens + spare),
            ids=ids,
            types=types,
            positions=positions,
            starts=ends[:-1],
            lengths=sizes,
            bounds=ends.to(torch.int32),
            longest=max(lengths),
            groups=groups_of(lengths, self.index) if self.attention is by_groups else (),
            masks=None if masks is None else places,
        )

    def filled(self, tokens: int, rows: int) -> Packed:
        """A batch of a size, for buffers that others' numbers are copied into: rows of any length
        have room in it."""
        length = tokens // rows
        batch = self.pack([([0] * length, [0] * length)] * rows)
        return replace(batch, longest=min(tokens, len(self._positions)))

    def forward(
        self, batch: Packed, adapt: Adapt, splits: Mapping[int, Split] = MappingProxyType({})
    ) -> Tensor:
        """The last hidden state of every row's tokens, `[tokens, d]`; `splits[i]` comes before
        layer i's adapters."""
        x = self._embed(batch)
        for i, layer in enumerate(self._layers):
            attended = self.attention(in_blocks(layer.qkv, x, batch.blocks), batch, self._heads)
            y = in_blocks(layer.attention_out, attended, batch.blocks)
            x = self._add_norm(y, x, *layer.attention_norm, self.eps)
            y = in_blocks(layer.feed_forward, x, batch.blocks)
            if i in splits:
                split = splits[i]
                batch, adapt = split.batch, split.adapt
                x, y = x[split.tokens], y[split.tokens]
            adapt(i, y)
            x = self._add_norm(y, x, *layer.out_norm, self.eps)
        return x[: batch.tokens]

    def pool_first(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: each row's first token."""
        return hidden[batch.starts]

    def pool_mean(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: the mean over each row's tokens, in float32."""
        return torch.segment_reduce(
            hidden.float(), "mean", lengths=batch.lengths, unsafe=True
        )  # else it waits for a GPU, to check

    def pool_pooler(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: the backbone's own dense + tanh over each row's first token."""
        assert self._pooler is not None, (
            "adapters that need a pooler are refused at upload where there is none"
        )
        return torch.tanh(F.linear(self.pool_first(hidden, batch), *self._pooler))

    def pool_mask(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: the token at each prompt's mask; of rows without a prompt, any."""
        assert batch.masks is not None, "a batch that has a prompt is packed with its masks"
        return hidden[batch.starts + batch.masks]

    def _embed(self, batch: Packed) -> Tensor:
        x = self._words(batch.ids)
        x = x.add_(F.embedding(batch.types, self._types)).add_(
            F.embedding(batch.positions, self._positions)
        )
        x = self._norm(x, self._embedding_norm)
        return x if self._project is None else F.linear(x, *self._project)

    def _row_positions(self, ids: list[int]) -> Sequence[int]:
        """From the offset on. RoBERTa's padding token, which a text may spell, is not counted and
        stands at its own id."""
        # BERT and ELECTRA count every token: here it is -1, which is no token's id
        padding = self._offset - 1
        if padding not in ids:
            return range(self._offset, self._offset + len(ids))
        counted = accumulate(token != padding for token in ids)
        return [
            padding if token == padding else padding + n
            for token, n in zip(ids, counted, strict=True)
        ]

    def _norm(self, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *weights, self.eps)

    def _layer(self, layer: Any, largest: dict[str, Tensor]) -> _Layer:
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        weight, bias = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias")
        )
        qkv = self._on_device(weight), self._on_device(bias)
        up, down = self._pair(layer.intermediate.dense), self._pair(layer.output.dense)
        return _Layer(
            qkv=Quantized(*qkv, largest=largest["qkv"])
            if self._linear is Quantized
            else self._linear(*qkv),
            attention_out=self._linear(*self._pair(layer.attention.output.dense)),
            attention_norm=self._pair(layer.attention.output.LayerNorm),
            feed_forward=self._feed_forward(up, down, largest.get("up")),
            out_norm=self._pair(layer.output.LayerNorm),
        )

    def _feed_forward(
        self, up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor], largest: Tensor | None
    ) -> FeedForward:
        name = self.config.hidden_act
        if self._linear is Prepacked and name == "gelu":
            return FeedForward(Prepacked(*up, gelu=True), None, Prepacked(*down))
        if self._linear is Quantized:
            return FeedForward(
                Quantized(*up, largest=largest),
                ACT2FN[name],
                Quantized(*down, lowest=LOWEST.get(name)),
            )
        return FeedForward(self._linear(*up), ACT2FN[name], self._linear(*down))

    def _tensors(self) -> list[Tensor]:
        found = [*self._words.tensors, self._positions, self._types]
        found += [*self._embedding_norm, *(self._project or ()), *(self._pooler or ())]
        for layer in self._layers:
            found += [*layer.attention_norm, *layer.out_norm]
            for linear in (layer.qkv, layer.attention_out, layer.feed_forward):
                found += linear.tensors
        return found

    def _pair(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        return self._on_device(module.weight), self._on_device(module.bias)

    def _on_device(self, tensor: Any) -> Tensor:
        # Copied where matrices are laid out anew: one tensor still in the checkpoint's file would
        # keep all of it mapped.
        moved: Tensor = (
            tensor.detach().to(self.device, self.dtype, copy=self._linear is not Plain).contiguous()
        )
        return moved

    def index(self, values: list[int]) -> Tensor:
        """Places, as this device takes them; a GPU takes them while we go on."""
        pinned = self.device.type == "cuda"
        return torch.tensor(values, dtype=torch.long, pin_memory=pinned).to(
            self.device, non_blocking=True
        )


def _add_norm(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(y.add_(x), x.shape[-1:], weight, bias, eps)


def _bytes(tensor: Tensor) -> int:
    return torch.ops.mkldnn._nbytes(tensor) if tensor.is_mkldnn else tensor.nbytes
