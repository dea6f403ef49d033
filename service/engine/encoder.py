"""The packed encoder: a frozen backbone over rows laid end to end, without padding.

It computes what transformers' model of the backbone's family computes in eval mode (tests hold it
to 1e-5). It knows the family by its `Architecture` alone. Query, key and value are one product, and
each row attends to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.backbone import Backbone
from service.engine.activations import ACTIVATIONS, Activation
from service.engine.architecture import Layer, check_supported
from service.engine.attention import Attention, attention_for, by_groups, groups_of
from service.engine.families.registry import describe
from service.engine.linear import (
    ROUND,
    FeedForward,
    Linear,
    Plain,
    Prepacked,
    Table,
    blocks,
    in_blocks,
    pieces,
    prepacks,
)
from service.engine.native import library as native_library
from service.engine.native.choice import choose
from service.engine.native.library import Library
from service.engine.native.linear import Native, NativeQuantized
from service.engine.outliers import largest_inputs
from service.engine.packed import Packed, Split
from service.engine.positions import Disentangled, Relative, Rotary, computed
from service.engine.quantized import Quantized, QuantizedTable
from service.engine.resident import Pair
from service.engine.sites import BARE, Adaptation, Add, Branch, Site

QKV: tuple[Site, ...] = ("query", "key", "value")  # in this order side by side in one product
FEED_FORWARD = frozenset[Site]({"up", "gate", "down"})  # within it


@dataclass(frozen=True)
class _Layer:
    """A layer's weights on the device."""

    qkv: Linear  # d → 3d
    rotary: Rotary | None
    attention: Callable[[Tensor, Packed], Tensor]  # 3d → d
    attention_out: Linear  # d → d
    attention_norm: Pair | None
    feed_forward: FeedForward  # d → inner → d
    feed_forward_norm: Pair
    normed_first: bool  # norms before attention and feed-forward; else after their residuals


