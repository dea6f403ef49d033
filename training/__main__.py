"""`python -m training`: train one task from data files or by its name, score it on a dev set, and write one adapter file."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from adapters import backbone as backbones
from adapters.errors import AdaMixError
from adapters.spec import ProblemType
from training import config, data, tasks
from training import words as label_words
from training.errors import TrainingError
from training.folder import Folders
from training.processes import Processes, join, speaks_for_machine
from training.runs import Runs

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def main(
    task: Annotated[str, typer.Option(help="Name of the task: what clients will ask for (`?task=…`).")],
    train: Annotated[
        Path | None,
        typer.Option(
            help=f"Training file: .jsonl, .csv (quoted) or .tsv (unquoted). Needed but for {', '.join(tasks.TASKS)}."
        ),
    ] = None,
    dev: Annotated[Path | None, typer.Option(help="File that the result is evaluated on; it chooses nothing.")] = None,
    glue_dir: Annotated[
        Path,
        typer.Option(
            envvar="GLUE_DIR",
            help="Where TASK/train.jsonl and dev.jsonl of a task known by its name lie, or else: on the hub.",
        ),
    ] = tasks.FOLDER,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the adapter, a .safetensors file: `adamix` and `adapter` only.")
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for all of a run: recipe, environment, metrics, TensorBoard events, checkpoint, adapter."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in `--run-dir`, as if never stopped.")] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints in `--run-dir`.")] = 500,
    scores: Annotated[Path | None, typer.Option(help="Append each run's scores to this file, a JSON line a run.")] = None,
    backbone: Annotated[str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")] = backbones.EMBEDDED,
    method: Annotated[
        config.Method,
        typer.Option(
            metavar="NAME",
            help="`adamix` (routed, then merged), `adapter` (a single one); to compare: `houlsby` (two a layer), `lora` "
            "(its rank matches the adapter's size), `bitfit` (biases), `head` (frozen encoder), `full` (full fine-tuning).",
        ),
    ] = "adamix",
    experts: Annotated[int, typer.Option(help="Experts in each layer's mixture.")] = 4,
    share_down: Annotated[bool, typer.Option(help="One project-down for all experts.")] = False,
    share_up: Annotated[bool, typer.Option(help="One project-up for all experts.")] = True,
    bottleneck: Annotated[int, typer.Option(help="Width of the bottleneck.")] = 16,
    consistency: Annotated[float, typer.Option(help="Weight of the consistency loss; 0 for none.")] = 1.0,
    epochs: Annotated[int, typer.Option()] = 10,
    batch_size: Annotated[int, typer.Option(help="Rows in a mini-batch.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak, after the warm-up; `full` wants some 5e-5.")] = 1e-3,
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
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="Score label words by the backbone's own masked-language-model head, at the mask of a template such as "
            "`{text} It was {mask}.` or, for pairs, `{text}? {mask}, {text_pair}`.",
        ),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(metavar="LABEL=WORD,…", help="The prompt's word for each label; or a JSON object."),
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
    metric: Annotated[
        str | None,
        typer.Option(help="The `score` in --scores: `accuracy`, `f1`, `matthews`, `pearson` …"),
    ] = None,
    evaluate: Annotated[
        config.Evaluation,
        typer.Option(
            metavar="NAME",
            help="Of `adamix`: `merged`, or for ablations the mixture by `random` routes (a draw a batch), by `fixed` ones "
            "(the first expert), or the `ensemble` of its experts' logits.",
        ),
    ] = "merged",
    shots: Annotated[
        int | None, typer.Option(help="Few-shot: this many examples in all, drawn by the seed, classes balanced.")
    ] = None,
    seed: Annotated[int, typer.Option()] = 0,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="One run a seed, such as `0,1,2,3,4`: mean and standard deviation.")
    ] = None,
    precision: Annotated[
        config.Precision, typer.Option(help="`float32`, `bfloat16`, or `auto`: bfloat16 on a GPU.")
    ] = "auto",
    dtype: Annotated[config.FileDtype, typer.Option(help="Of the file: `float16`, `bfloat16` or `float32`.")] = "float16",
    device: Annotated[str | None, typer.Option(help="`cpu` or `cuda`; by default the GPU if there is one.")] = None,
) -> None:
    """Train an AdaMix adapter: a mixture by random routing in a frozen backbone, merged into one small file.

    Example: `python -m training --task mrpc --train train.jsonl --dev dev.jsonl --out mrpc.safetensors`

    Several GPUs: `accelerate launch -m training …`; each mini-batch is split over them, `--precision` stays this one's.

    Without `--out` any method is trained and scored: `… --method lora --seeds 0,1,2 --scores scores.jsonl`
    """
    try:
        processes = join()
        known = tasks.named(task, train, dev)
        numbers = [seed] if seeds is None else _seeds(seeds)
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
            prompt=prompt,
            words=None if words is None else label_words.read(words),
            positive=positive or (known.positive if known else None),
            evaluate=evaluate,
            shots=shots,
            seed=numbers[0],
            precision=precision,
            dtype=dtype,
        )
        columns = data.Columns(text_column, pair_column, label_column, label_separator)
        folders = Folders(run_dir, seeds is not None, checkpoint_every, resume) if run_dir is not None else None
        if resume and folders is None:
            raise TrainingError("--resume stands without --run-dir; expected the folder to go on in")
        runs = Runs(task, out, scores, metric or (known.metric if known else None), folders)
        runs.check(recipe, numbers)
        sets, subset = _sets(task, train, dev, glue_dir, columns, problem_type)
        recipes = [dataclasses.replace(recipe, seed=number) for number in numbers]
        runs.run(_backbone(backbone, _device(device, processes)), sets, recipes, subset)
    except AdaMixError as error:
        if speaks_for_machine():
            typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def _sets(
    task: str,
    train: Path | None,
    dev: Path | None,
    glue_dir: Path,
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


def _seeds(text: str) -> list[int]:
    if not re.fullmatch(r"\d{1,18}([\s,]+\d{1,18})*", text.strip()):
        raise TrainingError(f"--seeds is {text!r}; expected whole numbers with commas between, such as 0,1,2")
    numbers = [int(part) for part in re.split(r"[\s,]+", text.strip())]
    if len(set(numbers)) != len(numbers):
        raise TrainingError(f"--seeds is {text!r}, which names a seed twice; expected different ones")
    return numbers


def _backbone(name: str, device: torch.device) -> backbones.Backbone:
    backbone = backbones.load(name)
    backbone.encoder.to(device)  # type: ignore[arg-type]  # transformers' decorator hides that `self` is bound
    return backbone


def _device(name: str | None, processes: Processes) -> torch.device:
    if processes.device is not None:
        if name is not None:
            raise TrainingError(
                f"device is {name!r}, but there are {processes.count} processes; expected no --device: each is given its own"
            )
        return processes.device
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise TrainingError(f"device is {name!r}; expected cpu or cuda")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; expected cpu or cuda") from None


if __name__ == "__main__":
    app()
