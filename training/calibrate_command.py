"""`python -m training calibrate`: an adapter file's temperatures and risk-coverage table, by
labelled rows."""

from __future__ import annotations

import functools
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
    TextColumn,
    check_output,
    explaining_what_lacks,
)
from training.data import Columns

_data = functools.partial(typer.Option, rich_help_panel=DATA)


def calibrate(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter file.")],
    rows: Annotated[
        Path,
        _data(
            metavar="FILE",
            help="Labelled rows that it was not trained on, 100 or more: .jsonl, .csv …",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Where to write the adapter; it may be the same file."),
    ],
    twin: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=(
                "Where ADAPTER was trained on these rows: an adapter that was trained in the same"
                " way without them. Its logits are taken."
            ),
        ),
    ] = None,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    label_separator: LabelSeparator = "|",
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")
    ] = "embedded",
    device: Annotated[
        str | None, typer.Option(help="`cpu` or `cuda`; by default the GPU if there is one.")
    ] = None,
) -> None:
    """Fit an adapter file's temperatures, and the table by which it abstains: no answer's label
    changes, only the scores.

    On labelled rows that it was not trained on; the file gets another version:

        python -m training calibrate tickets.safetensors \\
            --rows held-out.csv --out calibrated.safetensors

    Where it was trained on all rows, by a twin that was trained without these:

        python -m training calibrate tickets.safetensors \\
            --rows held-out.csv --twin twin.safetensors \\
            --out calibrated.safetensors
    """
    with explaining_what_lacks(), without_collection():
        from training.calibration import coverage_told
        from training.evaluation import calibrated

    try:
        check_output("--out", out)
        columns = Columns(text_column, pair_column, label_column, label_separator)
        written, found = calibrated(adapter, rows, columns, backbone, device, out, twin)
        typer.echo(found.told)
        if found.points:
            typer.echo(f"if it may abstain: {coverage_told(found.points)}")
        typer.echo(f"{out}: version {written.version}, {written.bytes:,} bytes")
    except AdaMixError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
