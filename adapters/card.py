"""Describe an adapter file to a person, as names and values."""

from __future__ import annotations

import json

from adapters.file import Adapter
from adapters.spec import AdapterSpec


def card(adapter: Adapter) -> dict[str, str]:
    spec = adapter.spec
    return {
        "task": spec.task,
        "version": adapter.digest,
        "labels": ", ".join(spec.labels),
        "problem type": spec.problem_type + (", pairs of texts" if spec.text_pair else ""),
        "pooling": spec.pooling,
        **({"template": spec.template} if spec.template is not None else {}),
        "max length": f"{spec.max_length} tokens",
        "backbone": (
            f"{spec.backbone.name} ({spec.backbone.num_layers} layers of"
            f" {spec.backbone.hidden_size}, fingerprint {spec.backbone.fingerprint[:12]})"
        ),
        "settings": (
            json.dumps(spec.backbone.settings.model_dump(exclude={"tokenization"}))
            if spec.backbone.settings is not None
            else "the file names none"
        ),
        "kind": _kind(spec),
        **({"first layer": str(spec.first_layer)} if spec.first_layer else {}),
        "size": f"{adapter.bytes:,} bytes, {adapter.parameters:,} parameters",
        "rows": (
            ", ".join(
                f"{count:,} {part}"
                for part in ("train", "dev")
                if isinstance(count := spec.training.get(f"{part}_rows"), int)
            )
            or "the file names none"
        ),
        "dev scores": json.dumps(spec.training.get("dev_scores", {})),
        **_calibration(spec),
        "recipe": json.dumps(spec.training.get("recipe", {})),
    }


def _calibration(spec: AdapterSpec) -> dict[str, str]:
    """The temperatures and the risk-coverage table, as far as the file has them."""
    found = {}
    if spec.temperatures is not None:
        numbers = ", ".join(f"{value:g}" for value in spec.temperatures[:8])
        several = len(spec.temperatures) > 1
        more = ", …" if len(spec.temperatures) > 8 else ""
        found["temperatures" if several else "temperature"] = numbers + more
    if spec.risk_coverage is not None:
        found["abstain"] = "; ".join(
            f"{point.accuracy:g} right: {100 * point.coverage:.0f} % of rows"
            for point in spec.risk_coverage
        )
    return found


def _kind(spec: AdapterSpec) -> str:
    if spec.ranks is None:
        return f"bottleneck of {spec.bottleneck}"
    if len(set(spec.ranks.values())) == 1:
        ranks = f"rank {next(iter(spec.ranks.values()))} at {', '.join(spec.ranks)}"
    else:
        ranks = "rank " + ", ".join(f"{rank} at {site}" for site, rank in spec.ranks.items())
    return f"LoRA of {ranks}; scale {spec.scale:g}"
