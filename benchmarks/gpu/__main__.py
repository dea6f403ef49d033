"""The engine on one GPU, in under eight minutes and without a network: is it right, and how near
the card's limits is it?

    python -m benchmarks.gpu --texts DATA/sst2/dev.jsonl

Each part's figures are written as soon as they are there; a part that fails leaves its error, and
the next one goes on. The parts are run in their order until the budget is spent; the same command
again does what is left. First of all comes parity: where that failed, every later figure says so.
What each part measures stands at the head of its file in parts/.

Times are by CUDA events, after warm-ups; whatever is compared takes turns repeat by repeat, ratios
are taken within a repeat, medians and ranges over the repeats. What is timed are RoBERTas with
random weights: those do not change the work.

It needs torch, transformers and what these need; neither pydantic nor FastAPI. Where the embedded
backbone cannot be installed, `python -m benchmarks.gpu.half FOLDER` elsewhere makes a folder to
carry there, for `--backbone`.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import re
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.parts import unvalidated
from benchmarks.gpu.parts.record import PASSED, Record, device_name
from benchmarks.gpu.parts.sizes import FULL, TINY, Sizes

PARTS = (
    "parity",
    "ceilings",
    "throughput",
    "latency",
    "growth",
    "loads",
    "pets",
    "memory",
    "kernels",
    "loras",
)


def main(arguments: Sequence[str]) -> int:
    """0, if all parts that were run are there and parity holds; else 1."""
    options = _parser().parse_args(arguments)
    try:
        chosen = _parts(options.parts)
        device = _device(options.device, options.tiny)
    except ValueError as error:
        _say(f"error: {error}")
        return 2
    sizes = TINY if options.tiny else FULL
    deadline = time.monotonic() + options.budget_s
    bench = _bench(device, torch.bfloat16, sizes, deadline, options.backbone, options.texts)
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower())
    record = Record(
        options.out or Path(f"benchmarks/results/gpu-{slug}.json"),
        " ".join(["python", "-m", "benchmarks.gpu", *arguments]),
        device,
        {
            "backbone": options.backbone,
            "texts": str(options.texts),
            "dtype": "bfloat16",
            "sizes": asdict(sizes),
        },
    )
    for part in ["parity", *(part for part in chosen if part != "parity")]:
        if not record.done(part):
            record.put(part, _measured(part, bench, options.budget_s))
        _show(part, record)
    _say(f"written to {record.file}")
    return (
        0 if record.found["parity"] == PASSED and all(record.done(part) for part in chosen) else 1
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--backbone", default="embedded", help="`embedded`, or a folder: for parity on real weights"
    )
    parser.add_argument(
        "--texts",
        type=Path,
        help="JSON lines with a `text`; by default random words, as many as SST-2's",
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --tiny")
    parser.add_argument(
        "--parts",
        default=",".join(PARTS),
        help="which, in the order given; parity comes first always",
    )
    parser.add_argument(
        "--budget-s",
        type=float,
        default=470,
        help="seconds after which no part is begun or repeated",
    )
    parser.add_argument(
        "--out", type=Path, help="where to write; by default benchmarks/results/gpu-<device>.json"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that measure nothing, for tests")
    return parser


def _parts(names: str) -> list[str]:
    chosen = names.split(",")
    for name in chosen:
        if name not in PARTS:
            raise ValueError(f"--parts has {name!r}; expected of {', '.join(PARTS)}")
    return chosen


def _device(name: str, tiny: bool) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device is 'cuda', but this machine has no GPU that torch can use; expected cpu, with"
            " --tiny"
        )
    if name not in ("cuda", "cpu"):
        raise ValueError(f"--device is {name!r}; expected cuda or cpu")
    if name == "cpu" and not tiny:
        raise ValueError(
            "--device is 'cpu', which would take hours at a GPU's sizes; expected --tiny with it"
        )
    return torch.device(name)


def _bench(
    device: torch.device,
    dtype: torch.dtype,
    sizes: Sizes,
    deadline: float,
    backbone: str,
    texts: Path | None,
) -> Any:
    unvalidated.make_importable()  # before whatever imports the engine
    from benchmarks.gpu.parts.bench import Bench
    from benchmarks.gpu.parts.clock import Clock

    return Bench(device, dtype, sizes, Clock(device, deadline), backbone, texts)


def _measured(part: str, bench: Any, budget: float) -> dict[str, Any]:
    if bench.clock.is_up:
        return {"skipped": f"the budget of {budget:g} s was spent"}
    started = time.monotonic()
    try:
        entry: dict[str, Any] = {
            "result": importlib.import_module(f"benchmarks.gpu.parts.{part}").measure(bench)
        }
        entry["cut_short"] = bench.clock.is_up  # it may lack repeats, or the last of its workloads
    except Exception as error:
        # whatever it is: it is written down, and the other parts have their turn
        entry = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    return {**entry, "seconds": round(time.monotonic() - started, 1)}


def _show(part: str, record: Record) -> None:
    entry = record.parts[part]
    flag = "" if record.found["parity"] == PASSED else f"  *** parity {record.found['parity']} ***"
    if "result" in entry:
        lines = importlib.import_module(f"benchmarks.gpu.parts.{part}").lines(entry["result"])
    else:
        lines = [entry.get("error") or f"skipped: {entry['skipped']}"]
    flag += (
        "  (cut short by the budget: the same command measures it again)"
        if entry.get("cut_short")
        else ""
    )
    _say(f"{part} ({entry.get('seconds', 0)} s){flag}", *(f"  {line}" for line in lines))


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
