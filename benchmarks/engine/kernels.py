"""The native kernels against torch's operators: products, the whole engine, and a machine that
other processes use.

    taskset -c 0 python -m benchmarks.engine.kernels --texts DATA/sst2/dev.jsonl
    GOMP_SPINCOUNT=2000 python -m benchmarks.engine.kernels --texts DATA/sst2/dev.jsonl --beside

The first command takes one core. Its unit is the processor time of the one thread that computes, so
that another program on the machine does not count, except for the cache that it takes. `products`
are a layer's, by oneDNN on weights that were laid out before, by `F.linear` (MKL on x86) and by the
native kernels; the weights take turns with copies, so that they come from memory, as in a pass.
`engine` is the same rows through two engines, tokenising left out: one text at a time, 32 texts of
one task, 32 texts over 32 tasks, and 64 over 64 tasks beside the same engine without adapters and
heads (`bare`). The engines take turns, batch by batch, and a ratio is of two turns.

The second takes all cores, and wall time: how much of its speed an engine keeps beside as many
spinning processes as there are cores. Its fair share is a half. GOMP_SPINCOUNT is what the service
sets for torch's operators.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from adapters import backbone as backbones
from adapters.file import parse
from adapters.text import encode
from benchmarks.engine.mixed_batch import read_texts
from benchmarks.stores import MAX_LENGTH, random_file
from service.engine.engine import Engine
from service.engine.linear import Prepacked
from service.engine.native.library import load
from service.engine.native.linear import Native
from service.engine.row import Row
from service.engine.slots import Slots
from training.hardware import hardware

CPU = torch.device("cpu")
SHAPES = ((384, 384), (384, 1152), (384, 1536), (1536, 384))  # the embedded backbone's
ROWS = (8, 24, 96, 256, 800)
COPIES = 20  # 47 MB of the largest weights: more than a cache
TASKS = 64
SPINNING = [sys.executable, "-c", "while True: pass"]
RESULTS = Path("benchmarks/results")

Run = Callable[[], Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    options.add_argument("--texts", type=Path, help="JSON lines with a `text`; else made-up ones")
    options.add_argument("--rounds", type=int, default=11)
    options.add_argument("--beside", action="store_true", help="beside spinning processes")
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores if chosen.beside else 1)
    engines = Engines(chosen.texts)
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.engine.kernels", *sys.argv[1:]]),
        "hardware": hardware(CPU),
        "kernels": load().kind,
        "torch": torch.__version__,
    }
    if chosen.beside:
        out = chosen.out or RESULTS / "kernels_beside.json"
        result |= {"cores": cores, "beside": beside(engines, chosen.rounds, cores)}
    else:
        out = chosen.out or RESULTS / "kernels.json"
        result |= {"products": products(), "engine": engines.turns(chosen.rounds)}
    out.write_text(json.dumps(result, indent=2) + "\n")


def products() -> list[dict[str, Any]]:
    """GFLOP/s of each linear layer, by rows and by route."""
    found = []
    for inputs, outputs in SHAPES:
        weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
        weights = [weight.clone() for _ in range(COPIES)]
        layers: dict[str, list[Callable[[torch.Tensor], torch.Tensor]]] = {
            "F.linear": [lambda x, w=each, b=bias: F.linear(x, w, b) for each in weights],
            "oneDNN": [Prepacked(each, bias) for each in weights],
            "native": [Native(load(), each, bias) for each in weights],
        }
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            check(layers["native"][0](x), layers["F.linear"][0](x), 1e-3)
            seconds = {
                name: min(timed(lambda o=own, x=x: [layer(x) for layer in o]) for _ in range(5))
                for name, own in layers.items()
            }
            work = 2 * rows * inputs * outputs * COPIES / 1e9
            rates = {name: round(work / each, 1) for name, each in seconds.items()}
            found.append({"inputs": inputs, "outputs": outputs, "rows": rows, **rates})
    return found


class Engines:
    """One backbone and one set of tasks by both routes, and batches for them."""

    def __init__(self, texts: Path | None) -> None:
        rng = random.Random(0)
        corpus = read_texts(texts, rng)
        backbone = backbones.load()
        adapters = [parse(random_file(backbone, f"task-{i}", seed=i)) for i in range(TASKS)]
        self.engines = {
            name: Engine(
                backbone, Slots(TASKS, CPU, torch.float32), CPU, torch.float32, native=native
            )
            for name, native in (("torch", None), ("native", load()))
        }

        def batch(rows: int, tasks: int) -> list[Row]:
            tokens = encode(
                backbone.tokenizer, [(text,) for text in rng.choices(corpus, k=rows)], MAX_LENGTH
            )
            return [Row(adapters[rng.randrange(tasks)], row.ids, row.types) for row in tokens]

        self.loads = {
            "one text": [batch(1, TASKS) for _ in range(64)],
            "32 texts, one task": [batch(32, 1) for _ in range(4)],
            "32 texts, 32 tasks": [batch(32, 32) for _ in range(4)],
            "64 texts, 64 tasks": [batch(64, 64) for _ in range(2)],
        }
        for batches in self.loads.values():
            for rows in batches:
                found, wanted = (
                    torch.cat(list(map(torch.tensor, each.run(rows))))
                    for each in self.engines.values()
                )
                check(found, wanted, 1e-5)

    def turns(self, rounds: int) -> dict[str, Any]:
        """Milliseconds a text, and native's speed as a ratio, for each load."""
        found = {}
        for name, batches in self.loads.items():
            runs: dict[str, Run] = {
                route: partial(_each, engine.run, batches) for route, engine in self.engines.items()
            }
            runs["bare"] = partial(_each, self._bare, batches)
            texts = sum(map(len, batches))
            times = [
                {route: timed(run) / texts for route, run in runs.items()} for _ in range(rounds)
            ]
            found[name] = {
                f"{route}_ms_per_text": round(1000 * statistics.median(t[route] for t in times), 2)
                for route in runs
            } | {
                "native_to_torch": ratios([t["torch"] / t["native"] for t in times]),
                "native_to_bare": ratios([t["bare"] / t["native"] for t in times]),
            }
        return found

    @torch.inference_mode()
    def _bare(self, rows: list[Row]) -> None:
        encoder = self.engines["native"].encoder
        packed = encoder.pack([(row.ids, row.types) for row in rows])
        encoder.pool_mean(encoder.forward(packed), packed).tolist()


