"""Learning curves as lines of a plot: what a report draws of a run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 160
MOST_POINTS = 160  # of more steps, each point is the mean of several
DOTS = 40  # so few points are also drawn as dots


@dataclass(frozen=True)
class Curve:
    """Values by step. `path` and `dots` are places in a box of WIDTH by HEIGHT."""

    name: str
    path: str
    dots: list[tuple[float, float]]
    first: int
    last: int
    low: float
    high: float
    averaged: int  # steps of a point


def curve(name: str, points: Sequence[tuple[int, float]]) -> Curve | None:
    """`points` are (step, value), in the order of the steps; None of fewer than two."""
    averaged = -(-len(points) // MOST_POINTS)
    parts = [points[i : i + averaged] for i in range(0, len(points), averaged)] if points else []
    if len(parts) < 2:
        return None
    steps = [part[-1][0] for part in parts]
    values = [statistics.fmean(value for _, value in part) for part in parts]
    low, high = min(values), max(values)
    width, height = steps[-1] - steps[0] or 1, high - low or 1.0
    places = [
        (
            round((step - steps[0]) / width * WIDTH, 1),
            round((high - value) / height * HEIGHT, 1),
        )
        for step, value in zip(steps, values, strict=True)
    ]
    return Curve(
        name,
        " ".join(f"{x},{y}" for x, y in places),
        places if len(places) <= DOTS else [],
        steps[0],
        steps[-1],
        low,
        high,
        averaged,
    )
