"""The table: methods × tasks × seeds, cell by cell, and the page that shows it.

    python -m benchmarks.glue search                      # learning rates, on a split of train;
    never on dev
    python -m benchmarks.glue run --precision bfloat16    # the committed cells' precision
    python -m benchmarks.glue run --tasks rte,mrpc --methods full,adapter --seeds 0,1,2
    python -m benchmarks.glue run --tasks sst2,subj --shots 30 --seeds 0,1,2,3,4
    python -m benchmarks.glue render                      # benchmarks/results/*.jsonl →
    docs/results.md and its plots

A cell is one line of JSON in the results, written when it is whole: a run that was killed goes on
with the first cell that lacks. Data are JSON lines, `GLUE_DIR/TASK/train.jsonl` and `dev.jsonl`, or
else the hub's rows; all methods and seeds see the same.

Settings are the same for all methods (`COMMON`, and `BUDGETS` of glue_data.py) but for the learning
rate, for which each has the same budget: the three of `RATES`, tried with seed 0 on `SEARCH_ROWS`
training rows and judged on a fifth of them all, held out. Variants of a method take its rate. With
`--shots` so do the runs on a few examples, `FEW_EPOCHS` each: there is nothing to choose by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.errors import AdaMixError
from adapters.text import encode
from benchmarks.glue import cells, page
from benchmarks.glue.data import BUDGETS, held_out, read
from training.config import Evaluation, Precision, Recipe
from training.data import Dataset
from training.evaluate import predict_unmerged, scores
from training.hardware import device_of
from training.processes import current
from training.record import record
from training.tasks import FOLDER, TASKS
from training.train import Measured, measure

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)

COMMON = Recipe(
    bottleneck=16, experts=4, consistency=0.03, batch_size=32, dense_head=True, max_length=128
)
DRAWS = 20  # random routings that a mixture is judged under
SEARCH_ROWS = 1600
FEW_EPOCHS = 100  # of a few examples, which fit into one mini-batch: as many steps

# The rows with so many times the epochs: each of four experts has a step in four.
LONG, LONGER = 4, {f"{name}-long": {"method": name} for name in ("full", "adamix", "adapter")}

# A row of the table is a recipe: a method, or one with one thing changed.
METHODS: dict[str, dict[str, Any]] = {
    **{
        name: {"method": name}
        for name in ("full", "adamix", "adapter", "lora", "houlsby", "bitfit", "head")
    },
    "adamix-no-consistency": {"method": "adamix", "consistency": 0.0},
    "adamix-no-sharing": {"method": "adamix", "share_up": False},
    **{f"adamix-from-layer-{n}": {"method": "adamix", "first_layer": n} for n in (2, 3, 4, 5)},
    **{f"adamix-{n}-experts": {"method": "adamix", "experts": n} for n in (1, 2, 8)},
    **LONGER,
}
RATES: dict[str, tuple[float, ...]] = {
    "full": (3e-5, 1e-4, 3e-4),
    "adamix": (1e-3, 3e-3, 1e-2),
    "adapter": (1e-3, 3e-3, 1e-2),
    "lora": (1e-3, 3e-3, 1e-2),
    "houlsby": (1e-3, 3e-3, 1e-2),
    "bitfit": (1e-3, 3e-3, 1e-2),
    "head": (1e-3, 3e-3, 1e-2),
}

Names = Annotated[str, typer.Option(metavar="A,B,…")]
Folder = Annotated[
    Path, typer.Option(envvar="GLUE_DIR", help="Where TASK/train.jsonl and TASK/dev.jsonl lie.")
]
Results = Annotated[Path, typer.Option(help="Folder of the cells' *.jsonl.")]
Rows = Annotated[
    int | None, typer.Option(help="Training and dev rows at most, for a quick look.", min=10)
]
RESULTS = Path("benchmarks/results")


@app.command()
def run(
    tasks: Names = "rte,mrpc,stsb,cola,sst2,subj",
    methods: Names = "full,adapter,adamix,lora",
    seeds: Names = "0,1,2",
    glue_dir: Folder = FOLDER,
    results: Results = RESULTS,
    rows: Rows = None,
    shots: Annotated[
        int | None, typer.Option(help="So many training examples, drawn by the seed.", min=1)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of each task's own.", min=1)] = None,
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a hub id.")
    ] = backbones.EMBEDDED,
    precision: Annotated[
        Precision, typer.Option(help="`float32`, `bfloat16`, or `auto`: bfloat16 on a GPU.")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(help="`cpu` or `cuda`; by default the GPU if there is one.")
    ] = None,
) -> None:
    """Fill in the cells that lack, seed by seed, so that each seed's table is whole before the next
    begins."""
    try:
        loaded = load(backbone, device)
        for seed in whole_numbers(seeds):
            for task in chosen(tasks, BUDGETS):
                for method in chosen(methods, METHODS):
                    rate = rate_of(results, backbone, rows, METHODS[method]["method"])
                    recipe = recipe_of(task, method, rate, seed, epochs, precision, shots)
                    sets = read(glue_dir, task, rows)
                    line = fill(
                        results / "glue.jsonl", results, loaded, task, method, recipe, sets, rows
                    )
                    if line is not None:
                        typer.echo(f"seed {seed}  {told(line)}")
    except (AdaMixError, ValueError) as error:
        fail(str(error))


@app.command()
def search(
    tasks: Names = "cola,stsb",
    methods: Names = "full,adapter,adamix,lora,houlsby,bitfit,head",
    glue_dir: Folder = FOLDER,
    results: Results = RESULTS,
    rows: Rows = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of each task's own.", min=1)] = None,
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a hub id.")
    ] = backbones.EMBEDDED,
    precision: Annotated[
        Precision, typer.Option(help="`float32`, `bfloat16`, or `auto`: bfloat16 on a GPU.")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(help="`cpu` or `cuda`; by default the GPU if there is one.")
    ] = None,
) -> None:
    """Try each method's learning rates on rows held out from train; `run` takes the best by its
    mean over the tasks."""
    try:
        loaded = load(backbone, device)
        for task in chosen(tasks, BUDGETS):
            sets = held_out(read(glue_dir, task, rows)[0], SEARCH_ROWS)
            for method in chosen(methods, RATES):
                for rate in RATES[method]:
                    recipe = recipe_of(task, method, rate, 0, epochs, precision)
                    line = fill(
                        results / "glue_search.jsonl",
                        results,
                        loaded,
                        task,
                        method,
                        recipe,
                        sets,
                        rows,
                        rate,
                    )
                    if line is not None:
                        typer.echo(f"rate {rate:g}  {told(line)}, on held-out rows")
    except (AdaMixError, ValueError) as error:
        fail(str(error))


@app.command()
def render(
    results: Results = RESULTS,
    out: Annotated[Path, typer.Option(help="The page; its plots go beside it.")] = Path(
        "docs/results.md"
    ),
) -> None:
    """Write the page and its plots from the cells that there are."""
    try:
        page.write(out, cells.read(results), list(BUDGETS), list(METHODS), RATES)
    except ValueError as error:
        fail(str(error))
    typer.echo(f"written to {out}")


def rate_of(results: Path, backbone: str, rows: int | None, method: str) -> float:
    return cells.best_rate(results, backbone, rows, method, RATES[method])


def fill(
    path: Path,
    results: Path,
    backbone: Backbone,
    task: str,
    method: str,
    recipe: Recipe,
    sets: tuple[Dataset, Dataset],
    cap: int | None,
    rate: float | None = None,
) -> dict[str, Any] | None:
    """Run one cell and write it down; None if it is there already. `rate` is that of a search."""
    key = {
        "task": task,
        "method": method,
        "seed": recipe.seed,
        "cap": cap,
        "shots": recipe.shots,
        "search": rate,
    }
    key["backbone"] = backbone.name
    if cells.done(results, key, dataclasses.asdict(recipe)):
        return None
    measured = measure(backbone, *sets, recipe)
    if measured.done.step != measured.done.steps:
        raise ValueError(
            f"the cell {task}/{method}/{recipe.seed} was stopped; expected it whole, so nothing is"
            " written"
        )
    line = record(task, TASKS[task].metric, recipe, measured, len(sets[1].texts), backbone.name)
    if method == "adamix" and rate is None and recipe.shots is None:
        line["routing"] = routings(backbone, measured, sets[1], recipe, TASKS[task].metric)
    return cells.add(path, {**line, **key})


def routings(
    backbone: Backbone, measured: Measured, dev: Dataset, recipe: Recipe, metric: str
) -> dict[str, Any]:
    """What the same mixture scores unmerged: under `DRAWS` random routings, by expert 0, as an
    ensemble."""
    rows = encode(backbone.tokenizer, dev.texts, recipe.max_length)

    def score(evaluation: Evaluation, seed: int = 0) -> float:
        return scores(
            dev, predict_unmerged(measured.model, rows, evaluation, seed), recipe.positive
        )[metric]

    return {
        "random": [score("random", seed) for seed in range(DRAWS)],
        "fixed": score("fixed"),
        "ensemble": score("ensemble"),
    }


def recipe_of(
    task: str,
    method: str,
    rate: float,
    seed: int,
    epochs: int | None,
    precision: Precision,
    shots: int | None = None,
) -> Recipe:
    own = BUDGETS[task].epochs if shots is None else FEW_EPOCHS
    return dataclasses.replace(
        COMMON,
        **METHODS[method],
        learning_rate=rate,
        epochs=(epochs or own) * (LONG if method in LONGER else 1),
        positive=TASKS[task].positive,
        seed=seed,
        precision=precision,
        shots=shots,
    )


def load(name: str, device: str | None) -> Backbone:
    backbone = backbones.load(name)
    backbone.encoder.to(device_of(device, current()))  # type: ignore[arg-type]  # as in training
    return backbone


def told(cell: dict[str, Any]) -> str:
    return (
        f"{cell['task']:5} {cell['method']:22} {cell['metric']} {cell['score']:.4f},"
        f" {cell['seconds']:.0f} s"
    )


def chosen(names: str, known: Iterable[str]) -> list[str]:
    """The names of a comma list; ValueError for one that is not known."""
    for name in split(names):
        if name not in known:
            raise ValueError(f"{name!r} is unknown; expected one of {', '.join(known)}")
    return split(names)


def whole_numbers(names: str) -> list[int]:
    for name in split(names):
        if not name.isdecimal():
            raise ValueError(f"seeds has {name!r}; expected whole numbers with commas between")
    return [int(name) for name in split(names)]


def split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
