"""What a shadow of all requests costs those who are answered: requests a second with it and without
it, in turns on one server.

    python -m benchmarks.http.shadow

The callers of a closed loop ask again as soon as they are answered, so the device always works: the
shadow gets a tenth of the time, and the rows that it does not get to are dropped. The shadow is the
task's own file under another training record: it computes the same.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import httpx2
import torch
import typer
from rich.console import Console
from rich.table import Table

from adapters import backbone as backbones
from adapters.file import load, parse, serialize
from adapters.store import Store
from benchmarks.contest import summary
from benchmarks.http.load import Call, closed_loop
from benchmarks.http.server import ROOT, service
from training.hardware import hardware

CALLERS = (1, 8, 32)
TEXTS = (
    "a charming and often affecting journey",
    "the plot has no point and the jokes are tired",
    "two hours of wooden acting, and then no end",
    "nobody asked for this film, and yet I would see it again with real pleasure",
)


def main(
    file: Annotated[Path, typer.Option(help="The task's adapter file.")] = Path(
        "store/sst2.safetensors"
    ),
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")
    ] = backbones.EMBEDDED,
    rounds: Annotated[int, typer.Option(help="Turns with the shadow, and as many without.")] = 7,
    seconds: Annotated[float, typer.Option(help="Of one turn.")] = 4.0,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/shadow.json"
    ),
) -> None:
    """Measure what a shadow costs on this machine; print a table and write JSON."""
    # to be named in the results; the server sets its own
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    adapter = load(file)
    task = adapter.spec.task
    again = adapter.spec.model_copy(update={"training": {"recipe": "the same again"}})
    (ROOT / "var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "var") as folder:
        with Store(Path(folder)) as store:
            shadow = store.put(parse(serialize(again, adapter.tensors)))[0].digest
            active = store.put(adapter)[0].digest
        split = {"active": active, "shadow": {"version": shadow, "percent": 100}}
        with (
            service(Path(folder), backbone) as server,
            httpx2.Client(base_url=server.url, timeout=60) as client,
        ):
            figures = [
                measured(client, server.url, task, split, callers, rounds, seconds)
                for callers in CALLERS
            ]
    result = {
        "command": " ".join(["python", "-m", "benchmarks.http.shadow", *sys.argv[1:]]),
        "loads": figures,
        "hardware": hardware(torch.device("cpu")),
        "versions": {"torch": torch.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("callers", "without, requests/s", "with", "ratio", "range", "compared")
    for load_ in figures:
        ratio = load_["ratio"]
        table.add_row(
            str(load_["callers"]),
            f"{load_['without']['median']:.1f}",
            f"{load_['with']['median']:.1f}",
            f"{ratio['median']:.3f}",
            f"{ratio['low']:.3f} – {ratio['high']:.3f}",
            f"{load_['compared']:.1%}",
        )
    Console().print(table)
    Console().print(f"written to {out}")


def measured(
    client: httpx2.Client,
    url: str,
    task: str,
    split: dict[str, Any],
    callers: int,
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """The figures of one load; `compared` is the share of the rows that the shadow got to."""
    path = f"/adapters/{task}/traffic"
    bodies = [json.dumps({"inputs": text}).encode() for text in TEXTS]
    rates: dict[str, list[float]] = {"without": [], "with": []}
    rows = compared = 0
    for turn in range(rounds):
        for what in sorted(rates, reverse=turn % 2 == 0):
            with_shadow = what == "with"
            body = split if with_shadow else {"active": split["active"]}
            client.put(path, json=body).raise_for_status()
            calls = (Call(f"/predict?task={task}", each) for each in itertools.cycle(bodies))
            closed_loop(url, calls, seconds / 4, callers)  # the adapters are on the device then
            rates[what].append(closed_loop(url, calls, seconds, callers).rate)
            if with_shadow:
                seen = client.get(path).raise_for_status().json()["seen"]
                rows, compared = rows + seen["active"]["rows"], compared + seen["shadow"]["rows"]
    ratios = [a / b for a, b in zip(rates["with"], rates["without"], strict=True)]
    return {
        "callers": callers,
        **{what: summary(found) for what, found in rates.items()},
        "ratio": summary(ratios),
        "compared": compared / rows,
    }


if __name__ == "__main__":
    typer.run(main)
