"""The plots of docs/results.md; each returns its caption, or nothing where there is nothing to draw."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import cells, plot
from benchmarks.cells import Cells


def _methods_plot(group: Cells, tasks: list[str], methods: list[str], file: Path) -> str:
    """Methods by their average, with error bars."""
    common = cells.common(group, tasks, methods)
    averages = {m: cells.averages([cell for cell in group if cell["method"] == m], common) for m in methods}
    averages = {method: values for method, values in averages.items() if values}
    if not averages:
        return ""
    figure, axes = plot.figure()
    order = sorted(averages, key=lambda method: statistics.mean(averages[method]))
    means, spreads = ([f(averages[m]) for m in order] for f in (statistics.mean, _deviation))
    axes.errorbar(means, order, xerr=spreads, fmt="o", capsize=4)
    axes.set_xlabel(f"average of {', '.join(common)}")
    plot.save(figure, file)
    return f"Methods by their average, mean and standard deviation over {_count(averages.values())}."


def _routing_plot(group: Cells, tasks: list[str], _methods: list[str], file: Path) -> str:
    """The paper's violins: random routing's scores, with the merged adapter as a dot."""
    routed = [cell for cell in group if cell["method"] == "adamix" and "routing" in cell]
    shown = [task for task in tasks if any(cell["task"] == task for cell in routed)]
    if not shown:
        return ""
    figure, axes = plot.figure()
    draws = [[d for cell in routed if cell["task"] == task for d in cell["routing"]["random"]] for task in shown]
    merged = [cells.scores(routed, task) for task in shown]
    axes.violinplot(draws, positions=range(len(shown)), showextrema=False)
    for i, values in enumerate(merged):
        axes.scatter([i] * len(values), values, color="tab:red", zorder=3, label="merged" if i == 0 else None)
    axes.set_xticks(range(len(shown)), shown)
    axes.set_ylabel("score")
    axes.legend()
    plot.save(figure, file)
    per = len(routed[0]["routing"]["random"])
    return f"Random routing ({per} draws a run, the violins) against the merged adapter (a dot a run); {_count(merged)}."


def _experts_plot(group: Cells, tasks: list[str], _methods: list[str], file: Path) -> str:
    """Score against the number of experts."""
    names = {1: "adamix-1-experts", 2: "adamix-2-experts", 4: "adamix", 8: "adamix-8-experts"}
    own = {n: [cell for cell in group if cell["method"] == name] for n, name in names.items()}
    own = {n: found for n, found in own.items() if found}
    common = [task for task in tasks if all(any(c["task"] == task for c in found) for found in own.values())]
    if len(own) < 2 or not common:
        return ""
    figure, axes = plot.figure()
    values = {n: cells.averages(found, common) for n, found in own.items()}
    axes.errorbar(
        list(values), [*map(statistics.mean, values.values())], yerr=[*map(_deviation, values.values())], fmt="o-", capsize=4
    )
    axes.set_xlabel("experts")
    axes.set_ylabel(f"average of {', '.join(common)}")
    plot.save(figure, file)
    return f"AdaMix by its number of experts, mean and standard deviation over {_count(values.values())}."


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _count(groups: Iterable[list[float]]) -> str:
    counts = sorted({len(values) for values in groups})
    return f"{' to '.join(map(str, {counts[0]: 0, counts[-1]: 0}))} seed{'s' if counts[-1] > 1 else ''}"


PLOTS: dict[str, Callable[[Cells, list[str], list[str], Path], str]] = {
    "methods": _methods_plot,
    "routing": _routing_plot,
    "experts": _experts_plot,
}
