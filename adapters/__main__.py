"""`python -m adapters`: inspect, validate, push, convert and export adapter files; copy stores."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapters.errors import AdaMixError, for_operators
from adapters.regular import is_folder
from adapters.spec import ProblemType, shown

# torch and transformers take seconds to import: each command waits for what it needs, help for
# nothing
if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from adapters.file import Adapter
    from adapters.spec import AdapterSpec

app = typer.Typer(
    add_completion=__name__ != "__main__",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Look at adapter files, check them, send them to a server, convert them from and to other
    makers'.

    ```
    python -m adapters push tickets.safetensors --url http://localhost:8000
    ```""",
    epilog=(
        "**Exit codes:** 0, done; 2, something that you can mend, in one sentence on stderr; 1, a"
        " fault of ours."
    ),
)
File = Annotated[Path, typer.Argument(help="An adapter file (.safetensors).")]
AsJson = Annotated[bool, typer.Option("--json", help="Say it as one JSON object.")]
_unsaid = functools.partial(typer.Option, rich_help_panel="What the source may not say")
BACKBONE = "`embedded`, a folder, or a Hugging Face id (`id@revision`)."

# What `convert` and a `push` of a folder need to know.
Backbone = Annotated[
    str | None,
    _unsaid(
        metavar="NAME",
        help=f"What it was trained on: {BACKBONE} By default the base model that PEFT names.",
    ),
]
Labels = Annotated[
    str | None,
    _unsaid(
        metavar="A,B,…",
        help="Names of the head's rows, in order; or a JSON list. By default as the source says.",
    ),
]
Problem = Annotated[
    ProblemType | None,
    _unsaid(
        metavar="NAME",
        help=(
            "`single_label_classification`, `multi_label_classification` or `regression`; else"
            " as the source says."
        ),
    ),
]
TextPair = Annotated[bool, _unsaid("--text-pair", help="The task takes pairs of texts.")]
MaxLength = Annotated[int, _unsaid(help="Tokens of the longest input.")]
ProbeFile = Annotated[
    Path | None,
    _unsaid(
        metavar="FILE",
        help="JSON lines with `text`, perhaps `text_pair`: 8 go into the file, with logits.",
    ),
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"],
    _unsaid(metavar="NAME", help="Of the weights in the file: `float32`, `float16` or `bfloat16`."),
]
BUCKET_SECONDS = 30.0  # of one access to a bucket
_OF_A_FOLDER = (
    *("task", "backbone", "labels", "problem_type", "text_pair", "max_length", "probe", "dtype"),
)


@app.command()
def inspect(file: File, as_json: AsJson = False) -> None:
    """Show what an adapter is for, what it was trained on, and what it scored.

    ```
    python -m adapters inspect tickets.safetensors
    python -m adapters inspect tickets.safetensors --json | jq .labels
    ```
    """
    from adapters.card import card

    adapter = _load(file)
    if as_json:
        typer.echo(
            json.dumps(
                {"version": adapter.digest, **adapter.spec.model_dump(mode="json")}, indent=2
            )
        )
        return
    rows = card(adapter)
    if not (console := Console()).is_terminal:
        typer.echo("\n".join(f"{name:<14}{value}" for name, value in rows.items()))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), Text(value))
    console.print(table)


