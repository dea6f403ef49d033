"""The plot of docs/results.md: a method's average score against its labelled rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import plot
from benchmarks.glue.cells import Cells, averages, of_rows
from benchmarks.glue.contrasts import over_seeds
from benchmarks.glue.protocol import COMPARED


def by_rows(cells: Cells, sizes: list[int], tasks: list[str], file: Path) -> str:
    """A line a method, with its 95 % interval over the seeds; its caption, or nothing where fewer
    than two sizes have a method's cells on all of `tasks`."""
    figure, axes = plot.figure()
    drawn = False
    for number, method in enumerate(COMPARED):
        values = {size: averages(of_rows(cells, size), method, tasks) for size in sizes}
        points = {size: 100 * np.array(found) for size, found in values.items() if found}
        if len(points) < 2:
            continue
        drawn = True
        at = [size * (1 + 0.03 * (number - 2)) for size in points]  # apart, so that all are seen
        means = [found.mean() for found in points.values()]
        ends = [over_seeds(found) for found in points.values()]
        error = [[mean - low for mean, (low, _) in zip(means, ends, strict=True)]]
        error.append([high - mean for mean, (_, high) in zip(means, ends, strict=True)])
        axes.errorbar(at, means, yerr=error, fmt="o-", capsize=3, label=method)
    if drawn:
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("labelled rows")
        axes.set_ylabel(f"average of {', '.join(tasks)}, × 100")
        axes.legend()
    plot.save(figure, file)
    if not drawn:
        file.unlink()
        return ""
    return "Average score against labelled rows; bars are 95 % bootstrap intervals over the seeds."
