"""Stores of any number of valid adapters with random weights, made quickly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from adapters.backbone import Backbone
from adapters.entry import ACTIVE, SUFFIX
from adapters.file import parse, serialize
from adapters.header import expected_shapes
from adapters.spec import INNER_SITES, AdapterSpec, LoraSite, Pooling, Probe

MAX_LENGTH = 128


def fill(folder: Path, backbone: Backbone, tasks: int) -> list[str]:
    """Write a store of so many tasks as `adapters.store` lays it out, but without its fsyncs;
    returns their names."""
    names = [f"task-{i:05d}" for i in range(tasks)]
    for seed, name in enumerate(names):
        data = random_file(backbone, name, seed, "cls")
        digest = hashlib.sha256(data).hexdigest()
        (folder / name).mkdir(parents=True)
        (folder / name / f"{digest}{SUFFIX}").write_bytes(data)
        (folder / name / ACTIVE).write_text(f"{digest}\n")
    return names


def random_file(
    backbone: Backbone,
    task: str,
    seed: int,
    pooling: Pooling = "mean",
    first_layer: int = 0,
    *,
    ranks: Mapping[LoraSite, int] | None = None,
    labels: int = 2,
) -> bytes:
    """An adapter file of bottleneck 16, or of LoRA with these ranks. A single label makes a
    regression. Its probe is not true: it cannot be uploaded."""
    inner = ranks is not None and not ranks.keys().isdisjoint(INNER_SITES)
    spec = AdapterSpec(
        task=task,
        labels=("no", "yes") if labels == 2 else tuple(f"label-{i}" for i in range(labels)),
        problem_type="regression" if labels == 1 else "single_label_classification",
        text_pair=False,
        max_length=min(MAX_LENGTH, backbone.max_length),
        pooling=pooling,
        backbone=backbone.reference,
        first_layer=first_layer,
        kind="bottleneck" if ranks is None else "lora",
        bottleneck=16 if ranks is None else None,
        activation="gelu" if ranks is None else None,
        ranks=None if ranks is None else dict(ranks),
        scale=None if ranks is None else 1.0,
        intermediate_size=backbone.config.intermediate_size if inner else None,
        training={},
        probe=Probe(inputs=(("a text",),), logits=((0.0,) * labels,)),
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator).mul_(0.02).half()
        for name, shape in expected_shapes(spec).items()
        if not name.startswith("head.dense")
    }
    return serialize(spec, tensors)


def full_model(backbone: Backbone, model: Path) -> bytes:
    """A full model (a BertForSequenceClassification with two labels on this very backbone) as an
    adapter file: bottlenecks of zeros, and its classifier as the head over its pooler."""
    template = parse(random_file(backbone, "full", 0, "pooler"))
    classifier = load_file(model / "model.safetensors")
    tensors = {name: torch.zeros_like(tensor) for name, tensor in template.tensors.items()}
    tensors |= {f"head.out.{kind}": classifier[f"classifier.{kind}"] for kind in ("weight", "bias")}
    return serialize(template.spec, tensors)
