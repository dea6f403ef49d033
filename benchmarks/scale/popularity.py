"""How often tasks are asked for, and how many of these requests a cache that drops the least
recently used would answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def zipf(tasks: int, exponent: float) -> Floats:
    """The probability of each task, the most popular first, `[tasks]`."""
    weights = np.arange(1, tasks + 1, dtype=float) ** -exponent
    return weights / weights.sum()


def che(rates: Floats, capacity: int) -> float:
    """The hit rate of an LRU cache of `capacity` places under independent requests of these rates.

    Che, Tung and Wang (2002), "Hierarchical Web caching systems: modeling, design and experimental
    results", in the form of Fricker, Robert and Roberts (2012), "A versatile and accurate
    approximation for LRU cache performance", arXiv:1202.3974, equations 1 and 2: the time t after
    which an item that was not asked for is dropped solves sum(1 - exp(-rate t)) = capacity, and
    an item is hit with the probability 1 - exp(-rate t).
    """
    asked = rates[rates > 0]
    if capacity >= len(asked):
        return 1.0
    low, high = 0.0, capacity / asked.sum()
    while -np.expm1(-asked * high).sum() < capacity:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        if -np.expm1(-asked * middle).sum() < capacity:
            low = middle
        else:
            high = middle
    return float((asked * -np.expm1(-asked * high)).sum() / asked.sum())


def recent(rates: Floats, chance: np.random.Generator, most: int) -> NDArray[np.int64]:
    """The items that were asked for last, the latest at the end, at most so many: what an LRU cache
    of `most` places holds after a long time of independent requests of these rates. The time since
    an item's last request is exponentially distributed."""
    items = np.flatnonzero(rates)
    ages = chance.exponential(size=len(items)) / rates[items]
    if most < len(items):
        latest = np.argpartition(ages, most)[:most]
        items, ages = items[latest], ages[latest]
    return items[np.argsort(-ages)]
