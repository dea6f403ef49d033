"""The contestants that are libraries, each in its process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.contest import Materials, difference, turns
from benchmarks.http.server import ROOT
from benchmarks.peers.processes import Worker, python_of

RUNS = {
    "ours": ("mixed", "bare"),
    "copies": ("copies",),
    "peft": ("peft",),
    "adapterhub": ("BatchSplit", "switching"),
}
# Who must answer alike: the two hold the same weights.
SAME = (
    (("ours", "mixed"), ("ours", "reference")),
    (("ours", "bare"), ("copies", "encoder")),
    (("peft", "peft"), ("peft", "one by one")),
    (("ours", "mixed"), ("adapterhub", "BatchSplit")),
    (("ours", "mixed"), ("adapterhub", "switching")),
)


class Engines:
    """Started, and ready to take turns."""

    def __init__(self, of: Materials, without: set[str]) -> None:
        here, tasks = Path(sys.executable), len(of.tasks)
        self.workers = {
            "ours": Worker(here, "ours.py", of.backbone, of.store, path=str(ROOT)),
            "copies": Worker(here, "copies.py", of.model, tasks),
            "peft": Worker(here, "peft_lora.py", of.model, tasks),
        }
        if "adapterhub" not in without:
            self.workers["adapterhub"] = Worker(
                python_of("adapterhub"), "adapterhub.py", of.model, of.store
            )

    def check(self, batches: list[Any]) -> dict[str, float]:
        """The greatest difference between the answers of any two that must answer alike. Raises
        RuntimeError."""
        found: dict[str, float] = {}
        for (one, run), (other, other_run) in SAME:
            if other in self.workers:
                name = f"{one}: {run}, {other}: {other_run}"
                for batch in batches:
                    answers = (
                        self.workers[one].answers(run, batch),
                        self.workers[other].answers(other_run, batch),
                    )
                    found[name] = max(found.get(name, 0.0), difference(name, *answers))
        return found

    def measure(self, batches: list[Any], repeats: int) -> dict[str, list[float]]:
        """Texts per second of every run in every repeat."""
        runs = [(worker, run) for worker in self.workers for run in RUNS[worker]]
        if len(batches[0]) == 1:  # nothing to split
            runs = [(worker, run) for worker, run in runs if run != "BatchSplit"]
        speeds: dict[str, list[float]] = {run: [] for _, run in runs}
        for repeat in range(-1, repeats):  # the first one warms up
            for worker, run in turns(runs, repeat):
                seconds = self.workers[worker].seconds(run, batches)
                if repeat >= 0:
                    speeds[run].append(sum(map(len, batches)) / seconds)
        return speeds

    def close(self) -> dict[str, dict[str, str]]:
        """End them; their versions."""
        for worker in self.workers.values():
            worker.close()
        return {name: worker.versions for name, worker in self.workers.items()}
