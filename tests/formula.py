"""The papers' formulas, written down once more from scratch: BERT (Devlin et al. 2019), RoBERTa's
positions (Liu et al.
2019), a bottleneck behind each feed-forward (Wang et al. 2022), LoRA beside a linear module (Hu et
al. 2022). One text at a time, in float64, without the product's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Site = Callable[[int, Tensor], Tensor]  # (layer, [T, d]) → [T, d]
Update = Callable[[int, str], Tensor | None]  # (layer, linear module) → what its weight gains


MODULES = (
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def bottleneck(down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, x: Tensor) -> Tensor:
    """`x + U·gelu(D·x + b_D) + b_U` with gelu(z) = z·Φ(z), Φ by the error function."""
    z = x @ down.double().T + down_bias.double()
    return x + (z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))) @ up.double().T + up_bias.double()


def lora(scale: float, a: Tensor, b: Tensor) -> Tensor:
    """`ΔW = scale · B·A`."""
    return scale * b.double() @ a.double()


def hidden(
    encoder: torch.nn.Module,
    ids: list[int],
    types: list[int],
    site: Site = lambda _layer, x: x,
    update: Update = lambda _layer, _module: None,
) -> Tensor:
    """The last layer's states `[T, d]` of a text without padding, `site` applied behind each
    feed-forward, `update` added to each linear module's weight."""
    p = {name: tensor.double() for name, tensor in encoder.named_parameters()}
    config = encoder.config
    first = 0 if config.model_type in ("bert", "electra") else config.pad_token_id + 1
    x = (
        p["embeddings.word_embeddings.weight"][ids]
        + p["embeddings.position_embeddings.weight"][first : first + len(ids)]
        + p["embeddings.token_type_embeddings.weight"][types]
    )
    x = _norm(p, "embeddings.LayerNorm", x, config.layer_norm_eps)
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        for module in MODULES:
            if (change := update(i, module)) is not None:
                p[f"{layer}.{module}.weight"] = p[f"{layer}.{module}.weight"] + change
        q, k, v = (
            _linear(p, f"{layer}.attention.self.{name}", x)
            .reshape(len(ids), heads, size)
            .transpose(0, 1)
            for name in ("query", "key", "value")
        )
        scores = torch.exp(q @ k.transpose(1, 2) / math.sqrt(size))
        mixed = (scores / scores.sum(-1, keepdim=True) @ v).transpose(0, 1).reshape(len(ids), -1)
        attended = _linear(p, f"{layer}.attention.output.dense", mixed)
        x = _norm(p, f"{layer}.attention.output.LayerNorm", x + attended, config.layer_norm_eps)
        z = _linear(p, f"{layer}.intermediate.dense", x)
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        fed = site(i, _linear(p, f"{layer}.output.dense", z))
        x = _norm(p, f"{layer}.output.LayerNorm", x + fed, config.layer_norm_eps)
    return x


def pooler(encoder: torch.nn.Module, states: Tensor) -> Tensor:
    """BERT's: dense and tanh over the first token."""
    p = {name: tensor.double() for name, tensor in encoder.named_parameters()}
    return torch.tanh(_linear(p, "pooler.dense", states[0]))


def _linear(p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _norm(p: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * p[f"{name}.weight"]
        + p[f"{name}.bias"]
    )
