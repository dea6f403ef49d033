"""The maths of an adapter: one bottleneck, and M of them under one random route (AdaMix, arXiv
2205.12410, section 3)."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from torch import Tensor, nn

INITIAL_STD = 0.02


class Bottleneck(nn.Module):
    """`y = x + U·gelu(D·x + b_D) + b_U` over the last dimension; `x` and `y` are `[..., d]`.

    Weights start at N(0, 0.02²), biases at 0 (the paper's released code).
    """

    def __init__(self, hidden_size: int, bottleneck: int) -> None:
        super().__init__()
        self.down = _projection(hidden_size, bottleneck)
        self.up = _projection(bottleneck, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.up(nn.functional.gelu(self.down(x)))
        return x + projected


class RoutedBottleneck(nn.Module):
    """M experts at one site, of which a step uses one: the mixture that is merged after training.

    `share_down` or `share_up` gives all experts one common projection (the paper's default: up
    shared, down not). Down and up are drawn independently where both are mixtures. `route` is the
    pair (down expert, up expert) that `forward` uses; `draw` sets it, for the whole mini-batch,
    uniformly at random.
    """

    def __init__(
        self,
        hidden_size: int,
        bottleneck: int,
        experts: int,
        *,
        share_down: bool = False,
        share_up: bool = True,
    ) -> None:
        super().__init__()
        if experts < 1:
            raise ValueError(f"experts is {experts}; expected 1 or more")
        self.downs = nn.ModuleList(
            _projection(hidden_size, bottleneck) for _ in range(1 if share_down else experts)
        )
        self.ups = nn.ModuleList(
            _projection(bottleneck, hidden_size) for _ in range(1 if share_up else experts)
        )
        self.route: tuple[int, int] = (0, 0)

    def draw(self, rng: random.Random) -> None:
        """Choose the experts of the next forward passes (paper, section 3.1)."""
        self.route = (rng.randrange(len(self.downs)), rng.randrange(len(self.ups)))

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.route
        projected: Tensor = self.ups[up](nn.functional.gelu(self.downs[down](x)))
        return x + projected


def draw_routes(sites: Iterable[nn.Module], rng: random.Random) -> None:
    """A fresh, independent draw in every layer; sites that are no mixtures are left alone."""
    for site in sites:
        if isinstance(site, RoutedBottleneck):
            site.draw(rng)


def _projection(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.normal_(0.0, INITIAL_STD)
        linear.bias.zero_()
    return linear