@app.command()
def validate(
    file: File,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Also replay the probe on this backbone: {BACKBONE}"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a file against docs/adapter-format.md; exit code 2 and one sentence if it breaks a
    rule.

    The file alone, or also what it computes:

    ```
    python -m adapters validate tickets.safetensors
    python -m adapters validate tickets.safetensors --backbone embedded
    ```
    """
    adapter = _load(file)
    if backbone is not None:
        from adapters import backbone as backbones
        from adapters.parity import unsaid
        from adapters.replay import replay

        try:
            replay(adapter, backbones.load(backbone))
        except AdaMixError as error:
            _fail(str(error))
        if (doubt := unsaid(adapter)) is not None:
            typer.echo(f"note: {doubt}", err=True)
    _say(
        adapter,
        f"{file}: a valid adapter for task {adapter.spec.task}, version {adapter.version}",
        as_json,
    )


@app.command()
def push(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="An adapter file, or the folder of a PEFT or AdapterHub adapter to convert.",
        ),
    ],
    url: Annotated[
        str, typer.Option(metavar="URL", help="The server, such as http://localhost:8000.")
    ],
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="ADAMIX_ADMIN_KEY", help="The server's admin key."),
    ] = None,
    activate: Annotated[bool, typer.Option(help="Serve this version from now on.")] = True,
    as_json: AsJson = False,
    task: Annotated[
        str | None, _unsaid(metavar="NAME", help="What clients will ask for. A folder needs it.")
    ] = None,
    backbone: Backbone = None,
    labels: Labels = None,
    problem_type: Problem = None,
    text_pair: TextPair = False,
    max_length: MaxLength = 128,
    probe: ProbeFile = None,
    dtype: Dtype = "float32",
) -> None:
    """Upload an adapter to a running server; what is there already is left as it is.

    Served from now on, or only stored; or another maker's folder, as `convert` takes it:

    ```
    python -m adapters push tickets.safetensors --url http://localhost:8000
    python -m adapters push tickets.safetensors --no-activate \\
        --url https://models.example.org --key …
    python -m adapters push my-peft-folder --task tickets \\
        --labels billing,other --url http://localhost:8000
    ```
    """
    from adapters.upload import upload

    if is_folder(source):
        if task is None:
            _fail(
                f"{source} is a folder, which is converted first; expected --task NAME, what"
                " clients will ask for"
            )
        from adapters.file import parse, serialize

        adapter = _converted(
            *(source, backbone, task, labels, problem_type, text_pair, max_length, probe, dtype),
            write=lambda spec, tensors: parse(serialize(spec, tensors)),
        )
        name = f"{task}.safetensors"
    else:
        for option in _OF_A_FOLDER:
            given = context.get_parameter_source(option)
            if given is not None and given.name == "COMMANDLINE":
                _fail(
                    f"--{option.replace('_', '-')} is for a folder to convert, and {source} is"
                    " none; expected no such option with an adapter file, which says it itself"
                )
        adapter = _load(source)
        name = source.name
    try:
        created = upload(name, adapter.data, url, key, activate=activate)
    except AdaMixError as error:
        _fail(str(error))
    known = (
        f"{'uploaded' if created else 'was there already'}{' and is active' if activate else ''}"
    )
    _say(adapter, f"{adapter.spec.task}@{adapter.version} {known}", as_json, created=created)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help=(
                "The folder of a PEFT classifier's LoRA, or of an AdapterHub adapter and its head;"
                " or an AdaMix checkpoint."
            )
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The adapter file to write.")],
    task: Annotated[str, typer.Option(metavar="NAME", help="What clients will ask for.")],
    backbone: Backbone = None,
    labels: Labels = None,
    problem_type: Problem = None,
    text_pair: TextPair = False,
    max_length: MaxLength = 128,
    probe: ProbeFile = None,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Make an adapter file of another maker's: docs/convert.md says which.

    A server compares an adapter's fingerprint and replays its probe, so the backbone is loaded here
    and computes the probe's logits, on neutral sentences unless `--probe` has better ones. Code
    that a checkpoint holds is never run.

    ```
    python -m adapters convert my-peft-folder --task tickets \\
        --labels billing,other --out tickets.safetensors
    python -m adapters convert pytorch_model_sst2_expert_soup.bin \\
        --backbone roberta-large --task sst2 --labels negative,positive \\
        --out sst2.safetensors
    ```
    """
    from adapters.file import save

    adapter = _converted(
        *(source, backbone, task, labels, problem_type, text_pair, max_length, probe, dtype),
        write=lambda spec, tensors: save(out, spec, tensors),
    )
    _say(adapter, f"{out}: an adapter for task {task}, version {adapter.version}", as_json)


@app.command()
def export(
    file: File,
    folder: Annotated[Path, typer.Argument(help="Where to write; not there yet, or empty.")],
    to: Annotated[
        Literal["adapterhub", "peft"],
        typer.Option(metavar="LIBRARY", help="`adapterhub` for bottlenecks, `peft` for LoRA."),
    ] = "adapterhub",
    as_json: AsJson = False,
) -> None:
    """Write an adapter and its head as a folder for another library, which computes the same
    logits: AdapterHub's `model.load_adapter(folder)`, or
    `PeftModel.from_pretrained(model, folder)`.

    ```
    python -m adapters export sst2.safetensors sst2-adapterhub
    python -m adapters export tickets.safetensors tickets-peft --to peft
    ```
    """
    from adapters.convert import to_adapterhub, to_peft

    adapter = _load(file)
    library, write = {
        "adapterhub": ("AdapterHub", to_adapterhub.write),
        "peft": ("PEFT", to_peft.write),
    }[to]
    try:
        write(adapter, folder)
    except (AdaMixError, OSError) as error:
        _fail(f"{file} cannot be exported: {error}")
    _say(adapter, f"{folder}: adapter {adapter.spec.task!r} for {library}", as_json)


def _converted(
    source: Path,
    backbone: str | None,
    task: str,
    labels: str | None,
    problem_type: ProblemType | None,
    text_pair: bool,
    max_length: int,
    probe: Path | None,
    dtype: str,
    *,
    write: Callable[[AdapterSpec, dict[str, Tensor]], Adapter],
) -> Adapter:
    """Convert another maker's file or folder, and write what comes of it."""
    import torch

    from adapters.convert.assembly import Wanted
    from adapters.convert.probe import read_probe
    from adapters.convert.sources import convert

    try:
        wanted = Wanted(
            task=task,
            labels=_names(labels) if labels is not None else None,
            problem_type=problem_type,
            text_pair=text_pair,
            max_length=max_length,
            probe=read_probe(probe, text_pair) if probe else None,
            dtype=getattr(torch, dtype),
        )
        return write(*convert(source, backbone, wanted))
    except (AdaMixError, OSError) as error:
        _fail(f"{source} cannot be converted: {error}")


@app.command()
def gc(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="A bucket's address, such as s3://bucket/prefix.")
    ],
    older_than: Annotated[
        float,
        typer.Option(min=1, metavar="HOURS", help="The grace period, from a file's last write."),
    ],
) -> None:
    """Delete the files of a store in a bucket that no version names any more.

    Deletions of tasks and versions leave the files there. Their first `gc` moves them to the
    bucket's trash; after one more grace period, the next one deletes them. A file that was written
    within the grace period stays: its upload may be under way.

    ```
    python -m adapters gc s3://adapters/prod --older-than 168
    ```
    """
    from adapters.bucket.gc import collect
    from adapters.bucket.objects import connect, is_bucket

    if not is_bucket(store):
        _fail(f"{store} is no bucket's address; expected one, such as s3://bucket/prefix")
    try:
        done = collect(connect(store, BUCKET_SECONDS), older_than * 3600)
    except AdaMixError as error:
        _fail(for_operators(error))
    typer.echo(
        f"moved {len(done.moved)} files of {store} to its trash, and deleted {len(done.deleted)}"
        " that were there for longer than the grace period"
    )


