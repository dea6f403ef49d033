"""AdaMix and what it is compared with, cell by cell, and the page that shows it.

    python -m benchmarks.glue run                        # the whole protocol, stage by stage
    python -m benchmarks.glue run --stages 1000-first    # one block of it
    python -m benchmarks.glue run --device cuda --workers 8
    python -m benchmarks.glue best-epoch                 # what choosing the epoch on dev is worth
    python -m benchmarks.glue again --count 3 --draw 7    # cells drawn by chance: the same digits?
    python -m benchmarks.glue render                     # the cells → docs/results.md, its plot

A cell is one training run, and one line of JSON in `cells.jsonl`, written when it is whole: a run
that was killed goes on with the first cell that lacks. Data are JSON lines,
`GLUE_DIR/TASK/train.jsonl` and `dev.jsonl`, or else the hub's rows. What is run with which settings
stands in protocol.py.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.errors import AdaMixError
from benchmarks.glue import cells, defaults, page
from benchmarks.glue.best_epoch import by_epoch
from benchmarks.glue.data import sets_of
from benchmarks.glue.protocol import METHODS, RATES, SEARCH_TASKS, STAGES, Cell, Stage
from benchmarks.glue.pseudovalues import pseudo_values
from training.hardware import device_of
from training.one_run import measure
from training.processes import current
from training.record import record
from training.tasks import TASKS

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)

RESULTS = Path("benchmarks/results/glue")
Results = Annotated[Path, typer.Option(help="Folder of `cells.jsonl`.")]
GlueDir = Annotated[
    Path | None,
    typer.Option(envvar="GLUE_DIR", help="Where TASK/train.jsonl and TASK/dev.jsonl lie."),
]
Named = Annotated[str, typer.Option(help="`embedded`, a folder, or a hub id.")]
Device = Annotated[
    str | None, typer.Option(help="`cpu` or `cuda`; by default the GPU if there is one.")
]


@dataclass(frozen=True)
class Place:
    """Where cells are run, and on what."""

    glue_dir: Path | None
    backbone: str
    device: str | None


@app.command()
def run(
    stages: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help=f"By default all: {', '.join(s.name for s in STAGES)}."),
    ] = None,
    glue_dir: GlueDir = None,
    results: Results = RESULTS,
    backbone: Named = backbones.EMBEDDED,
    device: Device = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that run cells side by side.")] = 1,
) -> None:
    """Run the cells that lack, in the protocol's order."""
    place = Place(glue_dir, backbone, device)
    try:
        for stage in chosen(stages):
            todo = list(lacking(stage, results / "cells.jsonl", place))
            for line in run_all(todo, place, workers):
                cells.add(results / "cells.jsonl", line)
                typer.echo(f"{stage.name}  {told(line)}")
    except (AdaMixError, ValueError) as error:
        fail(str(error))


@app.command()
def best_epoch(
    glue_dir: GlueDir = None,
    results: Results = RESULTS,
    backbone: Named = backbones.EMBEDDED,
    device: Device = None,
) -> None:
    """Run some cells of 1,000 rows and one seed again, reading dev after every epoch."""
    place, there = Place(glue_dir, backbone, device), cells.read(results / "cells.jsonl")
    path = results / "best_epoch.jsonl"
    try:
        loaded = load(place)
        for task, method in itertools.product(SEARCH_TASKS, ("adamix", "adapter-rdrop", "adapter")):
            cell = Cell(task, method, 1000, 0)
            key = {**cell.key, "backbone": backbone}
            if cells.done(cells.read(path), key, {}):
                continue
            rate = cells.best_rate(there, backbone, method, RATES[method], SEARCH_TASKS)
            sets = sets_of(cell, glue_dir)
            found = by_epoch(loaded, *sets, cell.recipe(rate), TASKS[task].metric)
            cells.add(path, {**key, "recipe": asdict(cell.recipe(rate)), "by_epoch": found})
            typer.echo(f"{task} {method}: last {found[-1]:.4f}, best {max(found):.4f}")
    except (AdaMixError, ValueError) as error:
        fail(str(error))


@app.command("defaults")
def defaults_(
    glue_dir: GlueDir = None,
    results: Results = RESULTS,
    backbone: Named = backbones.EMBEDDED,
    device: Device = None,
) -> None:
    """Run a small grid of recipes at few to many rows of ten tasks; does the default come near?"""
    path = results / "defaults.jsonl"
    try:
        loaded = load(Place(glue_dir, backbone, device))
        for cell in defaults.run(defaults.read(path), loaded, glue_dir):
            cells.add(path, cell)
            typer.echo(
                f"{cell['drawn']:5} rows of {cell['task']:5} {cell['named']:32} held out"
                f" {cell['held_out']:.4f}, dev {cell['dev']:.4f}, {cell['seconds']:.0f} s"
            )
    except (AdaMixError, ValueError) as error:
        fail(str(error))


