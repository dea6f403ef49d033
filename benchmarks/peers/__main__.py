"""The engine and the service beside what others serve many tasks with.

    python -m benchmarks.peers --data DATA

Everybody runs in a process of its own with as many threads as there are cores, in float32 unless
its name says int8, on the same backbone, and takes turns repeat by repeat on the very same texts,
another one first each time; ratios are taken within a repeat, medians and ranges over the repeats,
int8 against int8. Time is the clock's. Texts belong to tasks at random. Weights of adapters and
copies are random: they do not change the work, and where two hold the same ones their answers in
float32 are compared before anything is timed.

Engines, tokenising included, in mixed batches and one text at a time:
- mixed: this engine, one adapter (bottleneck 16) and one head per task
- bare: this engine without adapters and heads
- copies: transformers, one full copy per task, by turns
- peft: PEFT's mixed batch, a LoRA of as many parameters per task
- BatchSplit, switching: AdapterHub, holding the very adapters that `mixed` holds
- onnxruntime, openvino: one session, or compiled model, with a full copy per task, by turns
  (`contestants/` says how each is made; `benchmarks.peers.runtimes` measures them on one core)

Servers, one text a request:
- service: this service with all tasks
- pipelines: FastAPI and transformers' pipelines, one full copy per task
- infinity: Infinity's /classify, one model for all: it has no adapters
- onnxruntime, openvino: FastAPI and one of their sessions with a full copy per task

AdapterHub and Infinity need other versions of transformers than we do: each gets an environment
under var/peers at its first use, with the same torch. So do ONNX Runtime and OpenVINO, from locks.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from adapters import backbone as backbones
from benchmarks import plot
from benchmarks.contest import prepare, ratios, read_rows, summary
from benchmarks.peers import over_http
from benchmarks.peers.engines import Engines
from training.hardware import hardware

HTTP = "over HTTP"


def main(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of sst2/ and mnli/dev.jsonl; by default made-up texts."),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="`embedded`, or a folder with a BERT.")
    ] = backbones.EMBEDDED,
    tasks: Annotated[int, typer.Option(help="Tasks, and full copies.")] = 32,
    batch: Annotated[int, typer.Option(help="Rows in a batch.")] = 32,
    batches: Annotated[int, typer.Option(help="Batches in a repeat.")] = 4,
    repeats: Annotated[int, typer.Option(help="Repeats, of which medians are taken.")] = 7,
    seconds: Annotated[float, typer.Option(help="Of HTTP load in a repeat.")] = 4.0,
    concurrency: Annotated[int, typer.Option(help="HTTP requests at once.")] = 32,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out a contestant: `adapterhub`, `infinity`, `onnxruntime`, `openvino`,"
            " `peft`; or all `int8`."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/peers.json"
    ),
    image: Annotated[Path, typer.Option(help="Where to draw them.")] = Path(
        "docs/images/peers.svg"
    ),
) -> None:
    """Measure this repository and its peers side by side on this machine's CPU; print a table,
    write JSON and a plot."""
    settings = {name: value for name, value in locals().items() if name not in ("out", "image")}
    # to be named in the results; each process sets its own
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rng = random.Random(0)
    texts = {name: read_rows(data, name, rng) for name in ("sst2", "mnli")}
    work = {}
    for name, rows in texts.items():
        drawn = [
            [(rng.randrange(tasks), rng.choice(rows)) for _ in range(batch)] for _ in range(batches)
        ]
        work |= {
            f"{name}, batches of {batch}": drawn,
            f"{name}, one at a time": [[row] for row in drawn[0]],
        }
    questions = [(task, row[0]) for task, row in work[f"sst2, batches of {batch}"][0][:8]]

    with tempfile.TemporaryDirectory() as folder:
        materials = prepare(Path(folder), backbone, tasks)
        engines = Engines(materials, set(without or ()))
        parity = engines.check([batches[0] for batches in work.values() if len(batches[0]) > 1])
        expected = engines.workers["ours"].answers(
            "mixed", [(task, [text]) for task, text in questions]
        )
        rates = {
            name: {
                run: [sum(map(len, batches)) / one.wall for one in took]
                for run, took in engines.measure(batches, repeats).items()
            }
            for name, batches in work.items()
        }
        versions = engines.close()
        with over_http.started(materials, set(without or ())) as servers:
            parity |= servers.check(questions, [softmax(row) for row in expected])
            phases = servers.measure(
                [row[0] for row in texts["sst2"]], tasks, repeats, seconds, concurrency
            )
    rates[HTTP] = {name: [phase.rate for phase in group] for name, group in phases.items()}
    result = {
        "command": " ".join(["python", "-m", "benchmarks.peers", *sys.argv[1:]]),
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in settings.items()
        },
        "greatest_difference_of_answers": parity,
        "texts_per_second": {
            name: {run: summary(values) for run, values in group.items()}
            for name, group in rates.items()
        },
        "ratios": {
            name: ratios("service" if name == HTTP else "mixed", group)
            for name, group in rates.items()
        },
        "http": {name: [phase.figures() for phase in group] for name, group in phases.items()},
        "hardware": hardware(torch.device("cpu")),
        "versions": versions,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    draw(result, image)
    show(result)
    Console().print(f"written to {out} and {image}")


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(x - max(logits)) for x in logits]
    return [x / sum(exponentials) for x in exponentials]


def draw(result: dict[str, Any], file: Path) -> None:
    """Throughput, a panel for each workload, with ranges as error bars."""
    groups = result["texts_per_second"]
    figure, panels = plot.figure(len(groups), (3.2 * len(groups), 3))
    for axes, (name, figures) in zip(panels, groups.items(), strict=True):
        runs = list(reversed(figures))
        medians = [figures[run]["median"] for run in runs]
        spread = [
            [abs(figures[run][end] - figures[run]["median"]) for run in runs]
            for end in ("low", "high")
        ]
        colours = [
            "tab:blue" if run.startswith(("mixed", "service")) else "lightgrey" for run in runs
        ]
        axes.barh(runs, medians, xerr=spread, color=colours, capsize=3)
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("texts/s")
    plot.save(figure, file)


def show(result: dict[str, Any]) -> None:
    table = Table("workload", "what", "texts/s", "range", "ours / it", "range")
    for name, figures in result["texts_per_second"].items():
        against = {key.split(" / ")[1]: ratio for key, ratio in result["ratios"][name].items()}
        for run, rate in figures.items():
            cells = [name, run, f"{rate['median']:.4g}", f"{rate['low']:.4g} – {rate['high']:.4g}"]
            if ratio := against.get(run):
                cells += [f"{ratio['median']:.3g}×", f"{ratio['low']:.3g} – {ratio['high']:.3g}"]
            table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
