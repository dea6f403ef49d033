"""From an adapter's file to the first answer with it: the running service, given the shipped
adapters one after the other.

    python -m benchmarks.http.upload

Each repeat is a server of its own with an empty store, so no file is known from before. Wall time,
as a client sees it:

- upload: POST /adapters until it is answered: the file checked, its probe replayed, stored with
  fsync, active.
- first: the first prediction with it, of its own probe's first text.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import httpx2
import torch
import typer
from rich.console import Console
from rich.table import Table

from adapters import backbone as backbones
from adapters.file import parse
from benchmarks.contest import summary
from benchmarks.http.server import ROOT, service
from training.hardware import hardware


def main(
    files: Annotated[Path, typer.Option(help="Folder of adapter files with true probes.")] = Path(
        "store"
    ),
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")
    ] = backbones.EMBEDDED,
    repeats: Annotated[int, typer.Option(help="Servers started.")] = 3,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/upload.json"
    ),
) -> None:
    """Measure uploads and first predictions on this machine; print a table and write JSON."""
    # to be named in the results; the servers set their own
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    adapters = sorted(files.glob("*.safetensors"))
    if not adapters:
        raise SystemExit(
            f"error: {files} holds no adapter file; expected one *.safetensors at least"
        )
    (ROOT / "var").mkdir(exist_ok=True)
    timed: list[tuple[float, float]] = []
    for _ in range(repeats):
        with (
            tempfile.TemporaryDirectory(dir=ROOT / "var") as store,
            service(Path(store), backbone) as server,
            httpx2.Client(base_url=server.url, timeout=60) as client,
        ):
            timed += [brought(client, file) for file in adapters]
    milliseconds = {
        "upload": [1000 * upload for upload, _ in timed],
        "first prediction": [1000 * first for _, first in timed],
        "both": [1000 * (upload + first) for upload, first in timed],
    }
    result = {
        "command": " ".join(["python", "-m", "benchmarks.http.upload", *sys.argv[1:]]),
        "uploads": len(timed),
        "milliseconds": {name: summary(values) for name, values in milliseconds.items()},
        "hardware": hardware(torch.device("cpu")),
        "versions": {"torch": torch.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("what", "ms", "range")
    for name, found in result["milliseconds"].items():  # type: ignore[attr-defined]
        table.add_row(name, f"{found['median']:.1f}", f"{found['low']:.1f} – {found['high']:.1f}")
    Console().print(table)
    Console().print(f"written to {out}")


def brought(client: httpx2.Client, file: Path) -> tuple[float, float]:
    """Seconds of the upload, and of the first prediction after it."""
    data = file.read_bytes()
    spec = parse(data).spec
    text = dict(zip(("text", "text_pair"), spec.probe.inputs[0], strict=False))
    started = time.perf_counter()
    client.post("/adapters", files={"file": (file.name, data)}).raise_for_status()
    uploaded = time.perf_counter()
    client.post("/predict", params={"task": spec.task}, json={"inputs": text}).raise_for_status()
    return uploaded - started, time.perf_counter() - uploaded


if __name__ == "__main__":
    typer.run(main)
