"""`python -m training compare`: runs side by side."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Annotated

import typer

from adapters.errors import AdaMixError
from adapters.startup import without_collection
from training.command_line import check_outputs, explaining_what_lacks
from training.config import RESULTS

_results = functools.partial(typer.Option, rich_help_panel=RESULTS)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…",
            help="Folders of `--run-dir`, adapter files, or files of `--scores`.",
        ),
    ],
    metric: Annotated[
        str | None, _results(help="What to order by; by default the first that all have.")
    ] = None,
    report: Annotated[
        Path | None, _results(metavar="FILE", help="A page (.html) with the table and a plot.")
    ] = None,
    as_json: Annotated[bool, _results("--json", help="Print it as JSON.")] = False,
) -> None:
    """Compare runs of a task: their scores, and the settings that differ.

    Runs that differ by their seed alone are one line: the mean, and its 95 % interval over the
    seeds (Student's t).

        python -m training compare runs/*

    A page with a plot; by another metric:

        python -m training compare runs/* --metric f1_macro --report compared.html
    """
    with explaining_what_lacks(), without_collection():
        from training.comparison import compared, found_runs
        from training.report import write_comparison

    try:
        check_outputs({"--report": report}, tuple(runs))
        found = compared(found_runs(runs), metric)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(found)))
        else:
            for line in found.table():
                typer.echo(line)
            for warning in found.warnings:
                typer.echo(f"hint: {warning}")
        if report is not None:
            write_comparison(report, found)
            typer.echo(f"{report}: open it in a browser", err=as_json)
    except AdaMixError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
