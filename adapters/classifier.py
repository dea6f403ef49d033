"""The reference model: a frozen backbone with adapters, pooling and a head. The trainer trains it;
the server's packed encoder is tested against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.attach import attached
from adapters.backbone import Backbone
from adapters.bottleneck import INITIAL_STD, Bottleneck
from adapters.errors import BackboneError
from adapters.file import Adapter
from adapters.lora import Lora
from adapters.spec import Pooling
from adapters.text import Tokens


@dataclass(frozen=True)
class Batch:
    """Padded rows: `ids`, `types` and `mask` are `[B, T]`; `mask` is 1 on tokens and 0 on padding.
    `prompted` is `[B]`: the position of each row's mask token, if rows have a prompt."""

    ids: Tensor
    types: Tensor
    mask: Tensor
    prompted: Tensor | None = None


class Head(nn.Module):
    """Compute logits `[B, C]` of pooled `[B, d]`: optionally dense and tanh, as RoBERTa's head, or
    with `norm_eps` dense, GELU and LayerNorm, as ModernBERT's; then the output projection."""

    def __init__(
        self,
        hidden_size: int,
        labels: int,
        *,
        dense: bool,
        norm_eps: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size) if dense else None
        self.norm = None if norm_eps is None else nn.LayerNorm(hidden_size, norm_eps)
        self.out = nn.Linear(hidden_size, labels)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.dense, self.out):
            if linear is not None:
                nn.init.normal_(linear.weight, 0.0, INITIAL_STD)
                nn.init.zeros_(linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        x = self.dropout(pooled)
        if self.dense is not None and self.norm is not None:
            x = self.dropout(self.norm(nn.functional.gelu(self.dense(x))))
        elif self.dense is not None:
            x = self.dropout(torch.tanh(self.dense(x)))
        logits: Tensor = self.out(x)
        return logits


class WordHead(nn.Module):
    """Compute logits `[B, C]` of pooled `[B, d]` as a masked language model scores words: dense,
    GELU, LayerNorm, and the rows of the label words."""

    def __init__(self, hidden_size: int, words: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps)
        self.out = nn.Linear(hidden_size, words)

    def forward(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.out(self.norm(nn.functional.gelu(self.dense(pooled))))
        return logits


class Classifier(nn.Module):
    """Classify rows with `backbone.encoder` and an adapter in each of its uppermost layers. The
    encoder is shared and never changed."""

    def __init__(
        self, backbone: Backbone, sites: nn.ModuleList, head: Head | WordHead, pooling: Pooling
    ) -> None:
        super().__init__()
        if pooling == "pooler" and not backbone.has_pooler:
            raise BackboneError(
                f"pooling is 'pooler', but the checkpoint of {backbone.name!r} has none; expected"
                " cls or mean"
            )
        if pooling == "mask" and not isinstance(head, WordHead):
            raise BackboneError(
                "pooling is 'mask', which needs a prompt; expected cls, mean or pooler"
            )
        self.encoder = backbone.encoder
        self._typed = backbone.encoder_config.token_types > 0
        self.sites = sites
        self.head = head
        self.pooling = pooling

    def forward(self, batch: Batch) -> Tensor:
        """Compute the logits `[B, C]`."""
        types = {"token_type_ids": batch.types} if self._typed else {}
        with attached(self.encoder, self.sites):
            output = self.encoder(input_ids=batch.ids, attention_mask=batch.mask, **types)
        hidden = output.last_hidden_state  # [B, T, d]
        if self.pooling == "pooler":
            pooled = output.pooler_output
        elif self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "mask":
            assert batch.prompted is not None, (
                "rows of a task with a template are encoded with its prompt"
            )
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), batch.prompted]
        else:
            weights = batch.mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        logits: Tensor = self.head(pooled)
        return logits


def collate(rows: Sequence[Tokens], device: torch.device | str = "cpu") -> Batch:
    """Make a batch of rows, padded to the longest of them."""
    width = max(len(row.ids) for row in rows)
    ids, types, mask = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        types[i, :n] = torch.tensor(row.types)
        mask[i, :n] = 1
    places = [row.mask for row in rows if row.mask is not None]
    prompted = torch.tensor(places, device=device) if places else None
    return Batch(ids.to(device), types.to(device), mask.to(device), prompted)


def to_tensors(
    sites: nn.ModuleList, head: Head | WordHead, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the tensors of an adapter file for merged sites and a head (docs/adapter-format.md,
    section 2)."""
    tensors = _stacked(sites)
    for name, tensor in head.state_dict().items():
        tensors[f"head.{name}"] = tensor
    return {
        name: tensor.to(device="cpu", dtype=dtype, copy=True) for name, tensor in tensors.items()
    }


def from_tensors(
    backbone: Backbone, tensors: Mapping[str, Tensor], pooling: Pooling, scale: float = 1.0
) -> Classifier:
    """Make the reference model of an adapter file's tensors, the inverse of `to_tensors`: in
    float32, on the backbone's device, in eval mode. `scale` is LoRA's, from the spec."""
    sites = _bottlenecks(tensors) if "down.weight" in tensors else _loras(tensors, scale)
    d = backbone.config.hidden_size
    labels = tensors["head.out.weight"].shape[0]
    eps = backbone.encoder_config.norm_eps
    head: Head | WordHead
    if pooling == "mask":
        head = WordHead(d, labels, eps)
    else:
        normed = "head.norm.weight" in tensors
        dense = "head.dense.weight" in tensors
        head = Head(d, labels, dense=dense, norm_eps=eps if normed else None)
    head.load_state_dict(
        {
            name.removeprefix("head."): tensor.float()
            for name, tensor in tensors.items()
            if name.startswith("head.")
        }
    )
    return Classifier(backbone, sites, head, pooling).to(backbone.encoder.device).eval()


def from_adapter(backbone: Backbone, adapter: Adapter) -> Classifier:
    """Make the reference model of one adapter file."""
    spec = adapter.spec
    return from_tensors(backbone, adapter.tensors, spec.pooling, spec.scale or 1.0)


def _stacked(sites: nn.ModuleList) -> dict[str, Tensor]:
    """The layers' tensors under their names in a file."""
    if isinstance(sites[0], nn.ModuleDict):
        return {
            f"lora.{name}.{side}": torch.stack(
                [getattr(layer[name], side).detach() for layer in sites]  # type: ignore[index]  # a ModuleDict each
            )
            for name in sites[0]
            for side in ("a", "b")
        }
    return {
        f"{side}.{kind}": torch.stack(
            [getattr(getattr(site, side), kind).detach() for site in sites]
        )
        for side in ("down", "up")
        for kind in ("weight", "bias")
    }


def _bottlenecks(tensors: Mapping[str, Tensor]) -> nn.ModuleList:
    layers, r, d = tensors["down.weight"].shape
    sites = nn.ModuleList(Bottleneck(d, r) for _ in range(layers))
    for i, site in enumerate(sites):
        site.load_state_dict(
            {
                name: tensor[i].float()
                for name, tensor in tensors.items()
                if not name.startswith("head.")
            }
        )
    return sites


def _loras(tensors: Mapping[str, Tensor], scale: float) -> nn.ModuleList:
    names = [name.split(".")[1] for name in tensors if name.endswith(".a")]
    pairs = {name: (tensors[f"lora.{name}.a"], tensors[f"lora.{name}.b"]) for name in names}
    layers = len(next(iter(pairs.values()))[0])
    return nn.ModuleList(
        nn.ModuleDict(
            {name: Lora.of(a[i].float(), b[i].float(), scale) for name, (a, b) in pairs.items()}
        )
        for i in range(layers)
    )
