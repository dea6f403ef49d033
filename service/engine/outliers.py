"""Which inputs of a backbone's layers are far larger than the others: int8 must know them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adapters.backbone import Backbone
from service.engine.architecture import Layer, Rows

# Whatever the texts are, the same few channels stand out: they belong to the backbone. Several
# kinds of text, so that each such channel is seen.
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
def largest_inputs(backbone: Backbone, layers: Sequence[Layer]) -> list[dict[str, Tensor]]:
    """For each of the backbone's layers, the largest magnitude that each input of query, key and
    value (`qkv`) and of `up` and `gate` (`up`) has on some texts: `[d]`, `[d]`."""
    found: list[dict[str, Tensor]] = [{} for _ in layers]

    def watch(largest: dict[str, Tensor], name: str) -> Any:
        def see(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].abs().flatten(0, 1).amax(dim=0)
            largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

        return see

    handles = []
    for layer, largest in zip(layers, found, strict=True):
        for module, name in ((layer.query, "qkv"), (layer.up, "up")):
            computed = module.whole[0] if isinstance(module, Rows) else module
            handles.append(computed.register_forward_pre_hook(watch(largest, name)))
    try:
        for text in TEXTS:
            ids = backbone.tokenizer.encode(text).ids[: backbone.max_length]
            backbone.encoder(input_ids=torch.tensor([ids]))
    finally:
        for handle in handles:
            handle.remove()
    return found
