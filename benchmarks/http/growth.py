"""The running service from one task to ten thousand: start, memory, throughput, latency.

    python -m benchmarks.http.growth --data DATA

For each size a store of that many valid adapters (bottleneck 16, weights of their own) and `python
-m service` on it, with its default settings. One SST-2 dev text a request; its task is drawn
uniformly, or by Zipf's law with exponent 1.

- start: from the process's start until /ready answers; the files lie in the page cache. Sizes take
  turns.
- memory: of a server alone, after every task was asked for once. "Per further adapter" is the
  private memory (USS) beyond that of the size before, for each further task, over an adapter file's
  size.
- closed: so many callers, each sending its next request when it has its answer. All servers are up,
  and take turns repeat by repeat, another one first each time; ratios to ten tasks are taken within
  a repeat.
- open: Poisson arrivals at a part of `closed`'s median, in turns too; latency counts from when a
  request was to be sent, and is of all repeats together.
- loads: adapters put into a device slot, per request of the closed loop: how many did not find
  theirs there.
- health: /health in the same closed loop. Far above `closed`, or it would be the sender that is
  measured.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate, product
from itertools import repeat as forever
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import torch
import typer
from rich.console import Console
from rich.table import Table

from adapters import backbone as backbones
from adapters.entry import SUFFIX
from benchmarks import plot, stores
from benchmarks.contest import read_rows, summary, turns
from benchmarks.http import load
from benchmarks.http.load import Call, Phase
from benchmarks.http.server import ROOT, Server, service
from training.hardware import hardware

DRAWS = ("uniform", "zipf")
PARTS = (0.5, 0.8)
TOUCHED_AT_ONCE = 64  # tasks of one request
BASE = 10


def main(
    data: Annotated[
        Path | None, typer.Option(help="Folder of sst2/dev.jsonl; by default made-up texts.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")
    ] = backbones.EMBEDDED,
    sizes: Annotated[str, typer.Option(help="Numbers of tasks.")] = "1,10,100,1000,10000",
    starts: Annotated[int, typer.Option(help="Starts of each size; at least 2.")] = 3,
    repeats: Annotated[
        int, typer.Option(help="Of the loops; medians are taken of the closed one.")
    ] = 4,
    seconds: Annotated[float, typer.Option(help="Of load in a repeat.")] = 4.0,
    concurrency: Annotated[int, typer.Option(help="Requests at once in the closed loop.")] = 32,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/growth.json"
    ),
    image: Annotated[Path, typer.Option(help="Where to draw them.")] = Path(
        "docs/images/growth.svg"
    ),
) -> None:
    """Measure the service at growing numbers of tasks on this machine; print a table, write JSON
    and a plot."""
    settings = {name: value for name, value in locals().items() if name not in ("out", "image")}
    # to be named in the results; the servers set their own
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    texts = [row[0] for row in read_rows(data, "sst2", random.Random(0))]
    (ROOT / "var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "var") as folder:
        loaded = backbones.load(backbone)
        stages = []
        for tasks in map(int, sizes.split(",")):
            store = Path(folder) / str(tasks)
            names = stores.fill(store, loaded, tasks)
            file_bytes = next(store.glob(f"{names[0]}/*{SUFFIX}")).stat().st_size
            stages.append(Stage(store, names))
        for repeat in range(starts - 1):
            for stage in turns(stages, repeat):
                with service(stage.store, backbone) as server:
                    stage.starts.append(server.seconds)
                    if repeat == 0:
                        stage.touch(server)
                        stage.memory = server.memory()
        with ExitStack() as stack:
            servers = [stack.enter_context(service(stage.store, backbone)) for stage in stages]
            for stage, server in zip(stages, servers, strict=True):
                stage.starts.append(server.seconds)
                stage.touch(server)
            press(stages, servers, texts, repeats, seconds, concurrency)
    result = {
        "command": " ".join(["python", "-m", "benchmarks.http.growth", *sys.argv[1:]]),
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in settings.items()
        },
        **figures(stages, file_bytes),
        "hardware": hardware(torch.device("cpu")),
        "versions": {"torch": torch.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    draw(result, image)
    show(result)
    Console().print(f"written to {out} and {image}")


@dataclass(eq=False)
class Stage:
    """One number of tasks, and what was measured with it."""

    store: Path
    tasks: list[str]
    starts: list[float] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    closed: dict[str, list[Phase]] = field(default_factory=lambda: {draw: [] for draw in DRAWS})
    opened: dict[str, dict[float, Phase]] = field(
        default_factory=lambda: {draw: {part: Phase() for part in PARTS} for draw in DRAWS}
    )
    loads: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DRAWS, 0))
    health: float = 0.0

    def touch(self, server: Server) -> None:
        """Ask every task once."""
        groups = [
            self.tasks[i : i + TOUCHED_AT_ONCE] for i in range(0, len(self.tasks), TOUCHED_AT_ONCE)
        ]
        paths = ["/predict?" + urlencode([("task", task) for task in group]) for group in groups]
        load.answers(server.url, [Call(path, b'{"inputs": "good"}') for path in paths])

    def calls(self, draw: str, texts: list[str], seed: int) -> Iterator[Call]:
        """Requests without end: the same ones for the same seed."""
        rng = random.Random(seed)
        # the popular ones are no neighbours
        order = random.Random(0).sample(self.tasks, len(self.tasks))
        weights = list(
            accumulate(1 / rank if draw == "zipf" else 1 for rank in range(1, len(order) + 1))
        )
        while True:
            (task,) = rng.choices(order, cum_weights=weights)
            yield Call(
                f"/predict?task={task}",
                json.dumps({"inputs": rng.choice(texts), "truncate": True}).encode(),
            )


def press(
    stages: list[Stage],
    servers: list[Server],
    texts: list[str],
    repeats: int,
    seconds: float,
    concurrency: int,
) -> None:
    """Closed loops, everybody in turn; then open ones, at parts of what the closed ones found."""
    pairs = list(zip(stages, servers, strict=True))
    for stage, server in pairs:
        stage.health = load.closed_loop(
            server.url, forever(Call("/health", method="GET")), seconds / 4, concurrency
        ).rate
    for repeat in range(-1, repeats):  # the first one warms up
        for name in DRAWS:
            for stage, server in turns(pairs, repeat):
                before = adapter_loads(server)
                phase = load.closed_loop(
                    server.url, stage.calls(name, texts, repeat), seconds, concurrency
                )
                if repeat >= 0:
                    stage.closed[name].append(phase)
                    stage.loads[name] += adapter_loads(server) - before
    for repeat in range(repeats):
        for name, part in product(DRAWS, PARTS):
            for stage, server in turns(pairs, repeat):
                rate = part * statistics.median(phase.rate for phase in stage.closed[name])
                calls = stage.calls(name, texts, repeats + repeat)
                stage.opened[name][part].add(
                    load.open_loop(server.url, calls, seconds, rate, seed=repeat)
                )


def adapter_loads(server: Server) -> int:
    """How many adapters the server has put into a slot so far."""
    (text,) = load.answers(
        server.url, [Call("/metrics?name[]=adamix_adapter_loads_total", method="GET")]
    )
    return int(float(text.split()[-1]))


def figures(stages: list[Stage], file_bytes: int) -> dict[str, Any]:
    base = next((stage for stage in stages if len(stage.tasks) == BASE), stages[0])
    sizes = {}
    for before, stage in zip([stages[0], *stages], stages, strict=False):
        further = len(stage.tasks) - len(before.tasks)
        beyond = stage.memory["uss"] - before.memory["uss"]
        sizes[str(len(stage.tasks))] = {
            "start_seconds": summary(stage.starts),
            "memory_bytes": stage.memory,
            "memory_per_further_adapter": round(beyond / further / file_bytes, 3)
            if further
            else None,
            "health_per_second": round(stage.health, 1),
            **{
                name: {
                    "per_second": summary([phase.rate for phase in stage.closed[name]]),
                    "loads_per_request": round(
                        stage.loads[name] / sum(p.requests for p in stage.closed[name]), 3
                    ),
                    "closed": [phase.figures() for phase in stage.closed[name]],
                    "open": {
                        str(part): phase.figures() for part, phase in stage.opened[name].items()
                    },
                }
                for name in DRAWS
            },
        }
    return {
        "adapter_file_bytes": file_bytes,
        "sizes": sizes,
        "throughput_ratios": {
            name: {
                f"{len(stage.tasks)} / {len(base.tasks)}": summary(
                    [
                        a.rate / b.rate
                        for a, b in zip(stage.closed[name], base.closed[name], strict=True)
                    ]
                )
                for stage in stages
            }
            for name in DRAWS
        },
        "start_seconds_beyond_base": {
            str(len(stage.tasks)): summary(
                [a - b for a, b in zip(stage.starts, base.starts, strict=True)]
            )
            for stage in stages
        },
    }


def draw(result: dict[str, Any], file: Path) -> None:
    """Throughput, latency under load and memory over the number of tasks."""
    sizes = {int(tasks): found for tasks, found in result["sizes"].items()}
    figure, (speed, latency, memory) = plot.figure(3, (11, 3.4))
    for name in DRAWS:
        rates = [found[name]["per_second"] for found in sizes.values()]
        spread = [[abs(rate[end] - rate["median"]) for rate in rates] for end in ("low", "high")]
        speed.errorbar(
            list(sizes),
            [rate["median"] for rate in rates],
            yerr=spread,
            fmt="o-",
            capsize=3,
            label=name,
        )
        for part, style in zip(PARTS, ("o--", "s-"), strict=True):
            p99 = [found[name]["open"][str(part)]["p99_ms"] for found in sizes.values()]
            latency.plot(list(sizes), p99, style, label=f"{name}, {100 * part:.0f} %")
    memory.plot(
        list(sizes), [found["memory_bytes"]["uss"] / 2**20 for found in sizes.values()], "o-"
    )
    for axes, title in (
        (speed, "texts/s, closed loop"),
        (latency, "p99 in ms at a part of that"),
        (memory, "private memory in MiB"),
    ):
        axes.set_title(title, fontsize="medium")
        axes.set_xscale("log")
        axes.set_xlabel("tasks")
        axes.set_ylim(bottom=0)
    speed.legend()
    latency.legend(fontsize="small")
    plot.save(figure, file)


def show(result: dict[str, Any]) -> None:
    columns = [f"{name} {of}" for name in DRAWS for of in ("texts/s", "ratio", "p99")]
    table = Table("tasks", "start", "USS", "a further one / its file", *columns)
    for tasks, found in result["sizes"].items():
        cells = []
        for name in DRAWS:
            ratio = next(
                v
                for key, v in result["throughput_ratios"][name].items()
                if key.startswith(f"{tasks} /")
            )
            p99 = [f"{found[name]['open'][str(part)]['p99_ms']:.0f}" for part in PARTS]
            cells += [
                f"{found[name]['per_second']['median']:.4g}",
                f"{ratio['median']:.3f}",
                " / ".join(p99) + " ms",
            ]
        uss = f"{found['memory_bytes']['uss'] / 2**20:.0f} MiB"
        table.add_row(
            tasks,
            f"{found['start_seconds']['median']:.2f} s",
            uss,
            str(found["memory_per_further_adapter"]),
            *cells,
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
