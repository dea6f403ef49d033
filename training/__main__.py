"""`python -m training`: train one task from data files or by its name, score it on a dev set, and
write one adapter file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from adapters.errors import AdaMixError
from adapters.spec import ProblemType
from adapters.startup import without_collection
from training import config, data, defaults, tasks
from training.calibrate_command import calibrate
from training.command_line import (
    DATA,
    EXIT_CODES,
    TRAIN,
    LabelColumn,
    LabelSeparator,
    PairColumn,
    Predictions,
    Report,
    TextColumn,
    TrainsByDefault,
    check_outputs,
    explaining_what_lacks,
)
from training.compare_command import compare
from training.errors import TrainingError
from training.evaluate_command import evaluate
from training.options import as_in_the_paper, with_recipe

app = typer.Typer(
    cls=TrainsByDefault,
    add_completion=__name__ != "__main__",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
_data = functools.partial(typer.Option, rich_help_panel=DATA)
_results = functools.partial(typer.Option, rich_help_panel=config.RESULTS)
_adapter = functools.partial(typer.Option, rich_help_panel=config.ADAPTER)
_steps = functools.partial(typer.Option, rich_help_panel=config.STEPS)
_machine = functools.partial(typer.Option, rich_help_panel=config.MACHINE)

app.command("evaluate", epilog=EXIT_CODES)(evaluate)
app.command("calibrate", epilog=EXIT_CODES)(calibrate)
app.command("compare", epilog=EXIT_CODES)(compare)


@app.command(TRAIN, epilog=EXIT_CODES)
@with_recipe
def main(
    context: typer.Context,
    choices: dict[str, Any],
    task: Annotated[str, _data(metavar="NAME", help="What clients will ask for (`?task=…`).")],
    train: Annotated[
        Path | None,
        _data(
            metavar="FILE",
            help=(
                ".jsonl, .csv (quoted), .tsv (unquoted) or .parquet; needed but for"
                f" {', '.join(tasks.TASKS)}."
            ),
        ),
    ] = None,
    dev: Annotated[
        Path | None,
        _data(metavar="FILE", help="What the result is evaluated on; it chooses nothing."),
    ] = None,
    glue_dir: Annotated[
        Path | None,
        _data(
            metavar="FOLDER",
            envvar="GLUE_DIR",
            help=(
                "Where TASK/train.jsonl and dev.jsonl of a task known by its name lie; without it,"
                " its rows come from the hub."
            ),
        ),
    ] = None,
    problem_type: Annotated[
        ProblemType | None,
        _data(
            metavar="NAME",
            help=(
                "`single_label_classification`, `multi_label_classification` or `regression`; by"
                " default from the data."
            ),
        ),
    ] = None,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    label_separator: LabelSeparator = "|",
    out: Annotated[
        Path | None,
        _results(
            metavar="FILE",
            help="Where to write the adapter (.safetensors).",
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        _results(
            metavar="FILE",
            help=(
                "JSON lines with `text`, perhaps `text_pair`: the first 8 go into the adapter's"
                " file, with logits; else neutral sentences do."
            ),
        ),
    ] = None,
    report: Report = None,
    predictions: Predictions = None,
    run_dir: Annotated[
        Path | None,
        _results(
            metavar="FOLDER",
            help=(
                "For all of a run: recipe, environment, metrics, TensorBoard events, checkpoint,"
                " adapter."
            ),
        ),
    ] = None,
    resume: Annotated[
        bool, _results("--resume", help="Go on in `--run-dir`, as if never stopped.")
    ] = False,
    checkpoint_every: Annotated[
        int, _results(help="Steps between checkpoints in `--run-dir`.")
    ] = 500,
    scores: Annotated[
        Path | None, _results(help="Append each run's scores to this file, a JSON line a run.")
    ] = None,
    as_json: Annotated[
        bool,
        _results(
            "--json", help="Print each finished run as a JSON line, and tell the rest on stderr."
        ),
    ] = False,
    metric: Annotated[
        str | None,
        _results(help="The `score` in --scores: `accuracy`, `f1`, `matthews`, `pearson` …"),
    ] = None,
    paper: Annotated[
        bool,
        _adapter(
            "--paper",
            help="The paper's recipe: four experts, one draw for a mini-batch, two random passes.",
        ),
    ] = False,
    backbone: Annotated[
        str, _adapter(help="`embedded`, a folder, or a Hugging Face id.")
    ] = "embedded",
    seeds: Annotated[
        str | None,
        _steps(
            metavar="N,N,…",
            help="One run a seed, such as `0,1,2,3,4`: mean and standard deviation.",
        ),
    ] = None,
    search: Annotated[
        Literal["small"] | None,
        _steps(
            metavar="NAME",
            help=(
                "`small`: try a few learning rates, then twice the epochs, on rows held out of the"
                " training rows, before the training."
            ),
        ),
    ] = None,
    device: Annotated[
        str | None, _machine(help="`cpu` or `cuda`; by default the GPU if there is one.")
    ] = None,
) -> None:
    """Train an AdaMix adapter: a mixture by random routing in a frozen backbone, merged into one
    small file.

    Your own data:

        python -m training --task tickets --train train.csv --dev dev.csv \\
            --out tickets.safetensors

    A task known by its name; a long run that can go on after a kill:

        python -m training --task sst2 --run-dir runs/sst2
        python -m training --task sst2 --run-dir runs/sst2 --resume

    Another method, three seeds, a JSON line each:

        python -m training --task mrpc --method lora --seeds 0,1,2 --json

    Four GPUs, each mini-batch split over them:

        accelerate launch --multi_gpu --num_processes 4 -m training …

    An adapter file on labelled rows:

        python -m training evaluate tickets.safetensors --dev dev.csv

    Runs side by side:

        python -m training compare runs/*
    """
    # here, since torch and transformers take seconds to import, which help and completion do not
    # wait for
    with explaining_what_lacks(), without_collection():
        from adapters import backbone as backbones
        from training import label_words, warm_start
        from training.folder import Folders
        from training.hardware import device_of
        from training.processes import join, speaks_for_machine
        from training.runs import Runs, read_seeds
        from training.search import Search

    try:
        processes = join()
        known = tasks.named(task, train, dev)
        numbers = [choices["seed"]] if seeds is None else read_seeds(seeds)
        begun = None if choices["init"] is None else warm_start.read(choices["init"])
        words = choices["label_words"]
        made = (as_in_the_paper(choices, context) if paper else choices) | {
            "init": None if begun is None else warm_start.name(begun),
            "label_words": None if words is None else label_words.read(words),
            "positive": choices["positive"] or (known.positive if known else None),
            "seed": numbers[0],
        }
        # what no data could make right is refused before the data are read
        refusable = defaults.choose(made, rows=1, hidden_size=defaults.SMALL).recipe
        columns = data.Columns(text_column, pair_column, label_column, label_separator)
        folders = (
            Folders(run_dir, seeds is not None, checkpoint_every, resume)
            if run_dir is not None
            else None
        )
        if resume and folders is None:
            raise TrainingError(
                "--resume stands without --run-dir; expected the folder to go on in"
            )
        metric = metric or (known.metric if known else None)
        runs = Runs(task, out, scores, metric, folders, begun, probe, report, predictions)
        if processes.main:
            check_outputs(
                {"--report": report, "--predictions": predictions},
                (train, dev, out, probe, scores, choices["init"]),
            )
        runs.check(refusable, numbers)
        # Of several processes only the main one may say anything: what the others would, `join` has
        # silenced.
        with (
            contextlib.redirect_stdout(sys.stderr)
            if as_json and processes.main
            else contextlib.nullcontext()
        ):
            sets, subset = _sets(task, train, dev, glue_dir, columns, problem_type)
            target = device_of(device, processes)
            model = backbones.load(backbone)
            model.encoder.to(target)  # type: ignore[arg-type]  # transformers' decorator hides that `self` is bound
            rows = made["few_shot"] or len(sets[0].texts)
            chosen = defaults.choose(made, rows, model.config.hidden_size)
            for reason in chosen.reasons:
                typer.echo(reason)
            recipe = chosen.recipe
            if search is not None:
                file = None if folders is None else folders.search
                found = Search(model, sets[0], metric, begun, file)
                recipe = found.small(recipe)
            recipes = [dataclasses.replace(recipe, seed=number) for number in numbers]
            lines = runs.run(model, sets, recipes, subset)
        if as_json:
            typer.echo("\n".join(json.dumps(line) for line in lines), nl=bool(lines))
    except AdaMixError as error:
        if speaks_for_machine():
            typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def _sets(
    task: str,
    train: Path | None,
    dev: Path | None,
    glue_dir: Path | None,
    columns: data.Columns,
    problem_type: ProblemType | None,
) -> tuple[tuple[data.Dataset, data.Dataset], str]:
    """The training and the dev set, and what they lack of the published ones."""
    if train is not None and dev is not None:
        return data.read(train, dev, columns, problem_type), ""
    sets, source = tasks.read(task, glue_dir, columns, problem_type)
    subset = tasks.lacking(task, *(len(part.texts) for part in sets))
    typer.echo(f"{task}: from {source}" + (f"; {subset}" if subset else ""))
    return sets, subset


if __name__ == "__main__":
    app()
