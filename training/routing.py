"""Which experts the rows of a step go through, in its first and in its second pass.

`batch` is the paper's routing (arXiv 2205.12410, section 3.1) and its released code's
(`MixtureSoup` in expert_soup.py: one `torch.randint` a site and forward pass; for LoRA
`AdamixMergedLinear` in NLG/loralib/layers.py: one for query and value together). With one draw for
a whole mini-batch, an expert of four learns in a quarter of the steps. `rows` spreads the rows of a
mini-batch evenly over a layer's experts, so that each expert gets a gradient in every step at the
same cost; its parent is THOR (Zuo et al. 2022, arXiv 2110.04260), which draws experts at random for
each input. A second pass through the experts' `mean` trains what will be merged and served, as the
averaged weights of Zhang et al.'s experts weights averaging and SMEAR (Muqeeth et al. 2023) are.

All draws of a step are made at its start, for the whole mini-batch and from Python's generator: so
several processes draw the same, and a resumed run draws again what it had drawn.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from torch import nn

from adapters.mixture import Choice, Mixture, Route, draw, layers_of
from training.config import Recipe

Pass = list[Route]  # a route for each layer with a mixture, lowest layer first


class Router:
    """Draws and sets the routes of the mixtures among `sites`, one for each layer; of single
    adapters there are none to draw."""

    def __init__(self, sites: Iterable[nn.Module], recipe: Recipe) -> None:
        self._layers = layers_of(sites)
        self._recipe = recipe

    def draw(self, rng: random.Random, rows: int) -> list[Pass]:
        """The routes of each pass of a step over a mini-batch of `rows`."""
        passes = [[self._first(layer[0], rng, rows) for layer in self._layers]]
        if self._recipe.passes == 2:
            routes = zip(self._layers, passes[0], strict=True)
            passes.append([self._second(layer[0], first, rng) for layer, first in routes])
        return passes

    def use(self, routes: Pass, places: Sequence[int]) -> None:
        """Send the rows at `places` of the mini-batch through these routes from here on."""
        for layer, (down, up) in zip(self._layers, routes, strict=True):
            route = (_at(down, places), _at(up, places))
            for mixture in layer:
                mixture.route = route

    def _first(self, mixture: Mixture, rng: random.Random, rows: int) -> Route:
        if self._recipe.routing == "rows":
            downs, ups = mixture.counts
            return (_spread(downs, rows, rng), _spread(ups, rows, rng))
        return draw(mixture.counts, rng)

    def _second(self, mixture: Mixture, first: Route, rng: random.Random) -> Route:
        if self._recipe.second_pass == "mean":
            return ("mean", "mean")
        if self._recipe.routing == "rows":
            downs, ups = mixture.counts
            return (_moved(first[0], downs, rng), _moved(first[1], ups, rng))
        return draw(mixture.counts, rng)


def _spread(experts: int, rows: int, rng: random.Random) -> Choice:
    """An expert for each row at random, so that no expert has two rows more than another."""
    order = rng.sample(range(experts), experts)
    chosen = [order[row % experts] for row in range(rows)]
    rng.shuffle(chosen)
    return tuple(chosen)


def _moved(first: Choice, experts: int, rng: random.Random) -> Choice:
    """Another expert for each row, if there is more than one, as evenly spread as before."""
    assert isinstance(first, tuple)
    by = rng.randrange(1, experts) if experts > 1 else 0
    return tuple((expert + by) % experts for expert in first)


def _at(choice: Choice, places: Sequence[int]) -> Choice:
    return tuple(choice[place] for place in places) if isinstance(choice, tuple) else choice
