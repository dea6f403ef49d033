"""`python -m training evaluate`: an adapter file on labelled rows."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Annotated

import typer

from adapters.errors import AdaMixError
from adapters.startup import without_collection
from training.command_line import (
    DATA,
    LabelColumn,
    LabelSeparator,
    PairColumn,
    Predictions,
    Report,
    TextColumn,
    check_outputs,
    explaining_what_lacks,
)
from training.data import Columns

_results = functools.partial(typer.Option, rich_help_panel="Results")
_data = functools.partial(typer.Option, rich_help_panel=DATA)


def evaluate(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER",
            help="An adapter file; with `--url`, a task of that service, or TASK@VERSION.",
        ),
    ],
    dev: Annotated[
        Path, _data(metavar="FILE", help="Labelled rows: .jsonl, .csv, .tsv or .parquet.")
    ],
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    label_separator: LabelSeparator = "|",
    positive: Annotated[str | None, _results(help="The label whose F1 is reported.")] = None,
    report: Report = None,
    predictions: Predictions = None,
    as_json: Annotated[bool, _results("--json", help="Print all of it as JSON.")] = False,
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")
    ] = "embedded",
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A running service that answers instead of this process."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="ADAMIX_API_KEY", help="The service's key, if any."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="`cpu` or `cuda`; by default the GPU if there is one.")
    ] = None,
) -> None:
    """Evaluate an adapter file on labelled rows: also one that somebody else has made.

    Its scores, and each label's:

        python -m training evaluate tickets.safetensors --dev dev.csv

    A page and a table to look into:

        python -m training evaluate tickets.safetensors --dev dev.csv \\
            --report report.html --predictions predictions.csv

    What the clients of a running service get:

        python -m training evaluate tickets --dev dev.csv \\
            --url http://localhost:8000
    """
    with explaining_what_lacks(), without_collection():
        from training.evaluation import evaluated
        from training.served import evaluated_by_service

    try:
        check_outputs({"--report": report, "--predictions": predictions}, (Path(adapter), dev))
        columns = Columns(text_column, pair_column, label_column, label_separator)
        if url is not None:
            found = evaluated_by_service(adapter, url, key, dev, columns, positive)
        else:
            found = evaluated(Path(adapter), dev, columns, backbone, device, positive)
        judged = found.judgement
        if as_json:
            typer.echo(json.dumps({"version": found.adapter.digest, **dataclasses.asdict(judged)}))
        else:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in judged.scores.items())
            typer.echo(f"{dev} ({judged.rows} rows): {shown}")
            for each in judged.labels:
                typer.echo(
                    f"  {each.label}: {each.rows} rows  precision {each.precision:.4f}"
                    f"  recall {each.recall:.4f}  f1 {each.f1:.4f}"
                )
            for hint in found.hints:
                typer.echo(f"hint: {hint}")
        if predictions is not None:
            found.predictions(predictions)
            typer.echo(f"{predictions}: {judged.rows} answers", err=as_json)
        if report is not None:
            found.report(report)
            typer.echo(f"{report}: open it in a browser", err=as_json)
    except AdaMixError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
