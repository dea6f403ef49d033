"""How much of the engine's rate `python -m service predict` keeps.

    python -m benchmarks.engine.offline --texts DATA/sst2/train.jsonl

The same rows take turns: *engine* runs batches of their tokens, made beforehand, one after the
other, and nothing else; *file* is the whole command from the open file to the written one, without
the start of the process: reading, tokenising, batching, writing. The ratio is of wall times, each
pair of turns by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer

from adapters import backbone as backbones
from adapters.disk import write_atomically
from adapters.file import Adapter
from adapters.rows import read_rows
from adapters.text import encode
from service.__main__ import for_files
from service.app import build_service
from service.engine.engine import Engine
from service.engine.row import Row
from service.engine.slots import Slots
from service.offline.answers import EngineAnswerer
from service.offline.job import Job, score
from service.service import Service
from service.settings import read_settings
from training.hardware import hardware

CPU = torch.device("cpu")


def main(
    texts: Annotated[Path, typer.Option(help="A file of rows with a column `text`.")],
    task: Annotated[str, typer.Option()] = "sst2",
    rows: Annotated[int, typer.Option(help="Of the file.")] = 4000,
    repeats: Annotated[int, typer.Option()] = 7,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/offline.json"
    ),
) -> None:
    """Measure, print and write JSON."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = for_files(read_settings(store=str(folder / "store"), workers=1))
        service = build_service(settings)
        some = [row for _, row in islice(read_rows(texts, ()), rows)]
        source = folder / "rows.jsonl"
        source.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in some))
        turns = asyncio.run(_turns(service, task, source, repeats))
    ratios = [engine / file for engine, file in turns]
    result = {
        "command": " ".join(["python", "-m", "benchmarks.engine.offline", *sys.argv[1:]]),
        "hardware": hardware(CPU),
        "task": task,
        "rows": len(some),
        "engine_rows_per_second": round(len(some) / statistics.median(e for e, _ in turns), 1),
        "file_rows_per_second": round(len(some) / statistics.median(f for _, f in turns), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
    }
    write_atomically(out, (json.dumps(result, indent=2) + "\n").encode())
    typer.echo(json.dumps(result, indent=2))


async def _turns(
    service: Service, task: str, source: Path, repeats: int
) -> list[tuple[float, float]]:
    """Seconds of the engine and of the file, pair by pair; the first pair warms up."""
    found = []
    async with service.running():
        admitted = await service.admit(task, None)
        adapter = admitted.handle
        assert isinstance(adapter, Adapter)
        texts = [(row["text"],) for _, row in read_rows(source, ())]
        tokens = encode(service.tokenizer.tokenizer, texts, adapter.spec.max_length)  # type: ignore[arg-type]  # one text each
        made = [Row(adapter, each.ids, each.types, each.mask) for each in tokens]
        batches = _batches(made, service.batcher.max_tokens)
        engine = Engine(backbones.load(), Slots(1, CPU, torch.float32), CPU, torch.float32)
        device = ThreadPoolExecutor(1)  # one thread runs all batches, as in the service
        loop = asyncio.get_running_loop()
        for turn in range(repeats + 1):
            started = time.perf_counter()
            for batch in batches:
                await loop.run_in_executor(device, engine.run, batch)
            bare = time.perf_counter() - started
            out = source.with_name(f"out-{turn}.csv")
            started = time.perf_counter()
            await score(Job(source, out), EngineAnswerer(service, admitted, None), lambda *_: None)
            found.append((bare, time.perf_counter() - started))
    return found[1:]


def _batches(rows: list[Row], most: int) -> list[list[Row]]:
    batches: list[list[Row]] = [[]]
    tokens = 0
    for row in rows:
        if batches[-1] and tokens + row.tokens > most:
            batches.append([])
            tokens = 0
        batches[-1].append(row)
        tokens += row.tokens
    return batches


if __name__ == "__main__":
    typer.run(main)
