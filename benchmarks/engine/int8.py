"""What the int8 backbone costs and gains: every shipped task on its whole dev file, and bare linear
layers.

    python -m benchmarks.engine.int8 --data DATA

float32 and int8 take turns on the very same batches, in which rows of all tasks are mixed; the
logits give each task's scores, the times a ratio. The linear layers are measured at the embedded
backbone's shapes, quantising the activations included. Times are the processor's, not the wall's:
they hardly depend on who else uses the machine.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import Adapter, parse
from adapters.text import encode
from benchmarks.glue.data import sample
from service.engine.engine import Engine
from service.engine.linear import Prepacked
from service.engine.native.choice import choose
from service.engine.native.library import Library
from service.engine.native.linear import Native, NativeQuantized
from service.engine.quantized import Quantized
from service.engine.row import Row
from service.engine.slots import Slots
from training import scoring, tasks
from training.data import Columns, Dataset
from training.hardware import hardware
from training.tasks import TASKS

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "int8": torch.int8}
TOKENS = (64, 256, 1024, 4096)


def main(
    data: Annotated[
        Path,
        typer.Option(help="Folder of the tasks' folders with their train.jsonl and dev.jsonl."),
    ],
    store: Annotated[
        Path, typer.Option(help="Folder of adapter files, each named for its task.")
    ] = Path("store"),
    rows: Annotated[int | None, typer.Option(help="Of each dev file; by default all.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/int8.json"
    ),
) -> None:
    """Compare the int8 backbone with the float32 one on this CPU; print tables and write JSON."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    console = Console()
    backbone = backbones.load()
    kernels = {name: choose("auto", CPU, dtype) for name, dtype in DTYPES.items()}
    engines = {
        name: Engine(
            backbone, Slots(16, CPU, torch.float32), CPU, dtype, native=kernels[name].library
        )
        for name, dtype in DTYPES.items()
    }
    adapters = {file.stem: parse(file.read_bytes()) for file in sorted(store.glob("*.safetensors"))}
    datasets = {task: _dev(data, task, rows) for task in adapters}
    logits, ratio = _answers(engines, backbone, adapters, datasets)
    scores = {
        task: {name: _score(task, datasets[task], found) for name, found in logits[task].items()}
        for task in adapters
    }
    result = {
        "command": " ".join(["python", "-m", "benchmarks.engine.int8", *sys.argv[1:]]),
        "scores": scores,
        "rows": {task: len(dataset.texts) for task, dataset in datasets.items()},
        "same_answer": {task: _agreement(*logits[task].values()) for task in adapters},
        "int8 / float32": ratio,
        "backbone_bytes": {name: engine.encoder.bytes for name, engine in engines.items()},
        "kernels": {
            name: "torch" if chosen.library is None else f"native ({chosen.library.kind})"
            for name, chosen in kernels.items()
        },
        "linears": (linears := _linears(backbone, kernels["int8"].library)),
        "hardware": hardware(CPU),
        "versions": {"torch": torch.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    console.print(_score_table(result))
    console.print(
        f"the whole engine, int8 / float32: {ratio['median']:.2f} ({ratio['low']:.2f} –"
        f" {ratio['high']:.2f})"
    )
    console.print(_linear_table(linears))
    console.print(f"written to {out}")


def _dev(data: Path, task: str, rows: int | None) -> Dataset:
    (_, dataset), _ = tasks.read(task, data, Columns(), None)
    return sample(dataset, rows, random.Random(0))


def _answers(
    engines: dict[str, Engine],
    backbone: Backbone,
    adapters: dict[str, Adapter],
    datasets: dict[str, Dataset],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Each task's logits by each engine, in the dataset's order; and how many times faster int8
    was."""
    rows: list[tuple[str, int, Row]] = []
    for task, adapter in adapters.items():
        assert adapter.spec.labels == datasets[task].labels, (
            f"{task} has other labels than its data"
        )
        tokens = encode(backbone.tokenizer, datasets[task].texts, adapter.spec.max_length)
        rows += [(task, i, Row(adapter, row.ids, row.types)) for i, row in enumerate(tokens)]
    random.Random(0).shuffle(rows)
    found: dict[str, dict[str, list[list[float]]]] = {
        task: {name: [[] for _ in datasets[task].texts] for name in engines} for task in adapters
    }
    ratios = []
    for start in range(0, len(rows), 32):
        batch = rows[start : start + 32]
        seconds = {}
        for name, engine in engines.items():
            started = time.process_time()
            answers = engine.run([row for _, _, row in batch])
            seconds[name] = time.process_time() - started
            for (task, i, _), answer in zip(batch, answers, strict=True):
                found[task][name][i] = answer
        ratios.append(seconds["float32"] / seconds["int8"])
    logits = {
        task: {name: torch.tensor(values) for name, values in by.items()}
        for task, by in found.items()
    }
    return logits, _summary(ratios)


def _score(task: str, dataset: Dataset, logits: Tensor) -> dict[str, float]:
    return scoring.scores(dataset, logits, TASKS[task].positive)


def _agreement(one: Tensor, other: Tensor) -> float:
    """The share of rows with the same best label; of numbers, how far they are apart at most."""
    if one.shape[1] == 1:
        return (one - other).abs().max().item()
    return (one.argmax(dim=1) == other.argmax(dim=1)).float().mean().item()


@torch.inference_mode()
def _linears(backbone: Backbone, native: Library | None) -> list[dict[str, Any]]:
    """How many times as fast as `F.linear` in float32, by shape; medians of interleaved repeats."""
    d, inner = backbone.config.hidden_size, backbone.config.intermediate_size
    found = []
    for inputs, outputs in ((d, 3 * d), (d, d), (d, inner), (inner, d)):
        weight, bias = torch.randn(outputs, inputs) * 0.05, torch.randn(outputs)
        half, half_bias = weight.bfloat16(), bias.bfloat16()
        prepacked, quantized = Prepacked(weight, bias), Quantized(weight, bias)
        for tokens in TOKENS:
            x = torch.randn(tokens, inputs)
            half_x = x.bfloat16()
            runs: dict[str, Callable[[], Tensor]] = {
                "float32": lambda x=x, w=weight, b=bias: F.linear(x, w, b),
                "float32 prepacked": lambda x=x, p=prepacked: p(x),
                "bfloat16": lambda x=half_x, w=half, b=half_bias: F.linear(x, w, b),
                "int8": lambda x=x, q=quantized: q(x),
            }
            if native is not None:
                runs["float32 native"] = partial(Native(native, weight, bias), x)
                runs["int8 native"] = partial(NativeQuantized(native, weight, bias), x)
            times = _interleaved(runs, repeats=9)
            rate = 8 * tokens * inputs * outputs / statistics.median(times["float32"]) / 1e9
            ratios = {
                name: statistics.median(
                    [a / b for a, b in zip(times["float32"], times[name], strict=True)]
                )
                for name in runs
            }
            found.append(
                {
                    "inputs": inputs,
                    "outputs": outputs,
                    "tokens": tokens,
                    "gflops": rate,
                    "ratios": ratios,
                }
            )
    return found


def _interleaved(runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each run in every repeat but the first, which warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-1, repeats):
        for name, run in runs.items():
            started = time.process_time()
            for _ in range(4):
                run()
            if repeat >= 0:
                times[name].append(time.process_time() - started)
    return times


def _summary(values: list[float]) -> dict[str, float]:
    """The middle, and where nine of ten lie."""
    low, *_, high = statistics.quantiles(values, n=20)
    return {"median": statistics.median(values), "low": low, "high": high}


def _score_table(result: dict[str, Any]) -> Table:
    table = Table("task", "rows", "metric", "float32", "int8", "difference, points", "same answer")
    for task, scores in result["scores"].items():
        for metric in dict.fromkeys(
            (TASKS[task].metric, *(("f1",) if TASKS[task].positive else ()))
        ):
            before, after = scores["float32"][metric] * 100, scores["int8"][metric] * 100
            same = result["same_answer"][task]
            row = (f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}", f"{same:.4f}")
            table.add_row(task, str(result["rows"][task]), metric, *row)
    return table


def _linear_table(linears: list[dict[str, Any]]) -> Table:
    table = Table("shape", "tokens", "float32, GFLOP/s", *list(linears[0]["ratios"])[1:])
    for entry in linears:
        cells = [f"{ratio:.2f}×" for name, ratio in entry["ratios"].items() if name != "float32"]
        table.add_row(
            f"{entry['inputs']} → {entry['outputs']}",
            str(entry["tokens"]),
            f"{entry['gflops']:.0f}",
            *cells,
        )
    return table


if __name__ == "__main__":
    typer.run(main)
