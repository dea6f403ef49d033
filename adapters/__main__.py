"""`python -m adapters`: look at adapter files, check them, send them to a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NoReturn

import httpx2
import typer

from adapters import backbone as backbones
from adapters.classifier import collate, from_adapter
from adapters.errors import AdaMixError
from adapters.file import Adapter, load
from adapters.parity import check_backbone, check_parity
from adapters.text import encode

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False, help=__doc__
)
File = Annotated[Path, typer.Argument(help="An adapter file (.safetensors).")]


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
    backbone: Annotated[
        str | None, typer.Option(help="Also replay the probe on this backbone: embedded, a folder or a hub id.")
    ] = None,
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
