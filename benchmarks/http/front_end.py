"""What a request costs beside the device: the running service with a device that answers at once,
driven by wrk.

    apt-get install wrk
    python -m benchmarks.http.front_end
    python -m benchmarks.http.front_end --workers 2 --device-ms 3 --out workers.json

One short text a request, over connections that stay open; the log as it is by default, a line a
request, into a file.

- cpu: the server's processor time for a request, all its processes and threads. A second over that
  is what one core can answer: so measured, it hardly matters which cores server and wrk have;
  `client_cores` says what wrk took.
- engine: of that, the engine process's. With workers (ADAMIX_WORKERS) it bounds the whole, on
  however many cores: no more requests are answered than a second holds of it. What it takes depends
  on `rows`, those of a batch, whose way to the device and back they share; `--device-ms` lets
  batches grow as a busy device does.
- p50, p99: of wrk; with one connection that is what the front end adds to a lone request.
- stages: mean µs, by the service's own histograms: tokenising a request, a row's wait for the
  device, a batch on it (here nothing but the way into its thread and back).
- health: GET /health, the same way: what uvicorn and FastAPI take for next to nothing.

Requests and their kinds take turns, repeat by repeat.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from adapters import backbone as backbones
from benchmarks import stores
from benchmarks.contest import summary, turns
from benchmarks.http import load
from benchmarks.http.load import Call
from benchmarks.http.server import ROOT, Server, front_end
from training.hardware import hardware

TEXT = "a charming and often affecting journey"
STAGES = {"tokenize": "tokenization", "queue": "queue", "device": "inference"}
SCRIPT = """
wrk.method, wrk.body = "%s", '%s'
wrk.headers["Content-Type"] = "application/json"
function done(summary, latency)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  local form = '\\n{"requests": %%d, "seconds": %%f, "failed": %%d, "p50_us": %%d, "p99_us": %%d}'
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  io.write(string.format(form, summary.requests, summary.duration / 1e6, failed, p50, p99))
end
"""


@dataclass(frozen=True)
class Kind:
    """What is asked, over so many connections."""

    name: str
    call: Call
    connections: int


def main(
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")
    ] = backbones.EMBEDDED,
    repeats: Annotated[int, typer.Option(help="Of which medians are taken.")] = 5,
    seconds: Annotated[int, typer.Option(help="Of requests in a repeat.")] = 4,
    connections: Annotated[int, typer.Option(help="Beside one alone.")] = 32,
    workers: Annotated[int, typer.Option(help="ADAMIX_WORKERS.")] = 1,
    device_ms: Annotated[float, typer.Option(help="How long the device takes for a batch.")] = 0.0,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/front_end.json"
    ),
) -> None:
    """Measure the service without its device on this machine; print a table and write JSON."""
    if shutil.which("wrk") is None:
        raise SystemExit("error: there is no wrk; expected apt-get install wrk")
    (ROOT / "var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "var") as folder:
        store = Path(folder) / "store"
        (task,) = stores.fill(store, backbones.load(backbone), 1)
        predict = Call(f"/predict?task={task}", json.dumps({"inputs": TEXT}).encode())
        health = Call("/health", method="GET")
        kinds = [
            Kind(f"predict, {connections} connections", predict, connections),
            Kind("predict, 1 connection", predict, 1),
            Kind(f"health, {connections} connections", health, connections),
        ]
        found: dict[str, list[dict[str, Any]]] = {kind.name: [] for kind in kinds}
        with front_end(store, backbone, workers, device_ms) as server:
            for repeat in range(-1, repeats):  # the first one warms up
                for kind in turns(kinds, repeat):
                    measured = press(
                        server, kind, 1 if repeat < 0 else seconds, Path(folder) / "ask.lua"
                    )
                    if repeat >= 0:
                        found[kind.name].append(measured)
    result = {
        "command": " ".join(["python", "-m", "benchmarks.http.front_end", *sys.argv[1:]]),
        "text": TEXT,
        "workers": workers,
        "device_ms": device_ms,
        "kinds": {name: figures(repeated) for name, repeated in found.items()},
        "hardware": hardware(torch.device("cpu")),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    show(result["kinds"])
    Console().print(f"written to {out}")


def press(server: Server, kind: Kind, seconds: int, script: Path) -> dict[str, Any]:
    """One run of wrk. Raises RuntimeError on any answer but 200."""
    script.write_text(SCRIPT % (kind.call.method, kind.call.body.decode()))
    (engine, front_ends), stages = _cpu(server), _stages(server)
    client = _children()
    command = [
        "wrk",
        "-t1",
        f"-c{kind.connections}",
        f"-d{seconds}s",
        "-s",
        str(script),
        server.url + kind.call.path,
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    engine, front_ends = (
        after - before for after, before in zip(_cpu(server), (engine, front_ends), strict=True)
    )
    cpu, client = engine + front_ends, _children() - client
    measured = json.loads(output.splitlines()[-1])
    if measured["failed"] or not measured["requests"]:
        raise RuntimeError(
            f"{kind.name}: {measured['failed']} of {measured['requests']} requests failed; expected"
            " none"
        )
    requests = measured["requests"]
    means = {}
    for name, (total, count) in _stages(server).items():
        times = count - stages[name][1]
        means[name] = (total - stages[name][0]) / times if times else 0.0
    rows = means.pop("rows")
    return {
        "per_second": requests / measured["seconds"],
        "cpu_us": 1e6 * cpu / requests,
        "engine_us": 1e6 * engine / requests,
        "per_second_of_a_core": requests / cpu,
        "p50_ms": measured["p50_us"] / 1000,
        "p99_ms": measured["p99_us"] / 1000,
        "server_cores": cpu / measured["seconds"],
        "client_cores": client / measured["seconds"],
        "rows": rows,
        **{f"{name}_us": 1e6 * mean for name, mean in means.items()},
    }


def figures(repeated: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: summary([measured[name] for measured in repeated]) for name in repeated[0]}


def show(kinds: dict[str, Any]) -> None:
    columns = (
        "cpu_us",
        "engine_us",
        "per_second_of_a_core",
        "per_second",
        "p50_ms",
        "p99_ms",
        "client_cores",
        "rows",
    )
    table = Table(
        "", *(column.replace("_", " ") for column in columns), *(f"{name} us" for name in STAGES)
    )
    for name, found in kinds.items():
        cells = [found[column] for column in (*columns, *(f"{stage}_us" for stage in STAGES))]
        table.add_row(
            name, *(f"{cell['median']:g} ({cell['low']:g} – {cell['high']:g})" for cell in cells)
        )
    Console(width=220).print(table)


def _cpu(server: Server) -> tuple[float, float]:
    """Seconds of processor time that the engine process and the front ends have used, system calls
    included."""
    engine, *front_ends = (
        process.cpu_times() for process in (server.process, *server.process.children())
    )
    return engine.user + engine.system, sum(times.user + times.system for times in front_ends)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _stages(server: Server) -> dict[str, tuple[float, float]]:
    """Seconds so far, and how often, of each stage; and rows so far, in how many batches."""
    families = {name: f"adamix_{stage}_duration_seconds" for name, stage in STAGES.items()} | {
        "rows": "adamix_batch_rows"
    }
    names = [f"{family}_{part}" for family in families.values() for part in ("sum", "count")]
    query = "&".join(f"name[]={name}" for name in names)
    (text,) = load.answers(server.url, [Call(f"/metrics?{query}", method="GET")])
    values = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    totals = iter(names)
    return {name: (float(values[next(totals)]), float(values[next(totals)])) for name in families}


if __name__ == "__main__":
    typer.run(main)
