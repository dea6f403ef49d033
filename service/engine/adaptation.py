"""The adapters of one batch, of all kinds together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

from service.engine.kinds.registry import Combine, Weights
from service.engine.resident import Segment
from service.engine.sites import Adaptation, Add, Site


def adaptation_of(
    segments: Sequence[Segment], rows: int, combine: Mapping[type[Weights], Combine]
) -> Adaptation:
    """What the segments' adapters add. The segments follow each other from the first token on; the
    last few of `rows` may belong to none. `combine` has the device's way with each kind."""
    by_kind: dict[type[Weights], list[Segment]] = defaultdict(list)
    for segment in segments:
        by_kind[type(segment.resident.weights)].append(segment)
    found = [
        combine[kind]([s.resident.weights for s in own], [s.tokens for s in own], rows)
        for kind, own in by_kind.items()
    ]
    return found[0] if len(found) == 1 else _Together(found)


class _Together:
    """Several kinds. Each changes the rows of its own adapters only, so their order is of no
    matter."""

    def __init__(self, kinds: Sequence[Adaptation]) -> None:
        self._kinds = kinds

    @property
    def inner_rows(self) -> int:
        return max(kind.inner_rows for kind in self._kinds)

    def at(self, layer: int) -> Mapping[Site, Add]:
        adds: dict[Site, list[Add]] = defaultdict(list)
        for kind in self._kinds:
            for site, add in kind.at(layer).items():
                adds[site].append(add)
        return {site: _all(several) for site, several in adds.items()}


def _all(adds: list[Add]) -> Add:
    def add(x: Tensor, y: Tensor) -> None:
        for one in adds:
            one(x, y)

    return adds[0] if len(adds) == 1 else add
