"""docs/results.md and its plots, made from the cells alone: the same cells give the same page."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.glue import cells as stored
from benchmarks.glue import plots
from benchmarks.glue.cells import Cells
from training.tasks import TASKS, lacking

MAIN = ("full", "adamix", "adapter", "lora", "houlsby", "bitfit", "head")
INTRO = """# Results

Made by `python -m benchmarks.glue render` from the cells in `benchmarks/results/`, each of them one training run;
`python -m benchmarks.glue run --precision PRECISION` fills them in, and its top says what is the same for all methods.
Scores are on the dev set, of the model after its last epoch (nothing is chosen by them): accuracy, but Matthews correlation
for cola and Pearson correlation for stsb, all times 100. After a mean stands the standard deviation over the seeds (n - 1),
and in brackets the number of seeds. Seconds are wall time, the median, and other work may have run beside. subj and mpqa
were published in one piece: their dev sets are 2,000 rows of it.
"""
SEARCHED = """### Learning rates

Chosen by the mean score on a fifth of the training rows held out, seed 0; dev was not looked at. AdaMix alone had a choice
more, before: its consistency loss weighs 0.03 here, and not 1.
"""
FEW = """Each seed draws its own examples, as many of each class as there can be, the same for all methods. The number of
epochs is fixed, and the learning rates are those of the whole sets: with so few examples there is nothing to choose by.
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
    groups: dict[tuple[str, int | None, int | None], Cells] = {}
    for cell in final:
        groups.setdefault((cell["backbone"], cell["cap"], cell["shots"]), []).append(cell)
    parts = [INTRO]
    for backbone, cap, shots in sorted(groups, key=lambda key: (key[0], key[1] or 0, key[2] or 0)):
        few, few_name = (
            ("", "") if shots is None else (f", {shots} training examples", f"-{shots}-shots")
        )
        capped = "" if cap is None else f", at most {cap} rows of each file: a look, no result"
        name = f"{out.stem}-{Path(backbone).name}{'' if cap is None else f'-{cap}'}{few_name}"
        parts.append(f"## Backbone {backbone}{few}{capped}\n")
        if shots is not None:
            parts.append(FEW)
        parts += _group(groups[backbone, cap, shots], tasks, methods, out, name)
        if shots is None:
            parts.append(_search(cells, backbone, cap, grid))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(parts), encoding="utf-8")


def _group(group: Cells, tasks: list[str], methods: list[str], out: Path, name: str) -> list[str]:
    """All that was measured on one backbone, under one cap of rows, with as many examples."""
    shown = [task for task in tasks if any(cell["task"] == task for cell in group)]
    ran = [method for method in methods if any(cell["method"] == method for cell in group)]
    main = [method for method in ran if method in MAIN]
    seeds = ", ".join(map(str, sorted({cell["seed"] for cell in group})))
    hardware, precision = (
        "; ".join(sorted(kinds)) for kinds in ({c["hardware"] for c in group}, _precisions(group))
    )
    parts = [
        f"Seeds {seeds}; hardware: {hardware}; precision: {precision}.\n",
        _table(group, shown, main),
        *(
            f"† {task}: {_lacking(group, task)}, so its scores are no measure of the published"
            " task."
            for task in shown
            if _lacking(group, task)
        ),
        "",
        _paired(group, main),
        _variants(group, shown, ran),
        _unmerged(group, shown),
    ]
    for kind, draw in plots.PLOTS.items():
        file = out.parent / f"{name}-{kind}.svg"
        caption = draw(group, shown, main, file)
        if caption:
            parts.append(f"![{caption}]({file.name})\n\n{caption}\n")
    return parts


def _precisions(group: Cells) -> set[str]:
    return {cell["recipe"]["precision"] for cell in group}


