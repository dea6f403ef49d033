"""The plots of docs/results.md; each returns its caption, or nothing where there is nothing to
draw."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import plot
from benchmarks.glue import cells
from benchmarks.glue.cells import Cells


def _methods_plot(group: Cells, tasks: list[str], methods: list[str], file: Path) -> str:
    """Methods by their average, with error bars."""
    common = cells.common(group, tasks, methods)
    averages = {
        m: cells.averages([cell for cell in group if cell["method"] == m], common) for m in methods
    }
    averages = {method: values for method, values in averages.items() if values}
    if not averages:
        return ""
    figure, axes = plot.figure()
    order = sorted(averages, key=lambda method: statistics.mean(averages[method]))
    means, spreads = ([100 * f(averages[m]) for m in order] for f in (statistics.mean, _deviation))
    axes.errorbar(means, order, xerr=spreads, fmt="o", capsize=4)
    axes.set_xlabel(_named(common))
    plot.save(figure, file)
    return (
        f"Methods by their average, mean and standard deviation over {_count(averages.values())}."
    )


def _routing_plot(group: Cells, tasks: list[str], _methods: list[str], file: Path) -> str:
    """The paper's violins: random routing's scores, each less that of the adapter that the same run
    was merged into."""
    routed = [cell for cell in group if cell["method"] == "adamix" and "routing" in cell]
    shown = [task for task in tasks if any(cell["task"] == task for cell in routed)]
    if not shown:
        return ""
    figure, axes = plot.figure()
    own = [[cell for cell in routed if cell["task"] == task] for task in shown]
    gains = [
        [100 * (draw - cell["score"]) for cell in of for draw in cell["routing"]["random"]]
        for of in own
    ]
    axes.violinplot(gains, positions=range(len(shown)), showmedians=True, showextrema=False)
    axes.axhline(0, color="tab:red", label="merged")
    axes.set_xticks(range(len(shown)), shown)
    axes.set_ylabel("points above the merged adapter")
    axes.legend()
    plot.save(figure, file)
    per = len(routed[0]["routing"]["random"])
    seeds = _count([cells.scores(of, task) for of, task in zip(own, shown, strict=True)])
    return (
        f"Random routing ({per} draws a run, the violins) against the merged adapter of the same"
        f" run; {seeds}."
    )


def _experts_plot(group: Cells, tasks: list[str], _methods: list[str], file: Path) -> str:
    """Score against the number of experts, of each number on the same tasks and seeds."""
    names = {1: "adamix-1-experts", 2: "adamix-2-experts", 4: "adamix", 8: "adamix-8-experts"}
    own = {n: [cell for cell in group if cell["method"] == name] for n, name in names.items()}
    own = {n: found for n, found in own.items() if found}
    if len(own) < 2:
        return ""
    there = set.intersection(
        *({(cell["task"], cell["seed"]) for cell in found} for found in own.values())
    )
    common = [task for task in tasks if any(of == task for of, _ in there)]
    values = {
        n: cells.averages([c for c in found if (c["task"], c["seed"]) in there], common)
        for n, found in own.items()
    }
    if not all(values.values()):
        return ""
    figure, axes = plot.figure()
    means, spreads = (
        [100 * f(of) for of in values.values()] for f in (statistics.mean, _deviation)
    )
    axes.errorbar(list(values), means, yerr=spreads, fmt="o-", capsize=4)
    axes.set_xticks(list(values))
    axes.set_xlabel("experts")
    axes.set_ylabel(_named(common))
    plot.save(figure, file)
    return (
        "AdaMix by its number of experts, mean and standard deviation over"
        f" {_count(values.values())}."
    )


def _named(tasks: list[str]) -> str:
    return f"{tasks[0]} × 100" if len(tasks) == 1 else f"average of {', '.join(tasks)}, × 100"


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _count(groups: Iterable[list[float]]) -> str:
    counts = sorted({len(values) for values in groups})
    return (
        f"{' to '.join(map(str, {counts[0]: 0, counts[-1]: 0}))}"
        f" seed{'s' if counts[-1] > 1 else ''}"
    )


PLOTS: dict[str, Callable[[Cells, list[str], list[str], Path], str]] = {
    "methods": _methods_plot,
    "routing": _routing_plot,
    "experts": _experts_plot,
}
