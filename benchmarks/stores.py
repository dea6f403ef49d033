"""Stores of any number of valid adapters with random weights, made quickly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from adapters.backbone import Backbone
from adapters.entry import ACTIVE, SUFFIX
from adapters.file import serialize
from adapters.header import expected_shapes
from adapters.spec import AdapterSpec, Pooling, Probe

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
    backbone: Backbone, task: str, seed: int, pooling: Pooling = "mean", first_layer: int = 0
) -> bytes:
    """An adapter file of bottleneck 16 and two labels. Its probe is not true: it cannot be
    uploaded."""
    spec = AdapterSpec(
        task=task,
        labels=("no", "yes"),
        problem_type="single_label_classification",
        text_pair=False,
        max_length=min(MAX_LENGTH, backbone.max_length),
        pooling=pooling,
        backbone=backbone.reference,
        first_layer=first_layer,
        bottleneck=16,
        activation="gelu",
        training={},
        probe=Probe(inputs=(("a text",),), logits=((0.0, 0.0),)),
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator).mul_(0.02).half()
        for name, shape in expected_shapes(spec).items()
        if not name.startswith("head.dense")
    }
    return serialize(spec, tensors)