class PackedEncoder:
    """The weights of one backbone on one device, and the forward pass over them."""

    def __init__(
        self,
        backbone: Backbone,
        device: torch.device,
        dtype: torch.dtype,
        attention: Attention | None = None,
        native: Library | Literal["auto"] | None = "auto",
    ) -> None:
        """With int8 the linear layers and the table of words are int8, all else is float32.
        `native` are the kernels that `service.engine.native.choice` chose. Raises BackboneError for
        a backbone that the engine cannot compute."""
        architecture = describe(backbone)
        check_supported(architecture)
        self.device = device
        self.dtype = torch.float32 if dtype == torch.int8 else dtype
        self._int8 = dtype == torch.int8
        self.native = choose("auto", device, dtype).library if native == "auto" else native
        on_cpu = device.type == "cpu" and dtype == torch.float32
        self._prepacked = on_cpu and self.native is None and prepacks()
        # oneDNN compiles for each number of rows
        self._rounded = self._prepacked or (self._int8 and self.native is None)
        self._relaid = self._rounded or self.native is not None  # matrices are laid out anew
        self._in_attention = {
            each: computed(
                each,
                architecture.width // architecture.heads,
                backbone.max_length,
                device,
                self.dtype,
            )
            for each in dict.fromkeys(layer.positions for layer in architecture.layers)
            if each is not None
        }
        self.attention = attention or attention_for(device, self.dtype)
        self._norm, self._add_norm = _norm, _add_norm
        if self.native is not None:
            self.attention = self.native.attention
            self._norm, self._add_norm = self.native.norm, self.native.add_norm
        if any(not isinstance(each, Rotary) for each in self._in_attention.values()):
            self.attention = by_groups  # no other has a place for what the scores gain
        if device.type == "cuda":
            # it needs Triton, which torch brings for GPUs alone
            from service.engine.gpu import kernels

            self._add_norm = kernels.add_norm
        self.width = architecture.width
        self.eps = architecture.norm_eps
        self._heads = architecture.heads
        self._numbering = architecture.numbering
        self._longest = backbone.max_length

        embeddings, pooler = architecture.embeddings, architecture.pooler
        words = self._on_device(embeddings.words.weight)
        self._words = QuantizedTable(words) if self._int8 else Table(words)
        positions = architecture.positions
        self._positions = None if positions is None else self._on_device(positions.table.weight)
        types, projection = embeddings.types, embeddings.projection
        self._types = None if types is None else self._on_device(types.weight)
        self._embedding_norm = self._pair(embeddings.norm)
        self._projection = None if projection is None else self._exact(projection)
        self._pooler = None if pooler is None else self._exact(pooler)
        layers = architecture.layers
        smooth = self._int8 and (self.native is None or self.native.int8_inputs == 8)
        largest = largest_inputs(backbone, layers) if smooth else [{} for _ in layers]
        self._layers = tuple(self._layer(*each) for each in zip(layers, largest, strict=True))
        final = architecture.final_norm
        self._final_norm = None if final is None else self._pair(final)

    @property
    def bytes(self) -> int:
        """What the weights take on the device."""
        return sum(map(_bytes, self._tensors()))

    def pack(
        self, rows: Sequence[tuple[list[int], list[int]]], masks: list[int] | None = None
    ) -> Packed:
        """(ids, type ids) of each row → the packed batch on the device. `masks` are the places of
        the prompts' masks, if any row has a prompt."""
        lengths = [len(ids) for ids, _ in rows]
        bounds = list(accumulate(lengths, initial=0))
        tokens = bounds[-1]
        # RoBERTa has one type only, whatever its tokeniser says
        typed = self._types is not None and len(self._types) > 1
        spare = -tokens % ROUND if self._rounded else 0
        padding = [0] * spare
        parts = [
            [i for ids, _ in rows for i in ids] + padding,
            [t if typed else 0 for _, types in rows for t in types] + padding,
            [p for ids, _ in rows for p in self._numbering.of(ids)] + padding,
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
            blocks=self._cut(tokens + spare),
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
        """A batch of that size, as buffers for other batches' numbers: rows of any length fit."""
        length = tokens // rows
        batch = self.pack([([0] * length, [0] * length)] * rows)
        return replace(batch, longest=min(tokens, self._longest))

    def forward(
        self,
        batch: Packed,
        adaptation: Adaptation = BARE,
        splits: Mapping[Branch, Split] = MappingProxyType({}),
    ) -> Tensor:
        """The last hidden state of every row's tokens, `[tokens, d]`. Each of `splits` takes place
        right before the adapters that it is named for."""
        x = self._embed(batch)
        for i, layer in enumerate(self._layers):
            if split := splits.get(Branch(i, late=False)):
                batch, adaptation, x = split.batch, split.adaptation, x[split.tokens]
            sites = adaptation.at(i)
            y = self._attend(layer, self._before(layer, layer.attention_norm, x), batch, sites)
            x = self._after(layer, layer.attention_norm, y, x)
            y = self._before(layer, layer.feed_forward_norm, x)
            y = self._feed_forward(layer.feed_forward, y, batch, sites, adaptation.inner_rows)
            if split := splits.get(Branch(i, late=True)):
                batch, adaptation = split.batch, split.adaptation
                x, y = x[split.tokens], y[split.tokens]
                sites = adaptation.at(i)
            if "feed_forward" in sites:
                sites["feed_forward"](x, y)
            x = self._after(layer, layer.feed_forward_norm, y, x)
        if self._final_norm is not None:
            x = self._norm(x, *self._final_norm, self.eps)
        return x[: batch.tokens]

    def pool_first(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: each row's first token."""
        return hidden[batch.starts]

    def pool_mean(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: the mean over each row's tokens, in float32."""
        # `unsafe`: the check of the lengths would wait for the GPU
        return torch.segment_reduce(hidden.float(), "mean", lengths=batch.lengths, unsafe=True)

    def pool_pooler(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: the backbone's own dense + tanh over each row's first token."""
        assert self._pooler is not None, (
            "adapters that need a pooler are refused at upload where there is none"
        )
        return torch.tanh(self._pooler(self.pool_first(hidden, batch)))

    def pool_mask(self, hidden: Tensor, batch: Packed) -> Tensor:
        """`[B, d]`: the token at each prompt's mask; for rows without a prompt, an arbitrary
        one."""
        assert batch.masks is not None, "a batch that has a prompt is packed with its masks"
        return hidden[batch.starts + batch.masks]

    def index(self, values: list[int]) -> Tensor:
        """Indices on the device; a GPU copies them while the host goes on."""
        pinned = self.device.type == "cuda"
        return torch.tensor(values, dtype=torch.long, pin_memory=pinned).to(
            self.device, non_blocking=True
        )

    def _embed(self, batch: Packed) -> Tensor:
        if self.native is not None and isinstance(self._words, Table):
            x = self.native.embed(
                (batch.ids, self._words.weight),
                (batch.types, self._types),
                (batch.positions, self._positions),
                self._embedding_norm,
                self.eps,
            )
        else:
            x = self._words(batch.ids)
            if self._types is not None:
                x = x.add_(F.embedding(batch.types, self._types))
            if self._positions is not None:
                x = x.add_(F.embedding(batch.positions, self._positions))
            x = self._norm(x, *self._embedding_norm, self.eps)
        return x if self._projection is None else self._projection(x)

    def _before(self, layer: _Layer, norm: Pair | None, x: Tensor) -> Tensor:
        """What attention or the feed-forward is given."""
        return self._norm(x, *norm, self.eps) if layer.normed_first and norm is not None else x

    def _after(self, layer: _Layer, norm: Pair | None, y: Tensor, x: Tensor) -> Tensor:
        """The residual, `y` being what attention or the feed-forward gave for `x`."""
        if layer.normed_first or norm is None:
            return y.add_(x)
        return self._add_norm(y, x, *norm, self.eps)

    def _attend(self, layer: _Layer, x: Tensor, batch: Packed, sites: Mapping[Site, Add]) -> Tensor:
        qkv = in_blocks(layer.qkv, x, batch.blocks)
        for i, site in enumerate(QKV):
            if site in sites:
                sites[site](x, qkv.view(len(qkv), len(QKV), -1)[:, i])
        if layer.rotary is not None:
            layer.rotary(qkv, batch.positions, self._heads)
        attended = layer.attention(qkv, batch)
        return _adapted("attention_out", layer.attention_out, attended, batch.blocks, sites)

    def _feed_forward(
        self,
        layer: FeedForward,
        x: Tensor,
        batch: Packed,
        sites: Mapping[Site, Add],
        inner_rows: int,
    ) -> Tensor:
        if FEED_FORWARD.isdisjoint(sites):
            # by blocks as a whole: the inner layer's rows stay in the cache
            return in_blocks(layer, x, batch.blocks)
        if len(batch.blocks) == 1:
            return _in_steps(layer, x, batch.blocks, sites)
        # so do the rows of other adapters
        end = min(inner_rows + -inner_rows % ROUND, len(x))
        out = x.new_empty(len(x), layer.outputs)
        out[:end] = _in_steps(layer, x[:end], self._cut(end), sites)
        for part in self._cut(len(x) - end):
            layer(x[end:][part], out[end:][part])
        return out

    def _layer(self, layer: Layer, largest: Mapping[str, Tensor]) -> _Layer:
        """`largest` are the inputs that int8 is told of."""
        pairs = [self._pair(module) for module in (layer.query, layer.key, layer.value)]
        weight, bias = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        activation = self._activation(layer.activation)
        gate, norm, largest_up = layer.gate, layer.attention_norm, largest.get("up")
        # what a gate's product gives is below 0 as often as above
        lowest = activation.lowest if gate is None else None
        positions = None if layer.positions is None else self._in_attention[layer.positions]
        return _Layer(
            qkv=self._linear((weight, bias), largest=largest.get("qkv")),
            rotary=positions if isinstance(positions, Rotary) else None,
            attention=self._attention_of(positions, layer.window),
            attention_out=self._linear(self._pair(layer.attention_out)),
            attention_norm=None if norm is None else self._pair(norm),
            feed_forward=FeedForward(
                self._linear(self._pair(layer.up), largest=largest_up),
                activation,
                self._linear(self._pair(layer.down), lowest=lowest),
                None if gate is None else self._linear(self._pair(gate), largest=largest_up),
            ),
            feed_forward_norm=self._pair(layer.feed_forward_norm),
            normed_first=layer.norms == "pre",
        )

    def _activation(self, name: str) -> Activation:
        """The same whether it ends a product or stands alone."""
        activation = ACTIVATIONS[name]
        if self.native is None or activation.fused not in native_library.ACTIVATIONS:
            return activation
        code = native_library.ACTIVATIONS[activation.fused]
        return replace(activation, function=partial(self.native.activate, code))

    def _attention_of(
        self, positions: Rotary | Relative | Disentangled | None, window: int | None
    ) -> Callable[[Tensor, Packed], Tensor]:
        if isinstance(positions, Relative | Disentangled):
            return partial(by_groups, heads=self._heads, attend=positions)
        if window is None:
            return partial(self.attention, heads=self._heads)
        return partial(self.attention, heads=self._heads, window=window)

    def _linear(
        self, pair: Pair, *, lowest: float | None = None, largest: Tensor | None = None
    ) -> Linear:
        """`lowest` and `largest` matter to int8 alone, `lowest` to torch's."""
        if self.native is not None:
            if self._int8:
                return NativeQuantized(self.native, *pair, largest=largest)
            return Native(self.native, *pair)
        if self._int8:
            return Quantized(*pair, lowest=lowest, largest=largest)
        return Prepacked(*pair) if self._prepacked else Plain(*pair)

    def _exact(self, module: nn.Linear) -> Linear:
        """A linear layer outside the encoder's layers: not in int8, and of any number of rows."""
        pair = self._pair(module)
        return Plain(*pair) if self.native is None else Native(self.native, *pair)

    def _cut(self, rows: int) -> list[slice]:
        """What the linear layers take at once of so many rows."""
        if self._rounded:
            return blocks(rows)
        return [slice(0, rows)] if self.native is None else pieces(rows)

    def _tensors(self) -> list[Tensor]:
        found = [*self._words.tensors, *self._embedding_norm]
        found += [each for each in (self._positions, self._types) if each is not None]
        found += self._final_norm or ()
        for outside in (self._projection, self._pooler):
            found += () if outside is None else outside.tensors
        for positions in self._in_attention.values():
            found += positions.tensors
        for layer in self._layers:
            found += [*(layer.attention_norm or ()), *layer.feed_forward_norm]
            for linear in (layer.qkv, layer.attention_out, layer.feed_forward):
                found += linear.tensors
        return found

    def _pair(self, module: nn.Linear | nn.LayerNorm) -> Pair:
        """Weight and bias on the device; zeros for a bias that the module lacks."""
        weight = self._on_device(module.weight)
        bias: Tensor | None = module.bias
        return weight, weight.new_zeros(len(weight)) if bias is None else self._on_device(bias)

    def _on_device(self, tensor: Tensor) -> Tensor:
        # Copied where matrices are laid out anew: one tensor that still lies in the checkpoint's
        # file would keep all of it mapped.
        return tensor.detach().to(self.device, self.dtype, copy=self._relaid).contiguous()


def _in_steps(
    layer: FeedForward, x: Tensor, parts: list[slice], sites: Mapping[Site, Add]
) -> Tensor:
    """The feed-forward with what adapters add to its linear modules' outputs."""
    up, activation = _adapted("up", layer.up, x, parts, sites), layer.activation.function
    if layer.gate is None:
        inner = activation(up)
    else:
        inner = activation(_adapted("gate", layer.gate, x, parts, sites)).mul_(up)
    return _adapted("down", layer.down, inner, parts, sites)


def _adapted(
    site: Site, linear: Linear, x: Tensor, parts: list[slice], sites: Mapping[Site, Add]
) -> Tensor:
    """A linear module's output, and what the adapters at that site add to it."""
    y = in_blocks(linear, x, parts)
    if site in sites:
        sites[site](x, y)
    return y


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _add_norm(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(y.add_(x), x.shape[-1:], weight, bias, eps)


def _bytes(tensor: Tensor) -> int:
    return torch.ops.mkldnn._nbytes(tensor) if tensor.is_mkldnn else tensor.nbytes
