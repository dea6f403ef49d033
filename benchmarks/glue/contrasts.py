"""The statistics of the comparison: paired differences of two methods on the same rows and seeds.

By scipy. rliable (Agarwal et al. 2021, arXiv 2108.13264), whose interquartile mean and probability
of improvement these are, had its last release in August 2024 and brings arch and seaborn with it;
each of its two statistics is one call here.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, permutation_test, trim_mean

from benchmarks.glue.cells import Cells

Floats = NDArray[np.float64]
Interval = tuple[float, float]
RESAMPLES = 5000


@dataclass(frozen=True)
class Contrast:
    """One method less another, in points (scores × 100), over `tasks` and `seeds` that both have.

    `by_task` are means over the seeds. `p` is the exact two-sided sign-flip test's over the seeds'
    means. `over_seeds` and `over_rows` are 95 % percentile-bootstrap intervals of the mean, over
    seeds alone, and over seeds and dev rows. `middle` is the interquartile mean of all differences,
    task by task and seed by seed. `improved` is the probability that a run of the one beats a run
    of the other, ties counting half, as the mean over the tasks.
    """

    method: str
    other: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    mean: float
    by_task: dict[str, float]
    p: float
    over_seeds: Interval
    over_rows: Interval
    middle: float
    improved: float


def contrast(cells: Cells, method: str, other: str, tasks: list[str]) -> Contrast | None:
    """Over the tasks and seeds that both methods have, as many as make a whole table; None if there
    is not one cell of both. `cells` are those of one number of rows."""
    found = {(c["method"], c["task"], c["seed"]): c for c in cells}
    common, shared = _whole({task: _shared(found, method, other, task) for task in tasks})
    if not shared:
        return None

    def rows(task: str, of: str) -> Floats:  # [seeds, dev rows]
        return np.array([found[of, task, seed]["pseudo_values"] for seed in shared])

    def scores(task: str, of: str) -> Floats:  # [seeds]
        return 100 * np.array([found[of, task, seed]["score"] for seed in shared])

    gains = np.stack([scores(task, method) - scores(task, other) for task in common])  # [T, S]
    by_row = [100 * (rows(task, method) - rows(task, other)) for task in common]
    return Contrast(
        method=method,
        other=other,
        tasks=common,
        seeds=shared,
        mean=float(gains.mean()),
        by_task={task: float(of.mean()) for task, of in zip(common, gains, strict=True)},
        p=sign_flip(gains.mean(axis=0)),
        over_seeds=over_seeds(gains.mean(axis=0)),
        over_rows=_over_rows(by_row),
        middle=float(trim_mean(gains.ravel(), 0.25)),
        improved=statistics.mean(
            _improved(scores(task, method), scores(task, other)) for task in common
        ),
    )


def _whole(seeds: dict[str, set[int]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The largest table of tasks × seeds without a hole; of two as large, the one of more seeds."""
    tables = []
    for least in sorted({len(of) for of in seeds.values() if of}):
        tasks = tuple(task for task, of in seeds.items() if len(of) >= least)
        tables.append((tasks, tuple(sorted(set.intersection(*(seeds[task] for task in tasks))))))
    return max(tables, key=lambda t: (len(t[0]) * len(t[1]), len(t[1])), default=((), ()))


def sign_flip(gains: Floats) -> float:
    """p, two-sided and exact: of all 2ⁿ ways to give the seeds' mean differences a sign, the share
    whose mean is as far from 0."""
    if len(gains) < 2:
        return 1.0
    found = permutation_test(
        (gains,), _mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    return float(found.pvalue)


def over_seeds(values: Floats) -> Interval:
    """95 % of the means of values drawn again, with replacement. `values` is `[S]`."""
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    return _middle_of(values[drawn].mean(axis=1))


def _over_rows(by_row: list[Floats]) -> Interval:
    """The same with dev rows drawn again too. `by_row` has a task's differences, `[S, rows]`."""
    rng = np.random.default_rng(0)
    seeds = len(by_row[0])
    weights = rng.multinomial(seeds, [1 / seeds] * seeds, size=RESAMPLES) / seeds  # [R, S]
    total = np.zeros(RESAMPLES)
    for differences in by_row:
        count = differences.shape[1]
        for first in range(0, RESAMPLES, 500):  # in parts, for the memory's sake
            part = slice(first, first + 500)
            rows = (
                rng.multinomial(count, np.full(count, 1 / count), size=500) / count
            )  # [500, rows]
            total[part] += ((weights[part] @ differences) * rows).sum(axis=1)
    return _middle_of(total / len(by_row))


def _middle_of(means: Floats) -> Interval:
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _improved(one: Floats, other: Floats) -> float:
    return float(mannwhitneyu(one, other).statistic / (len(one) * len(other)))


def _mean(values: Floats, axis: int = -1) -> Floats:
    return np.asarray(np.mean(values, axis=axis))


def _shared(
    found: dict[tuple[str, str, int], dict[str, object]], method: str, other: str, task: str
) -> set[int]:
    """The seeds of which a task has both methods."""
    of_each = [{s for m, t, s in found if (m, t) == (name, task)} for name in (method, other)]
    return of_each[0] & of_each[1]
