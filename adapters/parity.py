"""Whether an adapter fits a backbone: the fingerprint, and its probe replayed
(docs/adapter-format.md, section 5)."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.errors import BackboneMismatch
from adapters.file import Adapter
from adapters.spec import BackboneRef

# How far a logit may be off, relative to the probe's largest (at least 1), by the dtype the
# backbone runs in.
TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1, "int8": 1e-1}


def check_backbone(
    adapter: Adapter, backbone: BackboneRef, *, max_length: int, has_pooler: bool, has_mask: bool
) -> None:
    """Raise BackboneMismatch unless the adapter was trained on that very backbone and asks nothing
    that it has not."""
    spec = adapter.spec
    found, wanted = spec.backbone, backbone
    if found.fingerprint != wanted.fingerprint:
        raise BackboneMismatch(
            f"the adapter was made for backbone {found.name!r} with fingerprint"
            f" {found.fingerprint[:12]}; expected {wanted.name!r} with fingerprint"
            f" {wanted.fingerprint[:12]}"
        )
    if (found.num_layers, found.hidden_size) != (wanted.num_layers, wanted.hidden_size):
        raise BackboneMismatch(
            f"the adapter has {found.num_layers} layers of {found.hidden_size}; "
            f"expected {wanted.num_layers} of {wanted.hidden_size}, as backbone {wanted.name!r} has"
        )
    if spec.max_length > max_length:
        raise BackboneMismatch(
            f"the adapter's max_length is {spec.max_length}; expected at most {max_length}, the"
            " backbone's positions"
        )
    if spec.pooling == "pooler" and not has_pooler:
        raise BackboneMismatch(
            "the adapter's pooling is 'pooler'; expected mean or cls: this backbone's checkpoint"
            " has no pooler"
        )
    if spec.pooling == "mask" and not has_mask:
        raise BackboneMismatch(
            "the adapter's pooling is 'mask'; expected mean or cls: this backbone's tokeniser has"
            " no mask token"
        )


def check_parity(adapter: Adapter, logits: Sequence[Sequence[float]], dtype: str) -> None:
    """Raise BackboneMismatch unless `logits` (of the probe's inputs, `[N][C]`) are what the trainer
    got."""
    wanted = adapter.spec.probe.logits
    scale = max(1.0, max(abs(value) for row in wanted for value in row))
    for i, (found_row, wanted_row) in enumerate(zip(logits, wanted, strict=True)):
        for found, value in zip(found_row, wanted_row, strict=True):
            if not abs(found - value) <= TOLERANCES[dtype] * scale:
                raise BackboneMismatch(
                    f"the adapter's probe input {i} gives the logits {_shown(found_row)} here; "
                    f"expected {_shown(wanted_row)}, which the trainer got"
                )


def _shown(values: Sequence[float]) -> str:
    return (
        "["
        + ", ".join(f"{value:.6g}" for value in values[:6])
        + (", …]" if len(values) > 6 else "]")
    )
