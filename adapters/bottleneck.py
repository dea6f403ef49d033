"""The maths of an adapter: one bottleneck, and a mixture of them (AdaMix, arXiv 2205.12410,
section 3)."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

INITIAL_STD = 0.02

# Which of M projections a mini-batch uses: one for all rows (its index), one for each row (an index
# a row), or the average of all.
Choice = int | tuple[int, ...] | Literal["mean"]
Route = tuple[Choice, Choice]  # (down, up)


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
    """M experts at one site: the mixture that is merged after training.

    `share_down` or `share_up` gives all experts one common projection (the paper's default: up
    shared, down not). `route` says which down and which up projections `forward` uses; whichever it
    is, a forward pass costs the matrix products of a single adapter.
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
        self.route: Route = (0, 0)

    def draw(self, rng: random.Random) -> None:
        """Choose one down and one up projection for the next mini-batches, independently and
        uniformly at random (paper, section 3.1)."""
        self.route = (rng.randrange(len(self.downs)), rng.randrange(len(self.ups)))

    def forward(self, x: Tensor) -> Tensor:
        """`x` is `[B, T, d]`."""
        down, up = self.route
        return x + _project(self.ups, up, nn.functional.gelu(_project(self.downs, down, x)))


def draw_routes(sites: Iterable[nn.Module], rng: random.Random) -> None:
    """A fresh, independent draw in every layer; sites that are no mixtures are left alone."""
    for site in sites:
        if isinstance(site, RoutedBottleneck):
            site.draw(rng)


def _project(experts: nn.ModuleList, choice: Choice, x: Tensor) -> Tensor:
    """`x` `[B, T, in]` through what is chosen → `[B, T, out]`."""
    if len(experts) == 1 or isinstance(choice, int):
        alone: Tensor = experts[choice if isinstance(choice, int) else 0](x)
        return alone
    weights = torch.stack([expert.weight for expert in experts])  # type: ignore[misc]  # linears'; [M, out, in]
    biases = torch.stack([expert.bias for expert in experts])  # type: ignore[misc]  # [M, out]
    if choice == "mean":
        return nn.functional.linear(x, weights.mean(dim=0), biases.mean(dim=0))
    assert len(choice) == len(x), f"a route for {len(choice)} rows meets a mini-batch of {len(x)}"
    of = torch.tensor(choice, device=x.device)
    return torch.baddbmm(biases[of].unsqueeze(1), x, weights[of].transpose(1, 2))


def _projection(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.normal_(0.0, INITIAL_STD)
        linear.bias.zero_()
    return linear
