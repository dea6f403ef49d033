"""Two checkouts of this repository, in turn: processor time of the service on a store in a folder.

    git worktree add --detach ../before COMMIT
    python -m benchmarks.http.two_trees ../before .

Each repeat starts a server of each checkout, the other one first each time, on an empty store and
with one thread. Processor time of the server, so that what else the machine does counts little:

- start: until it is ready.
- upload: of a shipped adapter, as in `benchmarks.http.upload`, with the first prediction of it.
- prediction: of one text, for the uploaded tasks in turn.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import httpx2
import psutil
import typer
from rich.console import Console
from rich.table import Table

from adapters.file import parse
from benchmarks.http.server import running, surroundings
from benchmarks.http.upload import brought

MEASURED = ("start", "upload", "prediction")


def main(
    before: Annotated[Path, typer.Argument(help="The one checkout.")],
    after: Annotated[Path, typer.Argument(help="The other.")],
    repeats: Annotated[int, typer.Option(min=2, help="Servers of each.")] = 10,
    predictions: Annotated[int, typer.Option(min=1, help="Of each server.")] = 300,
) -> None:
    """Print each figure's median and range for both, in milliseconds, and the ratio of the pairs."""
    trees = (before.resolve(), after.resolve())
    found: dict[Path, list[dict[str, float]]] = {tree: [] for tree in trees}
    for repeat in range(repeats):
        for tree in trees if repeat % 2 else trees[::-1]:
            found[tree].append(measured(tree, predictions))
    table = Table("what, ms of processor time", *map(str, (before, after)), "ratio")
    for what in MEASURED:
        columns = [[each[what] for each in found[tree]] for tree in trees]
        ratios = [new / old for old, new in zip(*columns, strict=True)]
        table.add_row(what, *(summary(column) for column in columns), summary(ratios))
    Console().print(table)


def summary(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} – {max(values):.3g})"


def measured(tree: Path, predictions: int) -> dict[str, float]:
    """One server of the checkout: its milliseconds."""
    files = sorted((tree / "store").glob("*.safetensors"))
    with tempfile.TemporaryDirectory() as store:
        settings = {
            "ADAMIX_STORE": f"{store}/store",
            "ADAMIX_SEED": "none",
            "ADAMIX_LOG_LEVEL": "warning",
            "ADAMIX_MAX_WAIT_SECONDS": "100",
            "ADAMIX_THREADS": "1",
        }

        def start(command: list[str], environment: dict[str, str], log: object) -> psutil.Popen:
            return psutil.Popen(command, env=environment, stdout=log, stderr=log, cwd=tree)

        command = [sys.executable, "-m", "service", "--port", "{port}"]
        with (
            running(command, surroundings(settings), "/ready", start) as server,
            httpx2.Client(base_url=server.url, timeout=60) as client,
        ):
            ready = spent(server.process)
            for file in files:
                brought(client, file)
            uploaded = spent(server.process)
            specs = [parse(file.read_bytes()).spec for file in files]
            for i in range(predictions):
                spec = specs[i % len(specs)]
                text = dict(zip(("text", "text_pair"), spec.probe.inputs[0], strict=False))
                answer = client.post("/predict", params={"task": spec.task}, json={"inputs": text})
                answer.raise_for_status()
            predicted = spent(server.process)
    return {
        "start": ready,
        "upload": (uploaded - ready) / len(files),
        "prediction": (predicted - uploaded) / predictions,
    }


def spent(process: psutil.Process) -> float:
    """Milliseconds of processor time so far."""
    times = process.cpu_times()
    return 1000 * (times.user + times.system)


if __name__ == "__main__":
    typer.run(main)
