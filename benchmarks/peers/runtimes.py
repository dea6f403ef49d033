"""The engine beside the runtimes that one serves with on a CPU, one text at a time and in batches,
in float32 and in int8.

    python -m benchmarks.peers.runtimes --data DATA
    python -m benchmarks.peers.runtimes --data DATA --cores 2

On one core, time is the processor's: other programs hardly change it. On more, it is the clock's.
Everybody runs in a process of its own with one thread per core, tokenises inside the measured time,
and takes turns repeat by repeat on the very same texts, another one first each time; ratios are
taken within a repeat, int8 against int8.

- mixed: this engine with an adapter (bottleneck 16) and a head per task
- onnxruntime, openvino: a session, or compiled model, with a full copy per task; a batch of several
  tasks is split, and each part padded to its longest text

Before anything is timed, the logits of one and the same model are compared: float32 must agree
within 1e-3. With `--data`, the runtimes also export the model of a task with its adapter, and the
accuracy on SST-2's dev file is reported beside the difference from our float32, which must be
within 1e-3 as well where the other computes in float32.

A runtime's environment under var/peers is made at its first use.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from adapters import backbone as backbones
from benchmarks.contest import (
    INT8,
    Rows,
    difference,
    greatest,
    prepare,
    ratios,
    read_rows,
    summary,
)
from benchmarks.peers.engines import Engines
from training.hardware import hardware

UNUSED = {"copies", "peft", "adapterhub", "bare"}
Batches = list[list[tuple[int, list[str]]]]


def main(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of sst2/dev.jsonl; by default made-up texts, and no accuracy."),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="`embedded`, or a folder with a BERT.")
    ] = backbones.EMBEDDED,
    cores: Annotated[int, typer.Option(help="Of those that it may use, the first ones.")] = 1,
    tasks: Annotated[int, typer.Option(help="Tasks, and full copies.")] = 32,
    batch: Annotated[int, typer.Option(help="Rows in a batch.")] = 32,
    batches: Annotated[int, typer.Option(help="Batches in a repeat.")] = 4,
    repeats: Annotated[int, typer.Option(help="Repeats, of which medians are taken.")] = 5,
    adapter: Annotated[Path, typer.Option(help="Of SST-2, to judge int8 by.")] = Path(
        "store/sst2.safetensors"
    ),
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out `onnxruntime`, `openvino` or `int8`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the figures, if at all.")] = None,
) -> None:
    """Measure the engine beside ONNX Runtime and OpenVINO on this machine's CPU, and print a
    table."""
    settings = {name: value for name, value in locals().items() if name != "out"}
    rng = random.Random(0)
    rows = read_rows(data, "sst2", rng)
    texts = [rng.choice(rows) for _ in range(batch * batches)]
    work = {
        "one text": [[(0, text)] for text in texts],
        f"batches of {batch}, one task": cut([(0, text) for text in texts], batch),
        f"batches of {batch}, {tasks} tasks": cut(
            [(rng.randrange(tasks), text) for text in texts], batch
        ),
    }
    with using(cores), tempfile.TemporaryDirectory() as folder:
        materials = prepare(Path(folder), backbone, tasks)
        engines = Engines(
            materials, UNUSED | set(without or ()), adapter.resolve() if data else None
        )
        parity = engines.check([work[f"batches of {batch}, {tasks} tasks"][0]])
        answers = judged(engines, data, batch, "int8" not in (without or ())) if data else {}
        took = {name: engines.measure(group, repeats) for name, group in work.items()}
        versions = engines.close()
        found_hardware = hardware(torch.device("cpu"))
    clock = "processor" if cores == 1 else "wall"
    rates = {
        name: {
            run: [len(texts) / getattr(one, clock) for one in times] for run, times in group.items()
        }
        for name, group in took.items()
    }
    result = {
        "command": " ".join(["python", "-m", "benchmarks.peers.runtimes", *sys.argv[1:]]),
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in settings.items()
        },
        "greatest_difference_of_answers": parity,
        "on_sst2": answers,
        "clock": clock,
        "milliseconds_a_text": {
            name: {
                run: {
                    kind: summary([1000 * getattr(one, kind) / len(texts) for one in times])
                    for kind in ("processor", "wall")
                }
                for run, times in group.items()
            }
            for name, group in took.items()
        },
        "ratios": {name: ratios("mixed", group) for name, group in rates.items()},
        "hardware": found_hardware,
        "versions": versions,
    }
    show(result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")
        Console().print(f"written to {out}")


def cut(rows: list[tuple[int, list[str]]], size: int) -> Batches:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@contextlib.contextmanager
def using(cores: int) -> Iterator[None]:
    """This process and those that it starts run on so many cores. Raises BadParameter if there are
    fewer."""
    there, threads = os.sched_getaffinity(0), torch.get_num_threads()
    if not 1 <= cores <= len(there):
        raise typer.BadParameter(f"--cores is {cores}; expected 1 to {len(there)}")
    os.sched_setaffinity(0, sorted(there)[:cores])
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, there)
        torch.set_num_threads(threads)


def judged(engines: Engines, data: Path, batch: int, int8: bool) -> dict[str, dict[str, float]]:
    """Of everybody's logits of SST-2's dev file by the same model: how far they are from our
    float32, how many answers are the same, and how many are right. Raises RuntimeError if float32
    differs."""
    lines = (data / "sst2" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    labels = [int(row["label"] == "positive") for row in rows]
    parts = cut([(0, [row["text"]]) for row in rows], batch)
    found: dict[str, dict[str, float]] = {}
    reference: Rows = []
    for name, worker in engines.workers.items():
        for suffix in ["", INT8] if int8 else [""]:
            logits = [row for part in parts for row in worker.answers(f"adapted{suffix}", part)]
            reference = reference or logits
            if not suffix:
                difference(f"{name} and ours", logits, reference)
            chosen, before = answers_of(logits), answers_of(reference)
            found[name + suffix] = {
                "greatest_difference": greatest(logits, reference),
                "same_answer": share(chosen, before),
                "accuracy": share(chosen, labels),
            }
    return found


def answers_of(logits: Rows) -> list[int]:
    return [row.index(max(row)) for row in logits]


def share(found: list[int], expected: list[int]) -> float:
    return sum(map(int.__eq__, found, expected)) / len(expected)


def show(result: dict[str, Any]) -> None:
    clock = result["clock"]
    table = Table("texts", "what", f"{clock} ms", "ours / it", "range")
    for name, group in result["milliseconds_a_text"].items():
        against = {key.split(" / ")[1]: ratio for key, ratio in result["ratios"][name].items()}
        for run in sorted(group, key=lambda run: run.endswith(INT8)):  # float32 first
            cells = [name.removeprefix("batches of "), run, f"{group[run][clock]['median']:.4g}"]
            if ratio := against.get(run):
                cells += [f"{ratio['median']:.3g}×", f"{ratio['low']:.3g} – {ratio['high']:.3g}"]
            table.add_row(*cells)
        table.add_section()
    Console().print(table)
    if result["on_sst2"]:
        table = Table("on SST-2", "greatest difference", "same answer", "accuracy")
        for run, figures in result["on_sst2"].items():
            difference, shares = figures["greatest_difference"], ("same_answer", "accuracy")
            table.add_row(run, f"{difference:.2g}", *(f"{figures[name]:.4f}" for name in shares))
        Console().print(table)
    Console().print(f"{result['hardware']}; milliseconds of a text, tokenising included")


if __name__ == "__main__":
    typer.run(main)
