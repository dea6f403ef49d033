"""docs/results.md and its plots, made from the cells alone: the same cells give the same page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import cells as stored
from benchmarks import plot
from training.tasks import lacking

Cells = list[dict[str, Any]]
MAIN = ("full", "adamix", "adapter", "lora", "houlsby", "bitfit", "head")
INTRO = """# Results

Made by `python -m benchmarks.glue render` from the cells in `benchmarks/results/`, each of them one training run;
`python -m benchmarks.glue run` fills them in, and its top says what is the same for all methods. Scores are on the dev set,
of the model after its last epoch (nothing is chosen by them): accuracy, but Matthews correlation for cola and Pearson
correlation for stsb, all times 100. After a mean stands the standard deviation over the seeds (n - 1), and in brackets the
number of seeds.
"""


def write(
    out: Path,
    cells: Cells,
    tasks: list[str],
    methods: list[str],
    grid: dict[str, tuple[float, ...]],
) -> None:
    """The page, section by section; ValueError if there is nothing to show."""
    final = [cell for cell in cells if cell["search"] is None]
    if not final:
        raise ValueError("there are no cells yet; expected some: python -m benchmarks.glue run")
    groups = sorted({(cell["backbone"], cell["cap"]) for cell in final}, key=str)
    parts = [INTRO]
    for backbone, cap in groups:
        group = [cell for cell in final if (cell["backbone"], cell["cap"]) == (backbone, cap)]
        name = f"{out.stem}-{Path(backbone).name}{'' if cap is None else f'-{cap}'}"
        parts += _group(group, backbone, cap, tasks, methods, out, name)
        parts.append(_search(cells, backbone, cap, grid))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(parts), encoding="utf-8")


def _group(
    group: Cells,
    backbone: str,
    cap: int | None,
    tasks: list[str],
    methods: list[str],
    out: Path,
    name: str,
) -> list[str]:
    """All that was measured on one backbone under one cap of rows."""
    shown = [task for task in tasks if any(cell["task"] == task for cell in group)]
    ran = [method for method in methods if any(cell["method"] == method for cell in group)]
    capped = "" if cap is None else f", at most {cap} rows of each file: a look, no result"
    seeds = ", ".join(map(str, sorted({cell["seed"] for cell in group})))
    parts = [
        f"## Backbone {backbone}{capped}\n",
        f"Seeds {seeds}; hardware: {'; '.join(sorted({cell['hardware'] for cell in group}))}.\n",
        _table(group, shown, ran),
        *(
            f"† {task}: {_lacking(group, task)}, so its scores are no measure of the published task."
            for task in shown
            if _lacking(group, task)
        ),
        "",
        _unmerged(group, shown),
    ]
    plots = {"methods": _methods_plot, "routing": _routing_plot, "experts": _experts_plot}
    for kind, draw in plots.items():
        file = out.parent / f"{name}-{kind}.svg"
        caption = draw(group, shown, ran, file)
        if caption:
            parts.append(f"![{caption}]({file.name})\n\n{caption}\n")
    return parts


def _table(group: Cells, tasks: list[str], methods: list[str]) -> str:
    """Methods × tasks. The average is over tasks that every method here has, so that all are of the same."""
    common = _common(group, tasks, methods)
    head = ["method", "parameters", "s a run", *(_heading(group, task) for task in tasks), f"average of {len(common)}"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method in methods:
        own = [cell for cell in group if cell["method"] == method]
        seconds = statistics.mean(cell["seconds"] for cell in own)
        row = [method, f"{own[0]['parameters']:,}", f"{seconds:,.0f}", *(_spread(_scores(own, task)) for task in tasks)]
        lines.append("| " + " | ".join([*row, _spread(_averages(own, common))]) + " |")
    said = ", ".join(common) or "no task, for none has cells of every method"
    return "\n".join(
        [
            *lines,
            "",
            f"The average is over {said}. Parameters are those inference needs beyond the backbone's, heads left out.",
            "",
        ]
    )


def _heading(group: Cells, task: str) -> str:
    of = next(cell for cell in group if cell["task"] == task)
    return f"{task}{'†' if _lacking(group, task) else ''} {of['metric']} (train {of['rows']:,}, dev {of['dev_rows']:,})"


def _lacking(group: Cells, task: str) -> str:
    of = next(cell for cell in group if cell["task"] == task)
    return lacking(task, of["rows"], of["dev_rows"])


def _unmerged(group: Cells, tasks: list[str]) -> str:
    """The same mixtures merged, under random and fixed routing and as an ensemble."""
    routed = [cell for cell in group if cell["method"] == "adamix" and "routing" in cell]
    if not routed:
        return ""
    lines = ["| adamix, judged as | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    kinds = {
        "merged": lambda cell: cell["score"],
        "random routing, mean of the draws": lambda cell: statistics.mean(cell["routing"]["random"]),
        "fixed routing": lambda cell: cell["routing"]["fixed"],
        "ensemble of the experts' logits": lambda cell: cell["routing"]["ensemble"],
    }
    for kind, value in kinds.items():
        row = [_spread([value(cell) for cell in routed if cell["task"] == task]) for task in tasks]
        lines.append(f"| {kind} | " + " | ".join(row) + " |")
    return "\n".join([*lines, ""])


def _search(cells: Cells, backbone: str, cap: int | None, grid: dict[str, tuple[float, ...]]) -> str:
    lines = [
        "### Learning rates\n",
        "Chosen by the mean score on a fifth of the training rows held out, seed 0; dev was not looked at.\n",
    ]
    for method, tried in grid.items():
        found = stored.rates(cells, backbone, cap, method)
        if found:
            means = {rate: statistics.mean(scores.values()) for rate, scores in found.items()}
            over = ", ".join(sorted(next(iter(found.values()))))
            best = max(means, key=means.__getitem__)
            shown = ", ".join(f"{rate:g}: {mean:.4f}" for rate, mean in means.items())
            lines.append(f"- {method}: **{best:g}** of {shown} (on {over})")
        else:
            lines.append(f"- {method}: not searched; the middle of {', '.join(f'{rate:g}' for rate in tried)}")
    return "\n".join([*lines, ""])


def _methods_plot(group: Cells, tasks: list[str], methods: list[str], file: Path) -> str:
    """Methods by their average, with error bars."""
    main = [method for method in methods if method in MAIN]
    common = _common(group, tasks, main)
    averages = {m: _averages([cell for cell in group if cell["method"] == m], common) for m in main}
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
    merged = [_scores(routed, task) for task in shown]
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
    values = {n: _averages(found, common) for n, found in own.items()}
    axes.errorbar(
        list(values), [*map(statistics.mean, values.values())], yerr=[*map(_deviation, values.values())], fmt="o-", capsize=4
    )
    axes.set_xlabel("experts")
    axes.set_ylabel(f"average of {', '.join(common)}")
    plot.save(figure, file)
    return f"AdaMix by its number of experts, mean and standard deviation over {_count(values.values())}."


def _common(group: Cells, tasks: list[str], methods: list[str]) -> list[str]:
    there = {(cell["method"], cell["task"]) for cell in group}
    return [task for task in tasks if all((method, task) in there for method in methods)]


def _averages(own: Cells, tasks: list[str]) -> list[float]:
    """One average a seed, of the seeds that have every task."""
    by_seed: dict[int, dict[str, float]] = {}
    for cell in own:
        by_seed.setdefault(cell["seed"], {})[cell["task"]] = cell["score"]
    return [statistics.mean(s[t] for t in tasks) for s in by_seed.values() if tasks and set(tasks) <= set(s)]


def _scores(own: Cells, task: str) -> list[float]:
    return [cell["score"] for cell in own if cell["task"] == task]


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread} ({len(values)})"


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _count(groups: Iterable[list[float]]) -> str:
    counts = sorted({len(values) for values in groups})
    return f"{' to '.join(map(str, {counts[0]: 0, counts[-1]: 0}))} seed{'s' if counts[-1] > 1 else ''}"
