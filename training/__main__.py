"""`python -m training`: train one task's adapter from data files and write one adapter file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adapters import backbone as backbones
from adapters.errors import AdaMixError
from adapters.file import save
from adapters.spec import TASK_PATTERN, ProblemType
from training import config, data
from training import train as recipe_of
from training.errors import TrainingError

LOG_LINES = 20  # when the output is no terminal: this many lines a run instead of a bar

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def main(
    task: Annotated[str, typer.Option(help="Name of the task: what clients will ask for (`?task=…`).")],
    train: Annotated[Path, typer.Option(help="Training file: .jsonl, .csv (quoted) or .tsv (unquoted).")],
    dev: Annotated[Path, typer.Option(help="File that the merged adapter is evaluated on.")],
    out: Annotated[Path, typer.Option(help="Where to write the adapter, a .safetensors file.")],
    backbone: Annotated[str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")] = backbones.EMBEDDED,
    method: Annotated[
        config.Method, typer.Option(help="`adamix` (routed, then merged) or `adapter` (a single one).")
    ] = "adamix",
    experts: Annotated[int, typer.Option(help="Experts in each layer's mixture.")] = 4,
    share_down: Annotated[bool, typer.Option(help="One project-down for all experts.")] = False,
    share_up: Annotated[bool, typer.Option(help="One project-up for all experts.")] = True,
    bottleneck: Annotated[int, typer.Option(help="Width of the bottleneck.")] = 16,
    consistency: Annotated[float, typer.Option(help="Weight of the consistency loss; 0 for none.")] = 1.0,
    epochs: Annotated[int, typer.Option()] = 10,
    batch_size: Annotated[int, typer.Option(help="Rows in a mini-batch.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak, after the warm-up.")] = 1e-3,
    warmup: Annotated[float, typer.Option(help="Share of all steps.")] = 0.06,
    weight_decay: Annotated[float, typer.Option()] = 0.1,
    clip: Annotated[float, typer.Option(help="Largest gradient norm.")] = 1.0,
    max_length: Annotated[int, typer.Option(help="Tokens; longer texts are cut.")] = 128,
    pooling: Annotated[
        Literal["mean", "cls", "pooler"] | None,
        typer.Option(metavar="NAME", help="`mean`, `cls` or `pooler`; by default the backbone's."),
    ] = None,
    dense_head: Annotated[
        bool | None, typer.Option(help="A hidden layer in the head; by default as the backbone's family.")
    ] = None,
    problem_type: Annotated[
        ProblemType | None,
        typer.Option(
            metavar="NAME",
            help="`single_label_classification`, `multi_label_classification` or `regression`; by default from the data.",
        ),
    ] = None,
    positive: Annotated[str | None, typer.Option(help="The label whose F1 is reported.")] = None,
    text_column: Annotated[str, typer.Option()] = "text",
    pair_column: Annotated[str | None, typer.Option(help="Second text; by default `text_pair` if there.")] = None,
    label_column: Annotated[str, typer.Option()] = "label",
    label_separator: Annotated[str, typer.Option(help="Between the labels of a multi-label row in CSV or TSV.")] = "|",
    seed: Annotated[int, typer.Option()] = 0,
    precision: Annotated[
        config.Precision, typer.Option(help="`float32`, `bfloat16`, or `auto`: bfloat16 on a GPU.")
    ] = "auto",
    dtype: Annotated[config.FileDtype, typer.Option(help="Of the file: `float16`, `bfloat16` or `float32`.")] = "float16",
    device: Annotated[str | None, typer.Option(help="`cpu` or `cuda`; by default the GPU if there is one.")] = None,
) -> None:
    """Train an AdaMix adapter: a mixture by random routing in a frozen backbone, merged into one small file.

    Example: `python -m training --task mrpc --train train.jsonl --dev dev.jsonl --out mrpc.safetensors`
    """
    try:
        _check_paths(task, out)
        recipe = config.Recipe(
            method=method,
            experts=experts,
            share_down=share_down,
            share_up=share_up,
            bottleneck=bottleneck,
            consistency=consistency,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup=warmup,
            weight_decay=weight_decay,
            clip=clip,
            max_length=max_length,
            pooling=pooling,
            dense_head=dense_head,
            positive=positive,
            seed=seed,
            precision=precision,
            dtype=dtype,
        )
        columns = data.Columns(text_column, pair_column, label_column, label_separator)
        _run(task, backbone, _device(device), data.read(train, dev, columns, problem_type), recipe, out)
    except AdaMixError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def _run(
    task: str, name: str, device: torch.device, sets: tuple[data.Dataset, data.Dataset], recipe: config.Recipe, out: Path
) -> None:
    backbone = backbones.load(name)
    backbone.encoder.to(device)  # type: ignore[arg-type]  # transformers' decorator hides that `self` is bound
    labels = sets[0].labels
    named = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
    typer.echo(f"{task}: {len(sets[0].texts)} rows, {sets[0].problem_type}, labels {named}; {device}")
    with _progress() as report:
        trained = recipe_of.train(task, backbone, *sets, recipe, report)
    done = trained.spec.training
    if done["steps"] != done["planned_steps"]:
        typer.echo(f"stopped early, after {done['steps']} of {done['planned_steps']} steps")
    try:
        adapter = save(out, trained.spec, trained.tensors)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error.strerror}") from None
    shown = "  ".join(f"{metric} {value:.4f}" for metric, value in trained.scores.items())
    typer.echo(f"dev ({len(sets[1].texts)} rows, merged adapter): {shown}")
    typer.echo(f"{out}: version {adapter.version}, {adapter.bytes:,} bytes, {adapter.parameters:,} parameters")


def _check_paths(task: str, out: Path) -> None:
    """Find out before the training, not after it, that its result could not be written."""
    if not re.fullmatch(TASK_PATTERN, task):
        raise TrainingError(f"task is {task!r}; expected a name of {TASK_PATTERN}")
    if not out.parent.is_dir():
        raise TrainingError(f"the folder of --out {out} does not exist; expected one to write into")
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise TrainingError(f"--out {out} {'is a folder' if out.is_dir() else 'cannot be written'}; expected a file's path")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise TrainingError(f"device is {name!r}; expected cpu or cuda")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; expected cpu or cuda") from None


@contextmanager
def _progress() -> Iterator[Callable[[recipe_of.Progress], None]]:
    """A bar on a terminal; elsewhere, a line now and then."""
    console = Console()
    if not console.is_terminal:
        yield lambda p: _line(p) if p.step % max(1, p.steps // LOG_LINES) == 0 else None
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        handle = bar.add_task("", loss=float("nan"), speed=0.0)
        yield lambda p: bar.update(
            handle, completed=p.step, total=p.steps, loss=p.loss, speed=p.tokens / max(p.seconds, 1e-9)
        )


def _line(p: recipe_of.Progress) -> None:
    speed = p.tokens / max(p.seconds, 1e-9)
    typer.echo(f"step {p.step}/{p.steps}  loss {p.loss:.3f}  {speed:,.0f} tokens/s  {p.seconds:.0f} s")


if __name__ == "__main__":
    app()
