"""Make an adapter file of what was read, what the user says, and the backbone: check the fit, find
the labels, compute the probe's logits."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.backbone import POOLER_PREFIX, Backbone
from adapters.classifier import collate, from_tensors
from adapters.convert.foreign import Foreign, check_model_type
from adapters.convert.probe import neutral_probe
from adapters.errors import CannotConvert
from adapters.header import expected_shapes
from adapters.spec import AdapterSpec, ProblemType, parse_spec
from adapters.text import TextInput, encode


@dataclass(frozen=True)
class Wanted:
    """What another library's file may not say. `None` stands for what the file says."""

    task: str
    labels: tuple[str, ...] | None
    problem_type: ProblemType | None
    text_pair: bool
    max_length: int
    probe: tuple[TextInput, ...] | None
    dtype: torch.dtype


def assemble(
    foreign: Foreign, backbone: Backbone, wanted: Wanted
) -> tuple[AdapterSpec, dict[str, Tensor]]:
    """Return the spec, with a probe computed on the backbone, and the tensors of an adapter file.
    Raises CannotConvert or another AdaMixError."""
    _check_fit(foreign, backbone)
    if wanted.max_length > backbone.max_length:
        raise CannotConvert(
            f"max_length is {wanted.max_length}; expected at most {backbone.max_length}, the"
            " backbone's positions"
        )
    labels = _labels(foreign, wanted)
    inputs = wanted.probe or neutral_probe(wanted.text_pair)
    described = {
        "task": wanted.task,
        "labels": labels,
        "problem_type": wanted.problem_type or foreign.problem_type,
        "text_pair": wanted.text_pair,
        "max_length": wanted.max_length,
        "pooling": foreign.pooling,
        "backbone": backbone.reference.model_dump(),
        **foreign.form,
        "training": dict(foreign.provenance),
        "probe": {"inputs": inputs, "logits": [[0.0] * len(labels)] * len(inputs)},
    }
    spec = parse_spec(json.dumps(described))
    shapes = expected_shapes(spec)
    tensors = {name: tensor.to(wanted.dtype) for name, tensor in foreign.tensors.items()}
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise CannotConvert(
                f"{name} has shape {list(tensor.shape)}; expected {list(shapes[name])}"
            )
        if not torch.isfinite(tensor).all():
            raise CannotConvert(
                f"{name} holds NaN, infinity or what {wanted.dtype} cannot hold; expected finite"
                " numbers"
            )
    rows = encode(backbone.tokenizer, inputs, wanted.max_length)
    with torch.no_grad():
        logits = from_tensors(backbone, tensors, foreign.pooling, spec.scale or 1.0)(collate(rows))
    described["probe"] = {"inputs": inputs, "logits": logits.double().tolist()}
    return parse_spec(json.dumps(described)), tensors


def _check_fit(foreign: Foreign, backbone: Backbone) -> None:
    reference = backbone.reference
    check_model_type(foreign.model_types, backbone)
    # LoRA's modules were looked up in the backbone when they were read
    found = foreign.tensors["down.weight"].shape if "down.weight" in foreign.tensors else None
    if found and (found[0], found[-1]) != (reference.num_layers, reference.hidden_size):
        raise CannotConvert(
            f"the file has {found[0]} layers of {found[-1]}; expected {reference.num_layers} of"
            f" {reference.hidden_size}, as backbone {backbone.name!r} has"
        )
    parameters = dict(backbone.encoder.named_parameters())
    for name, tensor in foreign.encoder.items():
        if name.startswith(POOLER_PREFIX) and foreign.pooling != "pooler":
            continue  # carried along, never used
        if name not in parameters:
            raise CannotConvert(
                f"the tensor {name[:160]!r} is not understood; backbone {backbone.name!r} has none"
                " of that name"
            )
        if not torch.equal(parameters[name].float(), tensor.float()):
            raise CannotConvert(
                f"the backbone tensor {name!r} is not what {backbone.name!r} has: it was"
                " fine-tuned, or is another's; expected the frozen backbone's own weights"
            )


def _labels(foreign: Foreign, wanted: Wanted) -> tuple[str, ...]:
    rows = len(foreign.tensors["head.out.weight"])
    labels = wanted.labels or foreign.labels
    if labels is None:
        raise CannotConvert(
            f"the file does not name the {rows} rows of its head; expected --labels with {rows}"
            " names"
        )
    if len(labels) != rows:
        raise CannotConvert(
            f"the head has {rows} rows, but there are {len(labels)} labels; expected one each"
        )
    return labels
