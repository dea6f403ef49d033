"""What mixing tasks in one batch costs: against the bare backbone, transformers' full copies, the
machine's matmul rate.

    python -m benchmarks.engine.mixed_batch --texts DATA/sst2/dev.jsonl

Texts are tokenised inside the measured time, and belong to tasks at random. The systems take turns,
repeat by repeat, on the very same batches, so that a slow minute of the machine hits all of them;
ratios are taken within a repeat, and medians and ranges are over the repeats. Weights of adapters
and copies are random: they do not change the work.

- mixed: this service's engine, one backbone, one adapter (bottleneck 16) and one head per task; its
  backbone in `--dtype`, all other systems in float32
- bare: the same engine without adapters and heads, rows of one batch as before
- copies: transformers, one full copy of the model per task; a batch is split by task, each part
  padded
- matmul: the encoder's linear layers alone, at the batch's own number of tokens
  (torch.nn.functional.linear)
"""

from __future__ import annotations

import copy
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import transformers
import typer
from rich.console import Console
from rich.table import Table

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import parse
from adapters.text import encode
from benchmarks.stores import MAX_LENGTH, random_file
from service.engine.engine import Engine
from service.engine.row import Row
from service.engine.slots import Slots
from training.hardware import hardware

Batch = list[tuple[int, str]]  # (task, text)


