"""Check that an adapter fits a backbone, by what its spec says and by its probe
(docs/adapter-format.md, sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.errors import BackboneMismatch
from adapters.families.registry import FAMILIES
from adapters.file import Adapter
from adapters.spec import BackboneRef, BackboneSettings, shown

# How far a logit may be off, relative to the probe's largest (at least 1), for each dtype that the
# backbone may run in.
TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1, "int8": 1e-1}


def check_backbone(
    adapter: Adapter,
    backbone: BackboneRef,
    *,
    intermediate_size: int,
    max_length: int,
    has_pooler: bool,
    has_mask: bool,
) -> None:
    """Check that the adapter was trained on this very backbone, and needs nothing that it lacks.
    Costs no forward pass. Raises BackboneMismatch."""
    spec = adapter.spec
    found, wanted = spec.backbone, backbone
    if found.fingerprint != wanted.fingerprint:
        raise BackboneMismatch(
            f"the adapter was made for backbone {found.name!r} with fingerprint"
            f" {found.fingerprint[:12]}; expected {wanted.name!r} with fingerprint"
            f" {wanted.fingerprint[:12]}"
        )
    if found.settings is not None and wanted.settings is not None:
        _check_settings(found.settings, wanted.settings, wanted.name)
    if (found.num_layers, found.hidden_size) != (wanted.num_layers, wanted.hidden_size):
        raise BackboneMismatch(
            f"the adapter has {found.num_layers} layers of {found.hidden_size}; "
            f"expected {wanted.num_layers} of {wanted.hidden_size}, as backbone {wanted.name!r} has"
        )
    places = FAMILIES[wanted.model_type].places
    lacking = [site for site in spec.ranks or () if site not in places]
    if lacking:
        raise BackboneMismatch(
            f"the adapter has LoRA at {lacking[0]!r}; expected it at {', '.join(places)}, which the"
            f" layers of backbone {wanted.name!r} have"
        )
    if spec.intermediate_size not in (None, intermediate_size):
        raise BackboneMismatch(
            f"the adapter's intermediate_size is {spec.intermediate_size}; expected"
            f" {intermediate_size}, as backbone {wanted.name!r} has"
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
    """Check `logits`, those of the probe's inputs as `[N][C]`, against those that the trainer got.
    Raises BackboneMismatch."""
    wanted = adapter.spec.probe.logits
    scale = max(1.0, max(abs(value) for row in wanted for value in row))
    for i, (found_row, wanted_row) in enumerate(zip(logits, wanted, strict=True)):
        for found, value in zip(found_row, wanted_row, strict=True):
            if not abs(found - value) <= TOLERANCES[dtype] * scale:
                raise BackboneMismatch(
                    f"the adapter's probe input {i} gives the logits {_shown(found_row)} here; "
                    f"expected {_shown(wanted_row)}, which the trainer got{_doubt(adapter)}"
                )


def unsaid(adapter: Adapter) -> str | None:
    """What the file does not say about its backbone, so that it can be told by the probe alone."""
    if adapter.spec.backbone.settings is not None:
        return None
    return (
        "the file does not say how its backbone splits texts or computes a layer, as it was"
        " written before files did; only its probe tells whether this backbone does so"
    )


def _doubt(adapter: Adapter) -> str:
    reason = unsaid(adapter)
    return "" if reason is None else f" ({reason})"


def _check_settings(found: BackboneSettings, wanted: BackboneSettings, name: str) -> None:
    if found.tokenization != wanted.tokenization:
        raise BackboneMismatch(
            f"the adapter was made for the weights and the vocabulary of backbone {name!r}, but for"
            f" a tokeniser that splits texts otherwise: its tokenization is"
            f" {found.tokenization[:12]}; expected {wanted.tokenization[:12]}"
        )
    here_said, there_said = _flat(found), _flat(wanted)
    for field in {**here_said, **there_said}:
        here, there = here_said.get(field), there_said.get(field)
        if here != there:
            raise BackboneMismatch(
                f"the adapter was made for the weights of backbone {name!r}, but with {field}"
                f" {shown(here)}; expected {shown(there)}"
            )


def _flat(settings: BackboneSettings) -> dict[str, object]:
    """All settings by name, those of the backbone's family among them."""
    return {**settings.model_dump(exclude={"further"}), **(settings.further or {})}


def _shown(values: Sequence[float]) -> str:
    return (
        "["
        + ", ".join(f"{value:.6g}" for value in values[:6])
        + (", …]" if len(values) > 6 else "]")
    )
