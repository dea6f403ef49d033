"""Replay an adapter's probe on a backbone, with the reference model: for
`python -m adapters validate`. A server replays probes on its own engine."""

from __future__ import annotations

from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.file import Adapter
from adapters.parity import check_backbone, check_parity
from adapters.text import encode


def replay(adapter: Adapter, backbone: Backbone) -> None:
    """Check that the adapter computes on this backbone what its file says. Raises BackboneMismatch
    or InvalidPrompt."""
    check_backbone(
        adapter,
        backbone.reference,
        intermediate_size=backbone.encoder_config.intermediate_size,
        max_length=backbone.max_length,
        has_pooler=backbone.has_pooler,
        has_mask=backbone.mask_token is not None,
    )
    spec = adapter.spec
    prompt = backbone.prompt(spec.template, spec.max_length)
    rows = encode(backbone.tokenizer, spec.probe.inputs, spec.max_length, prompt)  # type: ignore[arg-type]  # 1 or 2 texts
    check_parity(adapter, from_adapter(backbone, adapter)(collate(rows)).tolist(), "float32")
