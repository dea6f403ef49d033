"""`python -m adapters`: look at adapter files, check them, send them to a server, convert them from and to other makers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import httpx2
import torch
import typer

from adapters import backbone as backbones
from adapters.classifier import collate, from_adapter
from adapters.convert import adamix, adapterhub
from adapters.convert.assembly import Wanted, assemble
from adapters.convert.export import write
from adapters.convert.probe import read_probe
from adapters.errors import AdaMixError
from adapters.file import Adapter, load, save
from adapters.parity import check_backbone, check_parity
from adapters.spec import ProblemType, shown
from adapters.text import encode

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False, help=__doc__
)
File = Annotated[Path, typer.Argument(help="An adapter file (.safetensors).")]
BACKBONE = "`embedded`, a folder, or a Hugging Face id."


@app.command()
def inspect(file: File, as_json: Annotated[bool, typer.Option("--json", help="The whole spec as JSON.")] = False) -> None:
    """Show what an adapter is for, what it was trained on, and what it scored."""
    adapter = _load(file)
    if as_json:
        typer.echo(json.dumps({"version": adapter.digest, **adapter.spec.model_dump(mode="json")}, indent=2))
        return
    spec = adapter.spec
    rows = {
        "task": spec.task,
        "version": adapter.digest,
        "labels": ", ".join(spec.labels),
        "problem type": spec.problem_type + (", pairs of texts" if spec.text_pair else ""),
        "pooling": spec.pooling,
        **({"template": spec.template} if spec.template is not None else {}),
        "max length": f"{spec.max_length} tokens",
        "backbone": f"{spec.backbone.name} ({spec.backbone.num_layers} layers of {spec.backbone.hidden_size}, "
        f"fingerprint {spec.backbone.fingerprint[:12]})",
        "bottleneck": str(spec.bottleneck),
        "size": f"{adapter.bytes:,} bytes, {adapter.parameters:,} parameters",
        "dev scores": json.dumps(spec.training.get("dev_scores", {})),
        "recipe": json.dumps(spec.training.get("recipe", {})),
    }
    for name, value in rows.items():
        typer.echo(f"{name:<14}{value}")


@app.command()
def validate(
    file: File,
    backbone: Annotated[str | None, typer.Option(help=f"Also replay the probe on this backbone: {BACKBONE}")] = None,
) -> None:
    """Check a file against docs/adapter-format.md; exit code 2 and one sentence if it breaks a rule."""
    adapter = _load(file)
    if backbone is not None:
        try:
            _check_fit(adapter, backbone)
        except AdaMixError as error:
            _fail(str(error))
    typer.echo(f"{file}: a valid adapter for task {adapter.spec.task}, version {adapter.version}")


@app.command()
def push(
    file: File,
    url: Annotated[str, typer.Option(help="The server, such as http://localhost:8000.")],
    key: Annotated[str | None, typer.Option(envvar="ADAMIX_ADMIN_KEY", help="The server's admin key.")] = None,
    activate: Annotated[bool, typer.Option(help="Serve this version from now on.")] = True,
) -> None:
    """Upload an adapter to a running server.

    Example: `python -m adapters push sst2.safetensors --url http://localhost:8000`
    """
    adapter = _load(file)
    try:
        answer = httpx2.post(
            f"{url.rstrip('/')}/adapters",
            files={"file": (file.name, file.read_bytes())},
            data={"activate": "true" if activate else "false"},
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=60,
        )
    except UnicodeEncodeError:
        _fail("the key holds a character that no header takes; expected ASCII")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        _fail(f"{url} cannot be reached: {error}")
    if answer.status_code not in (200, 201):
        try:
            reason = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            reason = answer.text[:200]
        _fail(f"{url} answered {answer.status_code}: {reason}")
    known = "uploaded" if answer.status_code == 201 else "was there already"
    typer.echo(f"{adapter.spec.task}@{adapter.version} {known}{' and is active' if activate else ''}")


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="An AdaMix checkpoint, or the folder of an AdapterHub adapter and its head.")
    ],
    out: Annotated[Path, typer.Option(help="The adapter file to write.")],
    backbone: Annotated[str, typer.Option(help=f"What it was trained on: {BACKBONE}")],
    task: Annotated[str, typer.Option(help="The task's name.")],
    labels: Annotated[
        str | None,
        typer.Option(help="Names of the head's rows, in order: `a,b,c` or a JSON list. By default, as the source says."),
    ] = None,
    problem_type: Annotated[
        ProblemType | None, typer.Option(help="By default as the source says, or else regression for one row.")
    ] = None,
    text_pair: Annotated[bool, typer.Option(help="The task takes pairs of texts.")] = False,
    max_length: Annotated[int, typer.Option(help="Tokens of the longest input.")] = 128,
    probe: Annotated[
        Path | None,
        typer.Option(help="JSON lines with `text`, perhaps `text_pair`: the first 8 go into the file with their logits."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Of the weights in the file.")
    ] = "float32",
) -> None:
    """Make an adapter file of another maker's: docs/convert.md says which.

    A server compares an adapter's fingerprint and replays its probe, so the backbone is loaded here and computes the probe's
    logits, on neutral sentences unless `--probe` has better ones. Code that a checkpoint holds is never run.

    Example: `python -m adapters convert pytorch_model_sst2_expert_soup.bin --backbone roberta-large --task sst2
    --labels negative,positive --out sst2.safetensors`
    """
    try:
        foreign = adapterhub.read(source) if source.is_dir() else adamix.read(source)
        wanted = Wanted(
            task=task,
            labels=_names(labels) if labels is not None else None,
            problem_type=problem_type,
            text_pair=text_pair,
            max_length=max_length,
            probe=read_probe(probe, text_pair) if probe else None,
            dtype=getattr(torch, dtype),
        )
        adapter = save(out, *assemble(foreign, backbones.load(backbone), wanted))
    except (AdaMixError, OSError) as error:
        _fail(f"{source} cannot be converted: {error}")
    typer.echo(f"{out}: an adapter for task {task}, version {adapter.version}")


@app.command()
def export(
    file: File,
    folder: Annotated[Path, typer.Argument(help="Where to write; not there yet, or empty.")],
) -> None:
    """Write an adapter and its head as a folder for AdapterHub: `model.load_adapter(folder)` computes the same logits."""
    adapter = _load(file)
    try:
        write(adapter, folder)
    except (AdaMixError, OSError) as error:
        _fail(f"{file} cannot be exported: {error}")
    typer.echo(f"{folder}: adapter {adapter.spec.task!r} for AdapterHub")


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
    try:
        return load(file)
    except AdaMixError as error:
        _fail(f"{file}: {error}")
    except OSError as error:
        _fail(f"{file} cannot be read: {error.strerror}")


def _check_fit(adapter: Adapter, name: str) -> None:
    backbone = backbones.load(name)
    check_backbone(
        adapter,
        backbone.reference,
        max_length=backbone.max_length,
        has_pooler=backbone.has_pooler,
        has_mask=backbone.mask_token is not None,
    )
    spec = adapter.spec
    prompt = backbone.prompt(spec.template, spec.max_length)
    rows = encode(backbone.tokenizer, spec.probe.inputs, spec.max_length, prompt)  # type: ignore[arg-type]  # 1 or 2 texts
    check_parity(adapter, from_adapter(backbone, adapter)(collate(rows)).tolist(), "float32")


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