@app.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A folder, or a bucket's address.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The same, to be written to.")],
) -> None:
    """Copy every version of every task from one store into another, such as from a folder into a
    bucket.

    Each task gets the active version and the division of traffic that it has in FROM. Versions that
    are in TO already stay. Running it again goes on where it ended.

    ```
    python -m adapters copy var/store s3://adapters/prod
    ```
    """
    from adapters.copying import copied

    try:
        versions = copied(source, target, BUCKET_SECONDS)
    except AdaMixError as error:
        _fail(for_operators(error))
    typer.echo(f"copied {versions} versions from {source} to {target}")


def _say(adapter: Adapter, sentence: str, as_json: bool, **more: Any) -> None:
    """Say what was done, to a person or to a program."""
    said = {"task": adapter.spec.task, "version": adapter.version, **more}
    typer.echo(json.dumps(said) if as_json else sentence)


def _names(labels: str) -> tuple[str, ...]:
    if not labels.startswith("["):
        return tuple(label.strip() for label in labels.split(","))
    try:
        names = json.loads(labels)
    except (ValueError, RecursionError) as error:
        _fail(f"--labels is no JSON list: {error}; expected one, or names with commas")
    if not all(isinstance(name, str) for name in names):
        _fail(f"--labels is {shown(names)}; expected strings")
    return tuple(names)


def _load(file: Path) -> Adapter:
    from adapters.file import load

    try:
        return load(file)
    except AdaMixError as error:
        _fail(f"{file}: {error}")
    except OSError as error:
        _fail(f"{file} cannot be read: {error.strerror}")


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
