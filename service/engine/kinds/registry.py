"""The kinds of adapter that the engine can run. A further kind is a file beside this one and a line
here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from adapters.spec import AdapterSpec
from service.engine.kinds.bottleneck import Bottleneck, Bottlenecks
from service.engine.sites import Adaptation, Branch


class Weights(Protocol):
    """One adapter's tensors on the device, without its head."""

    @property
    def branch(self) -> Branch: ...


Combine = Callable[[Sequence[Any], Sequence[slice], int], Adaptation]
"""The adapters of one kind in a batch, the tokens of each, and the batch's tokens in all → what
they add."""

ON_CPU: Mapping[type[Weights], Combine] = {Bottleneck: Bottlenecks}


def load(spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> Weights:
    """An adapter of the kind that its spec says, from its tensors on the device."""
    return Bottleneck.load(spec, tensors)  # the file format has one kind so far