def _table(group: Cells, tasks: list[str], methods: list[str]) -> str:
    """Methods × tasks, and averages of the same tasks."""
    common = stored.common(group, tasks, methods)
    head = [
        "method",
        "parameters",
        "s a run",
        *(_heading(group, task) for task in tasks),
        f"average of {len(common)}",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method in methods:
        own = [cell for cell in group if cell["method"] == method]
        seconds = statistics.median(cell["seconds"] for cell in own)
        row = [
            method,
            f"{own[0]['parameters']:,}",
            f"{seconds:,.0f}",
            *(_spread(stored.scores(own, task)) for task in tasks),
        ]
        lines.append("| " + " | ".join([*row, _spread(stored.averages(own, common))]) + " |")
    said = ", ".join(common) or "no task, for none has cells of the methods it is made for"
    return "\n".join(
        [
            *lines,
            "",
            (
                f"The average is over {said}. Parameters are those inference needs beyond the"
                " backbone's, heads left out."
            ),
            "",
        ]
    )


def _paired(group: Cells, methods: list[str]) -> str:
    """AdaMix's cells less each other method's, the same task and seed."""
    scores = {(cell["method"], cell["task"], cell["seed"]): cell["score"] for cell in group}
    lines = []
    for method in methods:
        pairs = [
            (score, scores.get((method, task, seed)))
            for (of, task, seed), score in scores.items()
            if of == "adamix"
        ]
        gains = [score - other for score, other in pairs if other is not None]
        if method != "adamix" and gains:
            better = sum(gain > 0 for gain in gains)
            lines.append(
                f"- {method}: {100 * statistics.mean(gains):+.1f} points, better in {better} of"
                f" {len(gains)} cells"
            )
    return (
        "\n".join(["AdaMix against each, cell by cell (the same task and seed):\n", *lines, ""])
        if lines
        else ""
    )


def _variants(group: Cells, tasks: list[str], methods: list[str]) -> str:
    """Rows with one thing changed, each under the method it was changed from, on the tasks and
    seeds that it has."""
    lines: list[str] = []
    for method in [method for method in methods if method not in MAIN]:
        own = [cell for cell in group if cell["method"] == method]
        cells = {(cell["task"], cell["seed"]) for cell in own}
        of = own[0]["recipe"]["method"]
        unchanged = [
            cell for cell in group if cell["method"] == of and (cell["task"], cell["seed"]) in cells
        ]
        lines += [_row(of, unchanged, tasks), _row(method, own, tasks)]
    if not lines:
        return ""
    said = (
        "One thing changed, below the same method unchanged, on the same tasks and seeds (`-long`:"
        " four times the epochs).\n"
    )
    return "\n".join(
        [
            said,
            "| variant | " + " | ".join(tasks) + " |",
            "|---" * (len(tasks) + 1) + "|",
            *lines,
            "",
        ]
    )


def _row(name: str, own: Cells, tasks: list[str]) -> str:
    return "| " + " | ".join([name, *(_spread(stored.scores(own, task)) for task in tasks)]) + " |"


def _heading(group: Cells, task: str) -> str:
    of = next(cell for cell in group if cell["task"] == task)
    return (
        f"{task}{'†' if _lacking(group, task) else ''} {of['metric']} (train {of['rows']:,}, dev"
        f" {of['dev_rows']:,})"
    )


def _lacking(group: Cells, task: str) -> str:
    of = next(cell for cell in group if cell["task"] == task)
    return lacking(
        task, of["rows"] if of["shots"] is None else TASKS[task].official[0], of["dev_rows"]
    )


def _unmerged(group: Cells, tasks: list[str]) -> str:
    """The same mixtures merged, under random and fixed routing and as an ensemble."""
    routed = [cell for cell in group if cell["method"] == "adamix" and "routing" in cell]
    if not routed:
        return ""
    lines = ["| adamix, judged as | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    kinds = {
        "merged": lambda cell: cell["score"],
        "random routing, mean of the draws": lambda cell: statistics.mean(
            cell["routing"]["random"]
        ),
        "fixed routing": lambda cell: cell["routing"]["fixed"],
        "ensemble of the experts' logits": lambda cell: cell["routing"]["ensemble"],
    }
    for kind, value in kinds.items():
        row = [_spread([value(cell) for cell in routed if cell["task"] == task]) for task in tasks]
        lines.append(f"| {kind} | " + " | ".join(row) + " |")
    return "\n".join([*lines, ""])


def _search(
    cells: Cells, backbone: str, cap: int | None, grid: dict[str, tuple[float, ...]]
) -> str:
    lines = [SEARCHED]
    ran = {
        cell["recipe"]["method"]
        for cell in cells
        if (cell["backbone"], cell["cap"]) == (backbone, cap)
    }
    for method, tried in grid.items():
        if method not in ran:
            continue
        found = stored.rates(cells, backbone, cap, method)
        if found:
            means = {rate: statistics.mean(scores.values()) for rate, scores in found.items()}
            over = ", ".join(sorted(next(iter(found.values()))))
            best = max(means, key=means.__getitem__)
            shown = ", ".join(f"{rate:g}: {mean:.4f}" for rate, mean in means.items())
            lines.append(f"- {method}: **{best:g}** of {shown} (on {over})")
        else:
            lines.append(
                f"- {method}: not searched; the middle of"
                f" {', '.join(f'{rate:g}' for rate in tried)}"
            )
    return "\n".join([*lines, ""])


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread} ({len(values)})"
