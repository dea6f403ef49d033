"""Whether the running service keeps its promises when it is treated badly: docs/reliability.md.

    python -m benchmarks.reliability soak --minutes 20    # mixed tasks, versions swapped meanwhile
    python -m benchmarks.reliability crash                # kill -9 at random moments of writes
    python -m benchmarks.reliability disk                 # full, read-only, lying, removed, shared
    python -m benchmarks.reliability hostile              # files and requests that lie
    python -m benchmarks.reliability overload             # three times what it can do
    python -m benchmarks.reliability replicas             # three on one bucket, behind Envoy
    python -m benchmarks.reliability page                 # the figures → docs/reliability.md

Each starts real server processes, prints a table, writes JSON, and ends with exit code 1 and a
sentence if anything was wrong. Each can be cut short.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapters.backbone import EMBEDDED
from benchmarks.http.server import Start, started
from benchmarks.reliability import crash as crashes
from benchmarks.reliability import disk as disks
from benchmarks.reliability import hostile as attacks
from benchmarks.reliability import overload as overloads
from benchmarks.reliability import page as pages
from benchmarks.reliability import replicas as several
from benchmarks.reliability import soak as soaks
from benchmarks.reliability.adapters import TINY
from benchmarks.reliability.forks import forks
from benchmarks.reliability.report import RESULTS, Findings, finish

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)

Out = Annotated[Path | None, typer.Option(help=f"By default {RESULTS}/WORD.json.")]
Seed = Annotated[int, typer.Option(help="The same seed makes the same files and requests.")]
Forked = Annotated[
    bool,
    typer.Option(
        "--forked",
        help="Servers are forked from one process, within a second each: for short runs.",
    ),
]
Named = Annotated[
    str, typer.Option(help="`tiny` (two layers of 32), `embedded`, a folder, or a hub id.")
]


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(help="At most, one and two workers together.")] = 20,
    requests: Annotated[int, typer.Option(help="After which it ends sooner.")] = 1_000_000,
    swaps: Annotated[int, typer.Option(help="Of active versions, evenly over it.")] = 1_000,
    backbone: Named = TINY,
    forked: Forked = False,
    out: Out = None,
) -> None:
    """Mixed tasks while versions are swapped: each answer checked, memory over time."""
    findings = Findings()
    figures = soaks.soak(backbone, minutes, requests, swaps, findings, _start(forked))
    finish("soak", figures, soaks.rows(figures), findings, out)


@app.command()
def crash(
    kills: Annotated[int, typer.Option(help="Of the service, each with a start.")] = 100,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """kill -9 at random moments of uploads, activations and deletions."""
    findings = Findings()
    figures = crashes.crash(kills, findings, seed)
    finish("crash", figures, crashes.rows(figures), findings, out)


@app.command()
def disk(
    files: Annotated[int, typer.Option(help="To damage, for the wrong bytes.")] = 200,
    scenario: Annotated[
        list[disks.Scenario] | None, typer.Option(help="One alone; may be repeated. Else all.")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """A full disk, a read-only one, wrong bytes, a store that is removed; two services on one."""
    findings = Findings()
    figures = disks.disk(files, findings, seed, scenario or list(disks.Scenario))
    finish("disk", figures, disks.rows(figures), findings, out)


@app.command()
def hostile(
    files: Annotated[int, typer.Option(help="Mutated, through the parser.")] = 100_000,
    requests: Annotated[int, typer.Option(help="Half of them at two workers.")] = 100_000,
    seed: Seed = 0,
    forked: Forked = False,
    out: Out = None,
) -> None:
    """Adapter files and HTTP requests that are damaged or that lie."""
    findings = Findings()
    figures = attacks.hostile(files, requests, findings, seed, _start(forked))
    finish("hostile", figures, attacks.rows(figures), findings, out)


@app.command()
def overload(
    minutes: Annotated[float, typer.Option(help="Of the load of 300 %.")] = 1.0,
    backbone: Named = EMBEDDED,
    out: Out = None,
) -> None:
    """Three times what the service can do: refusals, waits, /health, recovery, fairness."""
    findings = Findings()
    figures = overloads.overload(backbone, 60 * minutes, findings)
    finish("overload", figures, overloads.rows(figures), findings, out)


@app.command()
def replicas(
    minutes: Annotated[float, typer.Option(help="Of requests.")] = 8,
    swaps: Annotated[int, typer.Option(help="Of active versions, evenly over it.")] = 100,
    kills: Annotated[int, typer.Option(help="Of a replica, evenly over it.")] = 12,
    backbone: Named = TINY,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Three replicas on one bucket behind Envoy: kill -9 of one after the other while versions are
    swapped, each answer checked."""
    findings = Findings()
    figures = several.replicas(backbone, 60 * minutes, swaps, kills, findings, seed)
    finish("replicas", figures, several.rows(figures), findings, out)


@app.command()
def page() -> None:
    """Write the figures of the JSON files into docs/reliability.md."""
    pages.PAGE.write_text(pages.with_figures(pages.PAGE.read_text()))


def _start(forked: bool) -> Start:
    return forks().start if forked else started


if __name__ == "__main__":
    app()
