"""The kinds of adapter that the engine can run. A further kind is a file beside this one and two
lines here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from adapters.spec import AdapterSpec, Kind
from service.engine.kinds.bottleneck import Bottleneck, Bottlenecks
from service.engine.kinds.lora import Lora, Loras
from service.engine.sites import Adaptation, Branch


class Weights(Protocol):
    """One adapter's tensors on the device, without its head."""

    @property
    def branch(self) -> Branch: ...


Combine = Callable[[Sequence[Any], Sequence[slice], int], Adaptation]
"""The adapters of one kind in a batch, the tokens of each, and the batch's tokens in all → what
they add."""

ON_CPU: Mapping[type[Weights], Combine] = {Bottleneck: Bottlenecks, Lora: Loras}

_LOADERS: Mapping[Kind, Callable[[AdapterSpec, Mapping[str, Tensor]], Weights]] = {
    "bottleneck": Bottleneck.load,
    "lora": Lora.load,
}


def load(spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> Weights:
    """An adapter of the kind that its spec says, from its tensors on the device."""
    return _LOADERS[spec.kind](spec, tensors)
