"""The maths of an adapter: one bottleneck, and a mixture of them (AdaMix, arXiv 2205.12410,
section 3)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from adapters.mixture import Choice, Mixture, project

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


class RoutedBottleneck(Mixture):
    """M bottlenecks at one site: the mixture that is merged after training."""

    def __init__(
        self,
        hidden_size: int,
        bottleneck: int,
        experts: int,
        *,
        share_down: bool = False,
        share_up: bool = True,
    ) -> None:
        super().__init__(experts, share_down=share_down, share_up=share_up)
        downs, ups = self.counts
        self.downs = nn.ModuleList(_projection(hidden_size, bottleneck) for _ in range(downs))
        self.ups = nn.ModuleList(_projection(bottleneck, hidden_size) for _ in range(ups))

    def forward(self, x: Tensor) -> Tensor:
        """`x` is `[B, T, d]`."""
        down, up = self.route
        return x + _project(self.ups, up, nn.functional.gelu(_project(self.downs, down, x)))


def _project(experts: nn.ModuleList, choice: Choice, x: Tensor) -> Tensor:
    linears = cast(list[nn.Linear], [*experts])
    return project([one.weight for one in linears], [one.bias for one in linears], choice, x)


def _projection(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.normal_(0.0, INITIAL_STD)
        linear.bias.zero_()
    return linear
