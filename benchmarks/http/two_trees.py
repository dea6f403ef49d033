"""Two checkouts of this repository, in turn: processor time of the service on a store in a folder.

    git worktree add --detach ../before COMMIT
    python -m benchmarks.http.two_trees ../before .

A server of each checkout, with one thread and an empty store. In each round each of them is given
the shipped adapters, answers, and has them deleted, and the other one begins each time. What counts
is the server's processor time, so that what else the machine does counts little:

- upload: an adapter, as in `benchmarks.http.upload`, with the first prediction of it.
- prediction: of one text, for the tasks in turn.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Annotated

import httpx2
import psutil
import typer
from rich.console import Console
from rich.table import Table

from adapters.file import parse
from benchmarks.http.server import ROOT, Server, running, surroundings
from benchmarks.http.upload import brought

FILES = sorted((ROOT / "store").glob("*.safetensors"))


def main(
    before: Annotated[Path, typer.Argument(help="The one checkout.")],
    after: Annotated[Path, typer.Argument(help="The other.")],
    rounds: Annotated[int, typer.Option(min=2)] = 10,
    predictions: Annotated[int, typer.Option(min=1, help="Of each round.")] = 100,
) -> None:
    """Print median and range for both, in milliseconds of processor time, and of the ratio of the
    pairs."""
    found: list[list[dict[str, float]]] = [[], []]
    with ExitStack() as stack:
        servers = [stack.enter_context(served(tree.resolve())) for tree in (before, after)]
        for server in servers:
            one_round(server, predictions)  # the first is slower
        for number in range(rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                found[which].append(one_round(servers[which], predictions))
    table = Table("ms of processor time", str(before), str(after), "ratio")
    for what in ("upload", "prediction"):
        old, new = ([each[what] for each in of_tree] for of_tree in found)
        ratios = [b / a for a, b in zip(old, new, strict=True)]
        table.add_row(what, *map(summary, (old, new, ratios)))
    Console().print(table)


def summary(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} – {max(values):.3f})"


@contextmanager
def served(tree: Path) -> Iterator[Server]:
    """The checkout's service."""

    def start(command: list[str], environment: dict[str, str], log: IO[str]) -> psutil.Popen:
        return psutil.Popen(command, env=environment, stdout=log, stderr=log, cwd=tree)

    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "ADAMIX_STORE": f"{folder}/store",
            "ADAMIX_SEED": "none",
            "ADAMIX_LOG_LEVEL": "warning",
            "ADAMIX_MAX_WAIT_SECONDS": "100",
            "ADAMIX_THREADS": "1",
        }
        command = [sys.executable, "-m", "service", "--port", "{port}"]
        with running(command, surroundings(settings), "/ready", start) as server:
            yield server


def one_round(server: Server, predictions: int) -> dict[str, float]:
    """Milliseconds of one upload and of one prediction."""
    specs = [parse(file.read_bytes()).spec for file in FILES]
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        began = spent(server)
        for file in FILES:
            brought(client, file)
        uploaded = spent(server)
        for i in range(predictions):
            spec = specs[i % len(specs)]
            text = dict(zip(("text", "text_pair"), spec.probe.inputs[0], strict=False))
            answer = client.post("/predict", params={"task": spec.task}, json={"inputs": text})
            answer.raise_for_status()
        predicted = spent(server)
        for spec in specs:
            client.delete(f"/adapters/{spec.task}").raise_for_status()
    return {
        "upload": (uploaded - began) / len(FILES),
        "prediction": (predicted - uploaded) / predictions,
    }


def spent(server: Server) -> float:
    """Milliseconds of its processor time so far."""
    times = server.process.cpu_times()
    return 1000 * (times.user + times.system)


if __name__ == "__main__":
    typer.run(main)
