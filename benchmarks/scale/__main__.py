"""A hundred replicas with a hundred thousand adapters, by simulation: docs/scale.md.

    python -m benchmarks.scale                        # all scenarios: ten minutes of one core
    python -m benchmarks.scale --quick                # a small cluster, in seconds
    python -m benchmarks.scale measure --data DATA    # what batches and files cost: for the above
    python -m benchmarks.scale validate               # three real replicas behind a real Envoy

The seeds are fixed: the same costs give the same figures.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from adapters.backbone import EMBEDDED
from benchmarks.scale import costs as measured
from benchmarks.scale import plots, scenarios
from benchmarks.scale.cluster import Sizes
from benchmarks.scale.setup import POLICIES, SHIPPED, Setup

RESULT = Path("benchmarks/results/scale.json")
EXPONENTS = (0.8, 0.9, 1.0, 1.1, 1.2)
CLUSTERS = (3, 10, 100, 1000)  # numbers of replicas for which the polls are counted
POLL, LEASE = 0.4, 1.0  # the service's settings, in seconds

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Costs = Annotated[Path, typer.Option(help="What `measure` wrote.")]
Out = Annotated[Path, typer.Option(help="Where to write the figures.")]


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Ten replicas, 2,000 tasks: to see that it works.")
    ] = False,
    costs: Costs = measured.FILE,
    bucket_ms: Annotated[
        float,
        typer.Option(help="Of a distant bucket, beside the measured time of one on this machine."),
    ] = 30.0,
    out: Out = RESULT,
    images: Annotated[Path, typer.Option(help="Folder of the plots.")] = Path("docs/images"),
) -> None:
    """Simulate all scenarios; print tables, write JSON and plots."""
    if context.invoked_subcommand is not None:
        return
    try:
        found = measured.read(costs)
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    began = time.process_time()
    setup = Setup(found.costs, found.tokens, bucket_seconds=bucket_ms / 1000)
    requests = 200_000
    if quick:
        setup = replace(setup, tasks=2_000, replicas=10, sizes=Sizes(32, 400, 1_500))
        requests = 6_000
    figures = simulated(setup, requests)
    result = {
        "command": " ".join(["python", "-m", "benchmarks.scale", *sys.argv[1:]]),
        "setup": {
            **{
                name: value
                for name, value in asdict(setup).items()
                if name not in ("costs", "tokens")
            },
            "replica_texts_per_second": round(setup.capacity, 1),
            "policy_shipped": SHIPPED,
        },
        "costs_measured_on": found.hardware,
        **figures,
        "processor_seconds": round(time.process_time() - began),
    }
    if out.exists():  # what `validate` wrote stays
        result |= {
            name: value
            for name, value in json.loads(out.read_text()).items()
            if name == "validation"
        }
    write(out, result)
    plots.draw(result, images)
    show(result)
    Console().print(f"written to {out}; plots in {images}")


def simulated(setup: Setup, requests: int) -> dict[str, Any]:
    """The figures of every scenario."""
    ten, forty = 10.0, 40.0  # seconds
    lighter = replace(setup, load=0.6)
    return {
        "policies": scenarios.policies(setup, EXPONENTS, requests),
        "envoys": scenarios.envoys(setup, (1, 2, 4, 8, 16), requests),
        "faster_device": scenarios.faster_device(setup, 20, requests),
        "scale_out": [scenarios.scale_out(setup, name, ten, forty) for name in scenarios.COMPARED],
        "rolling": [
            scenarios.rolling(setup, name, setup.replicas // 10, 8.0, ten)
            for name in scenarios.COMPARED
        ],
        "zone": [
            *(scenarios.zone(lighter, how, ten, forty) for how in get_args(scenarios.Gone)),
            scenarios.zone(setup, "refuse", ten, forty),
        ],
        "drift": scenarios.drifting(setup, (None, 600.0, 60.0), 2 * requests),
        "bursts": [
            scenarios.burst(setup, setup.tasks // 100, ten, popular, ten, ten)
            for popular in (True, False)
        ],
        "polling": [
            scenarios.polling(setup.costs, more, CLUSTERS, POLL, LEASE)
            for more in (0.0, setup.bucket_seconds)
        ],
    }


@app.command()
def measure(
    data: Annotated[
        Path | None, typer.Option(help="Folder of sst2/dev.jsonl; by default made-up texts.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")
    ] = EMBEDDED,
    slots: Annotated[int, typer.Option(help="Of the engine.")] = 256,
    repeats: Annotated[int, typer.Option(help="Of each batch.")] = 8,
    files: Annotated[int, typer.Option(help="In the bucket.")] = 200,
    out: Out = measured.FILE,
) -> None:
    """Measure batches on the real engine, and files from a real bucket to memory; write JSON."""
    from benchmarks.scale.measure import measure as timed  # torch takes seconds to import

    result = timed(data, backbone, slots, repeats, files, out)
    Console().print(result["costs_seconds"], result["fit_relative_error"])
    Console().print(f"written to {out}")


@app.command()
def validate(
    backbone: Annotated[
        str, typer.Option(help="`tiny` (two layers of 32), `embedded`, a folder, or a hub id.")
    ] = "tiny",
    tasks: Annotated[int, typer.Option(help="In the bucket.")] = 300,
    slots: Annotated[int, typer.Option(help="Of each replica.")] = 16,
    requests: Annotated[int, typer.Option(help="At each rate.")] = 3_000,
    rates: Annotated[str, typer.Option(help="Requests a second.")] = "20,60",
    out: Out = RESULT,
) -> None:
    """Send requests to three real replicas behind a real Envoy, and simulate the same; add both to
    the JSON."""
    from benchmarks.scale.validate import validated

    result = json.loads(out.read_text()) if out.exists() else {}
    found = validated(backbone, tasks, slots, requests, [float(rate) for rate in rates.split(",")])
    command = " ".join(["python", "-m", "benchmarks.scale", *sys.argv[1:]])
    result["validation"] = {"command": command, **found}
    write(out, result)
    Console().print_json(data=found)


def write(out: Path, result: dict[str, Any]) -> None:
    """As one line for each part, so that a change can be read."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in result.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def show(result: dict[str, Any]) -> None:
    columns = ("device hits", "by Che", "memory hits", "p50 ms", "p99 ms", "hottest", "refused")
    table = Table("Zipf", "policy", *columns)
    for row in result["policies"]:
        che = row["che"]
        table.add_row(
            str(row["exponent"]),
            row["policy"],
            str(row["device_hit_rate"]),
            "" if che is None else str(che["device_hit_rate"]),
            str(row["memory_hit_rate"]),
            str(row["p50_ms"]),
            str(row["p99_ms"]),
            str(row["hottest_load"]),
            str(row["refused"]),
            end_section=row["policy"] == POLICIES[-1],
        )
    Console().print(table)


if __name__ == "__main__":
    app()