def main(
    texts: Annotated[
        Path | None, typer.Option(help="JSON lines with a `text`; by default made-up ones.")
    ] = None,
    tasks: Annotated[int, typer.Option(help="Tasks, and full copies.")] = 32,
    batch: Annotated[int, typer.Option(help="Rows in a batch.")] = 32,
    batches: Annotated[int, typer.Option(help="Batches in a repeat.")] = 8,
    repeats: Annotated[int, typer.Option(help="Repeats, of which medians are taken.")] = 9,
    dtype: Annotated[
        Literal["float32", "int8"], typer.Option(help="Of the engine's backbone.")
    ] = "float32",
    kinds: Annotated[
        bool,
        typer.Option("--kinds", help="Bottlenecks and LoRA in one batch instead, beside PEFT."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/mixed_batch.json"
    ),
) -> None:
    """Measure mixed batches on this machine's CPU; print a table and write JSON."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rng = random.Random(0)
    corpus = read_texts(texts, rng)
    if kinds:
        from benchmarks.engine.kinds import measure  # PEFT takes seconds to import

        measure(corpus, batches, repeats, out, str(texts))
        return
    work = [
        [(rng.randrange(tasks), rng.choice(corpus)) for _ in range(batch)] for _ in range(batches)
    ]
    backbone = backbones.load()
    systems = Systems(backbone, tasks, getattr(torch, dtype))
    systems.check(work[0])

    timed: dict[str, list[float]] = {}
    runs: dict[str, Callable[[Batch], object]] = {
        "mixed": systems.mixed,
        "bare": systems.bare,
        "copies": systems.copies,
        "encoder": systems.encoder,
        "matmul": systems.matmul,
    }
    for repeat in range(-1, repeats):  # the first one warms up
        for name, run in runs.items():
            seconds = sum(timed_call(run, one) for one in work)
            if repeat >= 0:
                timed.setdefault(name, []).append(seconds)
    settings = {
        "tasks": tasks,
        "batch": batch,
        "repeats": repeats,
        "texts": str(texts),
        "dtype": dtype,
    }
    report(timed, systems, work, settings, out)


class Systems:
    """What is compared, on one set of weights."""

    def __init__(self, backbone: Backbone, tasks: int, dtype: torch.dtype) -> None:
        self.backbone = backbone
        self.adapters = [parse(random_file(backbone, f"task-{i}", seed=i)) for i in range(tasks)]
        device = torch.device("cpu")
        self.engine = Engine(backbone, Slots(tasks, device, torch.float32), device, dtype)
        # of a row's hidden states, by their norm
        self.tolerance = 0.1 if dtype == torch.int8 else 1e-5
        config = copy.deepcopy(backbone.config)
        config.num_labels = 2
        self.models = [
            transformers.BertForSequenceClassification(config).eval() for _ in range(tasks)
        ]
        for model in self.models:
            model.bert.load_state_dict(backbone.encoder.state_dict())

    def rows(self, batch: Batch) -> list[Row]:
        tokens = encode(self.backbone.tokenizer, [(text,) for _, text in batch], MAX_LENGTH)
        return [
            Row(self.adapters[task], row.ids, row.types)
            for (task, _), row in zip(batch, tokens, strict=True)
        ]

    def mixed(self, batch: Batch) -> list[list[float]]:
        return self.engine.run(self.rows(batch))

    @torch.inference_mode()
    def bare(self, batch: Batch) -> Any:
        packed = self.engine.encoder.pack([(row.ids, row.types) for row in self.rows(batch)])
        hidden = self.engine.encoder.forward(packed)
        return self.engine.encoder.pool_mean(hidden, packed).tolist()

    @torch.inference_mode()
    def copies(self, batch: Batch) -> list[Any]:
        """By task, as a server of full models would; padded with an attention mask, transformers'
        default attention."""
        answers = []
        by_task: dict[int, list[str]] = {}
        for task, text in batch:
            by_task.setdefault(task, []).append(text)
        for task, group in by_task.items():
            rows = encode(self.backbone.tokenizer, [(text,) for text in group], MAX_LENGTH)
            width = max(len(row.ids) for row in rows)
            ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
            mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
            answers.append(self.models[task](input_ids=ids, attention_mask=mask).logits.tolist())
        return answers

    @torch.inference_mode()
    def encoder(self, batch: Batch) -> Any:
        """The encoder alone, on ready ids: what is held against the matmul rate."""
        packed = self.packed(batch)
        return Timed(lambda: self.engine.encoder.forward(packed))

    @torch.inference_mode()
    def matmul(self, batch: Batch) -> Any:
        """Every linear layer of the encoder, one after the other, at the batch's number of
        tokens."""
        d, inner = self.backbone.config.hidden_size, self.backbone.config.intermediate_size
        tokens = self.packed(batch).ids.shape[0]
        x, wide = torch.randn(tokens, d), torch.randn(tokens, inner)
        layers = list(self.backbone.encoder.encoder.layer)
        qkv = [torch.randn(3 * d, d) for _ in layers]

        def run() -> None:
            for weight, layer in zip(qkv, layers, strict=True):
                F.linear(x, weight)
                F.linear(x, layer.attention.output.dense.weight)
                F.linear(x, layer.intermediate.dense.weight)
                F.linear(wide, layer.output.dense.weight)

        return Timed(run)

    def packed(self, batch: Batch) -> Any:
        return self.engine.encoder.pack([(row.ids, row.types) for row in self.rows(batch)])

    def check(self, batch: Batch) -> None:
        """Before any timing: the bare engine and transformers agree on what they compute."""
        rows = self.rows(batch)
        packed = self.engine.encoder.pack([(row.ids, row.types) for row in rows])
        with torch.inference_mode():
            hidden = self.engine.encoder.forward(packed)
            for row, start in zip(rows, packed.starts.tolist(), strict=True):
                wanted = self.models[0].bert(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
                found = hidden[start : start + len(row.ids)]
                assert (found - wanted).norm() < self.tolerance * wanted.norm()

    def flops(self, batch: Batch) -> tuple[float, float]:
        """Of one batch: the linear layers', and with the attention products too."""
        config = self.backbone.config
        d, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
        lengths = [len(row.ids) for row in self.rows(batch)]
        linear = 2.0 * layers * sum(lengths) * (4 * d * d + 2 * d * inner)
        return linear, linear + 4.0 * layers * d * sum(length * length for length in lengths)


class Timed:
    """Work whose preparation is not to be measured: `timed_call` runs and times the inner part
    only."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.run = run


def timed_call(run: Callable[[Batch], object], batch: Batch) -> float:
    started = time.perf_counter()
    result = run(batch)
    if isinstance(result, Timed):
        with torch.inference_mode():
            started = time.perf_counter()
            result.run()
    return time.perf_counter() - started


def read_texts(path: Path | None, rng: random.Random) -> list[str]:
    if path is not None:
        return [
            json.loads(line)["text"]
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    words = [
        "the",
        "film",
        "is",
        "a",
        "good",
        "and",
        "moving",
        "story",
        "of",
        "people",
        "in",
        "love",
        "with",
        "life",
    ]
    return [" ".join(rng.choices(words, k=max(1, round(rng.gauss(19, 9))))) for _ in range(1000)]


def report(
    timed: dict[str, list[float]],
    systems: Systems,
    work: list[Batch],
    settings: dict[str, Any],
    out: Path,
) -> None:
    rows = sum(map(len, work))
    linear, whole = (sum(parts) for parts in zip(*map(systems.flops, work), strict=True))
    speeds = {
        name: [rows / seconds for seconds in timed[name]] for name in ("mixed", "bare", "copies")
    }
    rate = {
        "encoder": [whole / seconds / 1e9 for seconds in timed["encoder"]],
        "matmul": [linear / seconds / 1e9 for seconds in timed["matmul"]],
    }
    ratios = {
        "mixed / bare": divided(speeds["mixed"], speeds["bare"]),
        "mixed / copies": divided(speeds["mixed"], speeds["copies"]),
        "encoder / matmul": divided(rate["encoder"], rate["matmul"]),
    }
    tokens = sum(len(row.ids) for batch in work for row in systems.rows(batch))
    result = {
        "command": " ".join(["python", "-m", "benchmarks.engine.mixed_batch", *sys.argv[1:]]),
        "settings": settings,
        "tokens_per_batch": round(tokens / len(work), 1),
        "texts_per_second": {name: summary(values) for name, values in speeds.items()},
        "gflops": {name: summary(values) for name, values in rate.items()},
        "ratios": {name: summary(values) for name, values in ratios.items()},
        "hardware": hardware(torch.device("cpu")),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")

    table = Table("what", "median", "range")
    for name, values in [
        *result["texts_per_second"].items(),
        *result["gflops"].items(),
        *result["ratios"].items(),
    ]:  # type: ignore[attr-defined]
        unit = " texts/s" if name in speeds else " GFLOP/s" if name in rate else "×"
        table.add_row(
            name, f"{values['median']:.3g}{unit}", f"{values['low']:.3g} – {values['high']:.3g}"
        )
    console = Console()
    console.print(
        f"{settings['tasks']} tasks, batches of {settings['batch']}, {result['tokens_per_batch']}"
        " tokens a batch"
    )
    console.print(table)
    console.print(f"written to {out}")


def divided(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


if __name__ == "__main__":
    typer.run(main)
