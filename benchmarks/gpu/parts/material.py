"""What is run: backbones with random weights, adapters in this machine's memory, rows.

Weights are random and nowhere zero, biases and norms included: a formula that forgets one gives
other answers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.file import Adapter
from adapters.header import expected_shapes
from adapters.spec import AdapterSpec, Pooling, Probe
from benchmarks.gpu.parts.sizes import Model
from service.engine.row import Row

POSITIONS = 512
FIRST_WORD = 4  # the ids below are RoBERTa's special tokens


def roberta(sizes: Model, device: torch.device, seed: int = 0) -> Backbone:
    """A RoBERTa in float32 on the device. It reads no text: its rows are ids."""
    with torch.device(device):
        torch.manual_seed(seed)
        config = transformers.RobertaConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.inner,
            max_position_embeddings=POSITIONS + 2,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            pad_token_id=1,
        )
        encoder = shaken(transformers.RobertaModel(config)).requires_grad_(False).eval()
    name = f"random-roberta-{sizes.layers}x{sizes.hidden}"
    return Backbone(
        name,
        encoder,
        Tokenizer(models.BPE()),
        hashlib.sha256(name.encode()).hexdigest(),
        True,
        None,
    )


def shaken(model: Any) -> Any:
    """A model whose biases and norms are not where transformers starts them, at 0 and 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def classifier(backbone: Backbone, dtype: torch.dtype) -> nn.Module:
    """transformers' own model of the backbone, with a head of two labels."""
    with torch.device(backbone.encoder.device):
        model = shaken(transformers.RobertaForSequenceClassification(backbone.config))
        weights = {
            name: weight
            for name, weight in backbone.encoder.state_dict().items()
            if not name.startswith("pooler.")
        }
        model.roberta.load_state_dict(weights)
        return model.to(dtype).requires_grad_(False).eval()


def varied_adapters(backbone: Backbone, count: int) -> list[Adapter]:
    """All that rows of one batch may differ in: widths, label counts, poolings, kinds of head, bare
    layers."""
    poolings: list[Pooling] = ["cls", "mean", "pooler"] if backbone.has_pooler else ["cls", "mean"]
    top = backbone.config.num_hidden_layers - 1
    found = []
    for i in range(count):
        spec = _spec(
            backbone,
            f"varied-{i}",
            labels=2 + i % 6,
            pooling=poolings[i % len(poolings)],
            bottleneck=(16, 48, 8, 64)[i % 4],
            first_layer=min(i % 8 // 7, top),
        )
        shapes = _shapes(spec, dense=i % 5 == 0)
        found.append(_placed(spec, shapes, _drawn(shapes, i)))
    return found


def adapters(backbone: Backbone, count: int, *, dense: bool = False) -> list[Adapter]:
    """Bottleneck 16, two to seven labels; each in memory of its own, with the weights of one of
    six: to draw ten thousand would take minutes."""
    found = []
    drawn: dict[int, Tensor] = {}
    for i in range(count):
        labels = 2 + i % 6
        spec = _spec(backbone, f"task-{i}-{dense:d}", labels=labels)
        shapes = _shapes(spec, dense=dense)
        if labels not in drawn:
            drawn[labels] = _drawn(shapes, labels)
        found.append(_placed(spec, shapes, drawn[labels].clone()))
    return found


def rows(
    adapters: Sequence[Adapter], lengths: Sequence[int], vocabulary: int, rng: random.Random
) -> list[Row]:
    """Texts of so many random words, of these adapters in turn."""
    ids = [rng.choices(range(FIRST_WORD, vocabulary), k=length) for length in lengths]
    return [Row(adapters[i % len(adapters)], row, [0] * len(row)) for i, row in enumerate(ids)]


def within(lengths: Sequence[int], tokens: int, rng: random.Random) -> list[int]:
    """Lengths drawn from these, as many as so many tokens hold."""
    drawn: list[int] = []
    left = tokens
    while (length := rng.choice(lengths)) <= left:
        drawn.append(length)
        left -= length
    return drawn


def padded(rows: Sequence[Row], device: torch.device) -> dict[str, Tensor]:
    """What transformers takes: ids and mask, `[B, T]`, as long as the longest."""
    width = max(row.tokens for row in rows)
    ids = torch.tensor([row.ids + [1] * (width - row.tokens) for row in rows])
    mask = torch.tensor([[1] * row.tokens + [0] * (width - row.tokens) for row in rows])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _spec(
    backbone: Backbone,
    task: str,
    *,
    labels: int,
    pooling: Pooling = "cls",
    bottleneck: int = 16,
    first_layer: int = 0,
) -> AdapterSpec:
    return AdapterSpec(
        task=task,
        labels=tuple(f"label-{i}" for i in range(labels)),
        problem_type="single_label_classification",
        text_pair=False,
        max_length=128,
        pooling=pooling,
        backbone=backbone.reference,
        first_layer=first_layer,
        bottleneck=bottleneck,
        activation="gelu",
        training={},
        probe=Probe(inputs=(("a text",),), logits=((0.0,) * labels,)),
    )


def _shapes(spec: AdapterSpec, *, dense: bool) -> dict[str, tuple[int, ...]]:
    return {
        name: shape
        for name, shape in expected_shapes(spec).items()
        if dense or not name.startswith("head.dense")
    }


def _drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> Tensor:
    """Weights, one tensor after the other, that give logits of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.randn(prod(shape), generator=generator) / shape[-1] ** 0.5
        for shape in shapes.values()
    ]
    return torch.cat(parts).half()


def _placed(spec: AdapterSpec, shapes: dict[str, tuple[int, ...]], flat: Tensor) -> Adapter:
    """An adapter whose tensors lie in one piece of memory, as those of a file do."""
    parts = flat.split([prod(shape) for shape in shapes.values()])
    tensors = {
        name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    return Adapter(
        spec,
        tensors,
        hashlib.sha256(spec.task.encode()).hexdigest(),
        memoryview(flat.numpy()).cast("B"),
    )
