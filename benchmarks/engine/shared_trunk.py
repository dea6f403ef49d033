"""One text for several tasks: what the engine saves where their adapters leave the lowest layers
bare.

    python -m benchmarks.engine.shared_trunk

Random adapters (bottleneck 16, two labels), one text of so many tokens, tasks × lowest adapted
layer. `apart` gives each task a text of its own, of as many tokens, so it costs what the tasks cost
without sharing. One thread a core; every combination takes its turn in each repeat.

What bare layers cost in accuracy stands in docs/results.md, in the earlier table.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import Adapter, parse
from benchmarks import plot
from benchmarks.contest import summary, turns
from benchmarks.stores import random_file
from service.engine.engine import Engine
from service.engine.row import Row
from service.engine.slots import Slots
from training.hardware import hardware


@dataclass(frozen=True)
class Case:
    """So many tasks from a layer on, on one text of so many tokens, and the rows that say the same
    of texts apart."""

    tokens: int
    tasks: int
    layer: int
    together: list[Row]
    apart: list[Row]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"together": [], "apart": []})

    def __str__(self) -> str:
        return f"{self.tokens} tokens, {self.tasks} tasks, from layer {self.layer}"


def main(
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")
    ] = backbones.EMBEDDED,
    tokens: Annotated[str, typer.Option(help="Lengths of the text.")] = "25,128",
    tasks: Annotated[str, typer.Option(help="Numbers of tasks.")] = "1,2,5,10,20",
    layers: Annotated[str, typer.Option(help="Lowest adapted layers.")] = "0,2,3,4,5",
    repeats: Annotated[int, typer.Option(help="Of which medians are taken.")] = 7,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/shared_trunk.json"
    ),
    image: Annotated[Path, typer.Option(help="Where to draw them.")] = Path(
        "docs/images/shared-trunk.svg"
    ),
) -> None:
    """Measure tasks × lowest adapted layer on this machine; print a table, write JSON and a
    plot."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    lengths, counts, lowest = (
        [int(part) for part in parts.split(",")] for parts in (tokens, tasks, layers)
    )
    loaded, cpu = backbones.load(backbone), torch.device("cpu")
    engine = Engine(
        loaded, Slots(len(lowest) * max(counts), cpu, torch.float32), cpu, torch.float32
    )
    adapters = {
        layer: [
            parse(random_file(loaded, f"from-{layer}-{i}", i, first_layer=layer))
            for i in range(max(counts))
        ]
        for layer in lowest
    }
    cases = [
        case_of(loaded, length, adapters[layer][:count], layer)
        for length in lengths
        for count in counts
        for layer in lowest
    ]
    for repeat in range(-1, repeats):  # the first one warms up
        for case in turns(cases, repeat):
            for name, rows in (("together", case.together), ("apart", case.apart)):
                started = time.perf_counter()
                engine.run(rows)
                if repeat >= 0:
                    case.seconds[name].append(time.perf_counter() - started)
    result = {
        "command": " ".join(["python", "-m", "benchmarks.engine.shared_trunk", *sys.argv[1:]]),
        "backbone_layers": loaded.reference.num_layers,
        "cases": [figures(case, cases) for case in cases],
        "hardware": hardware(cpu),
        "versions": {"torch": torch.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    draw(result["cases"], image)
    show(result["cases"])
    Console().print(f"written to {out} and {image}")


def case_of(backbone: Backbone, tokens: int, adapters: list[Adapter], layer: int) -> Case:
    rng = random.Random(tokens)
    # words, no special tokens
    low, high = backbone.config.vocab_size // 10, backbone.config.vocab_size

    def text() -> list[int]:
        return [rng.randrange(low, high) for _ in range(tokens)]

    one = text()
    together = [Row(adapter, one, [0] * tokens) for adapter in adapters]
    return Case(
        tokens,
        len(adapters),
        layer,
        together,
        [Row(adapter, text(), [0] * tokens) for adapter in adapters],
    )


def figures(case: Case, cases: list[Case]) -> dict[str, Any]:
    """Milliseconds, and ratios within repeats: to texts apart, and to one task's pass."""
    alone = next(
        other for other in cases if (other.tokens, other.layer) == (case.tokens, case.layer)
    )
    together, apart = case.seconds["together"], case.seconds["apart"]
    return {
        "tokens": case.tokens,
        "tasks": case.tasks,
        "first_layer": case.layer,
        "together_ms": summary([1000 * seconds for seconds in together]),
        "apart_ms": summary([1000 * seconds for seconds in apart]),
        "apart / together": summary([b / a for a, b in zip(together, apart, strict=True)]),
        f"together / {alone.tasks} task": summary(
            [a / b for a, b in zip(together, alone.seconds["together"], strict=True)]
        ),
    }


def draw(cases: list[dict[str, Any]], file: Path) -> None:
    """How many times as fast one text is for several tasks as texts apart."""
    lengths = sorted({case["tokens"] for case in cases})
    figure, axes = plot.figure(len(lengths), (4.5 * len(lengths), 3.4))
    for axis, tokens in zip([axes] if len(lengths) == 1 else axes, lengths, strict=True):
        for layer in sorted({case["first_layer"] for case in cases}):
            line = [
                case for case in cases if (case["tokens"], case["first_layer"]) == (tokens, layer)
            ]
            ratios = [case["apart / together"] for case in line]
            spread = [
                [abs(ratio[end] - ratio["median"]) for ratio in ratios] for end in ("low", "high")
            ]
            medians = [ratio["median"] for ratio in ratios]
            axis.errorbar(
                [c["tasks"] for c in line],
                medians,
                yerr=spread,
                fmt="o-",
                capsize=3,
                label=f"from layer {layer}",
            )
        axis.set_title(f"one text of {tokens} tokens: times as fast", fontsize="medium")
        axis.set_xlabel("tasks")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize="small")
    plot.save(figure, file)


def show(cases: list[dict[str, Any]]) -> None:
    names = list(cases[0])
    table = Table(*names)
    for case in cases:
        cells = [
            f"{c['median']:g} ({c['low']:g} – {c['high']:g})" if isinstance(c, dict) else str(c)
            for c in case.values()
        ]
        table.add_row(*cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    typer.run(main)