def _each(run: Callable[[list[Row]], Any], batches: list[list[Row]]) -> None:
    for rows in batches:
        run(rows)


def beside(engines: Engines, rounds: int, cores: int) -> dict[str, Any]:
    """Texts a second alone and beside spinning processes, and the share of the fair half."""
    found: dict[str, Any] = {}
    for name in ("one text", "32 texts, 32 tasks"):
        batches = engines.loads[name]
        for route, engine in engines.engines.items():
            alone, shared = [], []
            for _ in range(rounds):
                alone.append(rate(engine, batches))
                others = [subprocess.Popen(SPINNING) for _ in range(cores)]
                shared.append(rate(engine, batches))
                for each in others:
                    each.kill()
                    each.wait()
            found.setdefault(name, {})[route] = {
                "alone_texts_per_second": round(statistics.median(alone), 1),
                "beside_texts_per_second": round(statistics.median(shared), 1),
                "of_fair_share": ratios([2 * b / a for a, b in zip(alone, shared, strict=True)]),
            }
    return found


def rate(engine: Engine, batches: list[list[Row]], seconds: float = 2.0) -> float:
    """Texts a second, by the clock on the wall."""
    texts, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or not texts:
        for rows in batches:
            engine.run(rows)
            texts += len(rows)
    return texts / spent


def timed(run: Run) -> float:
    """Seconds of this thread's processor time."""
    with torch.inference_mode():
        start = time.thread_time()
        run()
        return time.thread_time() - start


def ratios(found: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(found), 3),
        "least": round(min(found), 3),
        "most": round(max(found), 3),
    }


def check(found: torch.Tensor, wanted: torch.Tensor, near: float) -> None:
    """Speed counts for the same answers alone."""
    if not (apart := (found - wanted).abs().max().item()) < near:
        raise SystemExit(f"the routes differ by {apart:.2g}; expected less than {near}")


if __name__ == "__main__":
    main()
