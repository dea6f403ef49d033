"""What a mixture of bottlenecks and one of LoRA have in common: experts on two sides, and the route
of a mini-batch through them (AdaMix, arXiv 2205.12410, section 3)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

# Which of M projections a mini-batch uses: one for all rows (its index), one for each row (an index
# a row), or the average of all.
Choice = int | tuple[int, ...] | Literal["mean"]
Route = tuple[Choice, Choice]  # (down, up)


class Mixture(nn.Module):
    """M experts at one site, which are merged after training.

    An expert projects down and up again; LoRA's A projects down, its B up. `share_down` or
    `share_up` gives all experts one common projection (the paper's default: up shared, down not).
    `counts` has how many there are of each. `route` says which of them `forward` uses; whichever it
    is, a forward pass costs the matrix products of a single adapter.
    """

    def __init__(self, experts: int, *, share_down: bool, share_up: bool) -> None:
        super().__init__()
        if experts < 1:
            raise ValueError(f"experts is {experts}; expected 1 or more")
        self.counts = (1 if share_down else experts, 1 if share_up else experts)
        self.route: Route = (0, 0)


def layers_of(sites: Iterable[nn.Module]) -> list[list[Mixture]]:
    """The mixtures of each layer that has any, lowest layer first.

    Those of one layer have the same experts and share a draw, as LoRA's query and value do in the
    released code (`AdamixMergedLinear` has one weight for both).
    """
    found = ([part for part in site.modules() if isinstance(part, Mixture)] for site in sites)
    return [layer for layer in found if layer]


def draw(counts: tuple[int, int], rng: random.Random) -> Route:
    """One down and one up projection for a mini-batch, independently and uniformly at random
    (paper, section 3.1)."""
    down, up = counts
    return (rng.randrange(down), rng.randrange(up))


def draw_routes(sites: Iterable[nn.Module], rng: random.Random) -> None:
    """A fresh, independent draw in every layer; sites that are no mixtures are left alone."""
    for layer in layers_of(sites):
        route = draw(layer[0].counts, rng)
        for mixture in layer:
            mixture.route = route


def project(
    weights: Sequence[Tensor], biases: Sequence[Tensor] | None, choice: Choice, x: Tensor
) -> Tensor:
    """`x` `[B, T, in]` through what is chosen of the experts' weights, `[out, in]` each, and
    biases, `[out]` each → `[B, T, out]`."""
    if len(weights) == 1 or isinstance(choice, int):
        alone = choice if isinstance(choice, int) else 0
        return nn.functional.linear(x, weights[alone], None if biases is None else biases[alone])
    stacked = torch.stack([*weights])  # [M, out, in]
    offsets = None if biases is None else torch.stack([*biases])  # [M, out]
    if choice == "mean":
        return nn.functional.linear(
            x, stacked.mean(dim=0), None if offsets is None else offsets.mean(dim=0)
        )
    assert len(choice) == len(x), f"a route for {len(choice)} rows meets a mini-batch of {len(x)}"
    of = torch.tensor(choice, device=x.device)
    each = stacked[of].transpose(1, 2)  # [B, in, out]
    if offsets is None:
        return torch.bmm(x, each)
    return torch.baddbmm(offsets[of].unsqueeze(1), x, each)
