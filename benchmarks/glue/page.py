"""docs/results.md and its plot, made from the cells alone: the same cells give the same page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.glue import cells as stored
from benchmarks.glue import defaults, plots
from benchmarks.glue.cells import Cells
from benchmarks.glue.contrasts import Contrast, contrast
from benchmarks.glue.protocol import ABLATIONS, COMPARED, RATES, SEARCH_TASKS, STAGES, TASKS
from training.tasks import TASKS as KNOWN

SIZES: tuple[int | None, ...] = (1000, 300, 100, 30, None)
ALPHA = 0.05
INTRO = """# Results

Made by `python -m benchmarks.glue render` from the cells in `benchmarks/results/glue/cells.jsonl`. A
cell is one training run. `python -m benchmarks.glue run` continues with the first cell that is
missing.
"""
STAGE_NAMES = """A stage is named by its training rows and its methods. `search` tries learning rates. `first` is
`adamix`, `adapter-rdrop` and `adapter`; `second` is `lora`, `full` and `head`; `paper` is
`adamix-paper`; `ablations` are all variants of `adamix`. `long-texts` is subj and mrpc.
"""
HERE = Path(__file__).parent


def write(out: Path, cells: Cells, by_epoch: Cells, without_options: Cells) -> None:
    """The page, section by section; ValueError if there is nothing to show."""
    if not cells:
        raise ValueError("there are no cells yet; expected some: python -m benchmarks.glue run")
    out.parent.mkdir(parents=True, exist_ok=True)
    parts = [INTRO, _state(cells)]
    for size in SIZES:
        own = stored.of_rows(cells, size)
        if any(cell["method"] in COMPARED for cell in own):
            parts += [f"## {_named(size)}\n", _table(own), _contrasts(own)]
    parts += [
        _plot(cells, out),
        _ablations(stored.of_rows(cells, 1000)),
        _best_epoch(by_epoch),
        defaults.section(without_options),
        (HERE / "protocol.md").read_text(encoding="utf-8"),
        _search(cells),
        _every_cell(cells),
        (HERE / "earlier.md").read_text(encoding="utf-8"),
    ]
    out.write_text("\n".join(part for part in parts if part), encoding="utf-8")


def _state(cells: Cells) -> str:
    """How much of the protocol has been run, and on what."""
    there = {tuple(cell[name] for name in stored.KEY[:-1]) for cell in cells}
    lines, lacking = (
        ["| stage of the protocol | finished cells | planned cells |", "|---|---|---|"],
        False,
    )
    for stage in STAGES:
        keys = [tuple(cell.key[name] for name in stored.KEY[:-1]) for cell in stage.cells()]
        count = sum(key in there for key in keys)
        lines.append(f"| {stage.name} | {count} | {len(keys)} |")
        lacking = lacking or count < len(keys)
    if all(cell["search"] is not None for cell in cells):
        lines = ["**No cell has a dev score yet**: learning rates are searched first.", "", *lines]
    elif lacking:
        lines = [
            "**The protocol is not finished.** This page is about these cells:",
            "",
            *lines,
        ]
    hardware = ", ".join(sorted({cell["hardware"] for cell in cells}))
    precision = ", ".join(sorted({cell["recipe"]["precision"] for cell in cells}))
    backbone = ", ".join(sorted({cell["backbone"] for cell in cells}))
    said = f"Backbone: {backbone}. Hardware: {hardware}. Precision: {precision}."
    return "\n".join([said, "", *lines, "", STAGE_NAMES])


def _named(size: int | None) -> str:
    return "All training rows" if size is None else f"{size:,} labelled rows"


def _table(own: Cells) -> str:
    """Methods × tasks; a mean, the standard deviation over the seeds and their number."""
    tasks = [task for task in TASKS if any(cell["task"] == task for cell in own)]
    head = ["method", "parameters", *(f"{task} {KNOWN[task].metric}" for task in tasks)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method in COMPARED:
        parameters = {cell["parameters"] for cell in own if cell["method"] == method}
        if parameters:
            scores = [_spread(stored.scores(own, method, task)) for task in tasks]
            row = [method, " ".join(f"{count:,}" for count in sorted(parameters)), *scores]
            lines.append("| " + " | ".join(row) + " |")
    note = (
        "Scores × 100: mean ± standard deviation over the seeds (number of seeds). Parameters are"
        " those that inference needs in addition to the backbone, without the head.\n"
    )
    return "\n".join([*lines, "", note])


def _contrasts(own: Cells) -> str:
    """AdaMix less each of the others, in the protocol's fixed sequence."""
    head = [
        "difference, points", "mean", "95 % over seeds", "95 % over seeds and dev rows", "p",
        "interquartile mean", "P(improvement)", "by task", "seeds",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    others = [*COMPARED[1:-1], "adamix-paper"]
    found = [contrast(own, "adamix", other, list(TASKS)) for other in others]
    lines += [_contrast_row(one) for one in found if one is not None]
    if len(lines) == 2:
        return ""
    return "\n".join([*lines, "", _verdict(found[:-1]), ""])


def _contrast_row(one: Contrast) -> str:
    by_task = ", ".join(f"{task} {gain:+.1f}" for task, gain in one.by_task.items())
    return "| " + " | ".join(
        [
            f"{one.method} − {one.other}",
            f"{one.mean:+.2f}",
            _interval(one.over_seeds) if len(one.seeds) > 1 else "–",
            _interval(one.over_rows),
            f"{one.p:.3f}" if len(one.seeds) > 1 else "–",
            f"{one.middle:+.2f}",
            f"{one.improved:.2f}",
            by_task,
            str(len(one.seeds)),
        ]
    ) + " |"  # fmt: skip


def _verdict(sequence: Iterable[Contrast | None]) -> str:
    """The fixed sequence, in words: it ends at the first comparison that is not significant."""
    said = []
    for one in sequence:
        if one is None:
            said.append("The next comparison of the sequence has not been run.")
            break
        tasks, seeds = ", ".join(one.tasks), len(one.seeds)
        if one.p >= ALPHA:
            least = "" if seeds > 5 else f" (with {seeds} seeds p cannot be below {2 / 2**seeds:g})"
            said.append(
                f"Against `{one.other}` the difference is not significant: p = {one.p:.3f} over"
                f" {seeds} seed{'s' if seeds > 1 else ''} of {tasks}{least}."
                " The sequence ends here. The rows below it in the table are only descriptive."
            )
            break
        word = "better" if one.mean > 0 else "worse"
        said.append(
            f"AdaMix is {word} than `{one.other}`: {one.mean:+.2f} points, p = {one.p:.3f} over"
            f" {seeds} seeds of {tasks}."
        )
    return " ".join(said)


def _plot(cells: Cells, out: Path) -> str:
    sizes = [
        size
        for size in sorted(size for size in SIZES if size is not None)
        if stored.of_rows(cells, size)
    ]
    common = [
        task
        for task in TASKS
        if all(stored.averages(stored.of_rows(cells, size), "adamix", [task]) for size in sizes)
    ]
    file = out.parent / f"{out.stem}-by-rows.svg"
    caption = plots.by_rows(cells, sizes, common, file) if common else ""
    return (
        f"## Score against labelled rows\n\n![{caption}]({file.name})\n\n{caption}\n"
        if caption
        else ""
    )


def _ablations(own: Cells) -> str:
    """AdaMix with one thing changed, each less AdaMix itself on the same tasks and seeds."""
    variants = [*ABLATIONS, "adapter-rdrop"]
    tasks = [
        task for task in TASKS if any(c["task"] == task and c["method"] in ABLATIONS for c in own)
    ]
    lines = ["| variant | minus `adamix`, points | " + " | ".join(tasks) + " | seeds |"]
    lines.append("|---" * (len(tasks) + 3) + "|")
    for variant in variants:
        one = contrast(own, variant, "adamix", tasks)
        if one is not None:
            name = f"{variant} (one expert)" if variant == "adapter-rdrop" else variant
            gains = [f"{one.by_task[t]:+.1f}" if t in one.by_task else "–" for t in tasks]
            row = [name, f"{one.mean:+.2f}", *gains, str(len(one.seeds))]
            lines.append("| " + " | ".join(row) + " |")
    if len(lines) == 2:
        return ""
    note = (
        "A value below 0 means that the change lowers the score. Variants of `adamix` use its"
        " learning rate; `adapter-rdrop` uses its own.\n"
    )
    return "\n".join(["## Ablations, 1,000 labelled rows\n", *lines, "", note])


def _best_epoch(by_epoch: Cells) -> str:
    """What the protocol's last epoch is below the best one on dev."""
    if not by_epoch:
        return ""
    head = "| task | method | dev score × 100 after each epoch | best minus last, points |"
    lines = ["## What choosing the epoch on dev would be worth\n", head, "|---|---|---|---|"]
    for cell in by_epoch:
        scores = cell["by_epoch"]
        shown = " ".join(f"{100 * score:.1f}" for score in scores)
        gain = f"{100 * (max(scores) - scores[-1]):.1f}"
        lines.append(f"| {cell['task']} | {cell['method']} | {shown} | {gain} |")
    note = (
        "1,000 rows, seed 0. The paper's code reports the best epoch on dev; this page does not.\n"
    )
    return "\n".join([*lines, "", note])


def _search(cells: Cells) -> str:
    lines = ["### Learning rates found\n"]
    for backbone in sorted({cell["backbone"] for cell in cells}):
        for method, grid in RATES.items():
            found = stored.rates(cells, backbone, method)
            means = {
                rate: statistics.mean(scores.values())
                for rate, scores in found.items()
                if set(SEARCH_TASKS) <= set(scores)
            }
            if set(grid) <= set(means):
                best = max(means, key=means.__getitem__)
                shown = ", ".join(f"{rate:g}: {100 * mean:.1f}" for rate, mean in means.items())
                lines.append(f"- `{method}`: **{best:g}** of {shown}")
    return "\n".join([*lines, ""]) if len(lines) > 1 else ""


def _every_cell(cells: Cells) -> str:
    """Each judged cell's score, seed by seed, losses included."""
    lines = [
        "## Every cell\n",
        "| rows | task | method | scores × 100, seed by seed |",
        "|---|---|---|---|",
    ]
    for size in SIZES:
        own = stored.of_rows(cells, size)
        for task in TASKS:
            for method in (*COMPARED, *ABLATIONS):
                scores = stored.scores(own, method, task)
                if scores:
                    shown = " ".join(f"{100 * score:.1f}" for score in scores)
                    rows = "all" if size is None else f"{size:,}"
                    lines.append(f"| {rows} | {task} | {method} | {shown} |")
    return "\n".join([*lines, ""]) if len(lines) > 3 else ""


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread} ({len(values)})"


def _interval(of: tuple[float, float]) -> str:
    return f"{of[0]:+.2f} to {of[1]:+.2f}"