@app.command()
def again(
    count: Annotated[int, typer.Option(min=1, help="Cells to run again.")] = 3,
    draw: Annotated[int, typer.Option(help="The number that they are drawn by.")] = 0,
    glue_dir: GlueDir = None,
    results: Results = RESULTS,
    backbone: Named = backbones.EMBEDDED,
    device: Device = None,
) -> None:
    """Run cells again that are drawn by chance, and compare all digits; exit code 1 if some differ.

    On other hardware or with another number of threads, sums round otherwise: expect differences.
    """
    place = Place(glue_dir, backbone, device)
    there = [c for c in cells.read(results / "cells.jsonl") if c["backbone"] == backbone]
    try:
        loaded = load(place)
        drawn = random.Random(draw).sample(there, min(count, len(there)))
        same = [_told_again(was, place, loaded) for was in drawn]
    except (AdaMixError, ValueError) as error:
        fail(str(error))
    raise typer.Exit(0 if all(same) else 1)


def _told_again(was: dict[str, Any], place: Place, backbone: Backbone) -> bool:
    cell = Cell(was["task"], was["method"], was["drawn"], was["seed"], was["search"])
    now = run_cell(cell, was["recipe"]["learning_rate"], place, backbone)
    same = all(now[name] == was[name] for name in ("metrics", "pseudo_values", "rows"))
    typer.echo(f"{told(was)}; again {now['score']:.6f}: {'the same' if same else 'another'}")
    return bool(same)


@app.command()
def render(
    results: Results = RESULTS,
    out: Annotated[Path, typer.Option(help="The page; its plot goes beside it.")] = Path(
        "docs/results.md"
    ),
) -> None:
    """Write the page and its plot from the cells that there are."""
    try:
        page.write(
            out,
            cells.read(results / "cells.jsonl"),
            cells.read(results / "best_epoch.jsonl"),
            defaults.read(results / "defaults.jsonl"),
        )
    except ValueError as error:
        fail(str(error))
    typer.echo(f"written to {out}")


def lacking(stage: Stage, path: Path, place: Place) -> Iterator[tuple[Cell, float]]:
    """A stage's cells that are not there yet, each with its learning rate. ValueError if one is
    there that was run otherwise: one table has one recipe a cell."""
    there = cells.read(path)
    for cell in stage.cells():
        method = METHODS[cell.method]["method"]
        rate = cell.rate or cells.best_rate(
            there, place.backbone, method, RATES[method], SEARCH_TASKS
        )
        if not cells.done(
            there, {**cell.key, "backbone": place.backbone}, asdict(cell.recipe(rate))
        ):
            yield cell, rate


def run_all(todo: list[tuple[Cell, float]], place: Place, workers: int) -> Iterator[dict[str, Any]]:
    """The cells' lines, in order; each of several workers has a process and a backbone of its
    own."""
    if workers == 1:
        backbone = load(place) if todo else None
        yield from (run_cell(cell, rate, place, backbone) for cell, rate in todo)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        yield from pool.map(_in_worker, *zip(*((*pair, place) for pair in todo), strict=True))


def run_cell(cell: Cell, rate: float, place: Place, backbone: Backbone) -> dict[str, Any]:
    """Train and judge one cell. Raises ValueError if it is stopped: nothing half is written."""
    recipe, (train, judge) = cell.recipe(rate), sets_of(cell, place.glue_dir)
    measured = measure(backbone, train, judge, recipe)
    if measured.done.step != measured.done.steps:
        raise ValueError(
            f"the cell {cell.task}/{cell.method}/{cell.seed} was stopped; expected it whole, so"
            " nothing is written"
        )
    metric = TASKS[cell.task].metric
    line = record(cell.task, metric, recipe, measured, len(judge.texts), backbone.name)
    pseudo = pseudo_values(metric, judge, measured.logits) if cell.rate is None else None
    return {**line, **cell.key, "pseudo_values": pseudo}


_backbone: dict[Place, Backbone] = {}  # a worker's own


def _begin() -> None:
    torch.set_num_threads(1)


def _in_worker(cell: Cell, rate: float, place: Place) -> dict[str, Any]:
    if place not in _backbone:
        _backbone[place] = load(place)
    return run_cell(cell, rate, place, _backbone[place])


def load(place: Place) -> Backbone:
    backbone = backbones.load(place.backbone)
    backbone.encoder.to(device_of(place.device, current()))  # type: ignore[arg-type]  # as in training
    return backbone


def chosen(names: str | None) -> list[Stage]:
    known = {stage.name: stage for stage in STAGES}
    if names is None:
        return list(STAGES)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ValueError(f"stage {name!r} is unknown; expected one of {', '.join(known)}")
    return [known[name] for name in wanted]


def told(cell: dict[str, Any]) -> str:
    rows = "all" if cell["drawn"] is None else cell["drawn"]
    rate = f"  rate {cell['search']:g}, held-out rows" if cell["search"] is not None else ""
    return (
        f"seed {cell['seed']}  {cell['task']:5} {cell['method']:22} {rows} rows "
        f"{cell['metric']} {cell['score']:.4f}, {cell['seconds']:.0f} s{rate}"
    )


def fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
