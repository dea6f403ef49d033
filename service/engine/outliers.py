"""Which inputs of a backbone's layers are far larger than the others: what int8 has to be told."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapters.backbone import Backbone

# Whatever the texts are, the same few channels stand out: they are the backbone's. Several kinds,
# for a measure of all.
TEXTS = (
    "It is one of the most charming films of the year, and the plot was awful.",
    "The company said on Friday that its shares fell 3.2 percent in the third quarter.",
    "How do I reset the password of my account? I was billed twice, please refund me.",
    "A man is playing a guitar. Two children are running through the green grass.",
    "The committee voted 12 to 7 against the proposal, according to the report.",
    "ok thanks!!!",
    "Water boils at 100 degrees Celsius; light travels at 299,792 km per second.",
    "Yeah, I know what you mean, but he never told me that they had moved to Ohio.",
)


@torch.no_grad()
def largest_inputs(backbone: Backbone) -> tuple[dict[str, Tensor], ...]:
    """Of each layer, the largest magnitude that each input of `qkv` and `up` has on some texts:
    `[d]`, `[d]`."""
    layers: Any = backbone.encoder.get_submodule("encoder.layer")
    found: tuple[dict[str, Tensor], ...] = tuple({} for _ in layers)

    def watch(site: dict[str, Tensor], name: str) -> Any:
        def see(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].abs().flatten(0, 1).amax(dim=0)
            site[name] = torch.maximum(site[name], seen) if name in site else seen

        return see

    handles = []
    for layer, site in zip(layers, found, strict=True):
        handles.append(layer.attention.self.query.register_forward_pre_hook(watch(site, "qkv")))
        handles.append(layer.intermediate.dense.register_forward_pre_hook(watch(site, "up")))
    try:
        for text in TEXTS:
            ids = backbone.tokenizer.encode(text).ids[: backbone.max_length]
            backbone.encoder(input_ids=torch.tensor([ids]))
    finally:
        for handle in handles:
            handle.remove()
    return found
