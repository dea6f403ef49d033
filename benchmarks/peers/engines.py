"""The contestants that are libraries, each in its process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.contest import Materials, difference, turns
from benchmarks.http.server import ROOT
from benchmarks.peers.processes import Took, Worker, python_of

INT8 = "int8"
RUNS = {
    "ours": ("mixed", "mixed int8", "bare"),
    "copies": ("copies",),
    "peft": ("peft",),
    "adapterhub": ("BatchSplit", "switching"),
    "onnxruntime": ("onnxruntime", "onnxruntime int8"),
    "openvino": ("openvino", "openvino int8"),
}
# Who must answer alike: the two hold the same weights.
SAME = (
    (("ours", "mixed"), ("ours", "reference")),
    (("ours", "bare"), ("copies", "encoder")),
    (("ours", "full model"), ("copies", "copies")),
    (("ours", "full model"), ("onnxruntime", "onnxruntime")),
    (("ours", "full model"), ("openvino", "openvino")),
    (("peft", "peft"), ("peft", "one by one")),
    (("ours", "mixed"), ("adapterhub", "BatchSplit")),
    (("ours", "mixed"), ("adapterhub", "switching")),
)


class Engines:
    """Started, and ready to take turns."""

    def __init__(self, of: Materials, without: Iterable[str], adapter: Path | None = None) -> None:
        """`without` names contestants, runs, or `int8`: all runs in it. `adapter` is a file; the
        model that it makes is then one of the runs of us and of the runtimes, `adapted`."""
        self._without = set(without)
        here, tasks, model = Path(sys.executable), len(of.tasks), of.model
        dtypes = ["float32"] if INT8 in self._without else ["float32", INT8]
        of_task = (of.backbone, adapter or "", *dtypes)
        makers: dict[str, Callable[[], Worker]] = {
            "ours": lambda: Worker(here, "ours.py", model, of.store, *of_task, path=str(ROOT)),
            "copies": lambda: Worker(here, "copies.py", model, tasks),
            "peft": lambda: Worker(here, "peft_lora.py", model, tasks),
            "adapterhub": lambda: Worker(python_of("adapterhub"), "adapterhub.py", model, of.store),
            "onnxruntime": lambda: Worker(
                python_of("onnxruntime"),
                "onnxruntime_copies.py",
                model,
                tasks,
                *of_task,
                path=str(ROOT),
            ),
            "openvino": lambda: Worker(
                python_of("openvino"),
                "openvino_copies.py",
                model,
                tasks,
                *of_task,
                path=str(ROOT),
            ),
        }
        self.workers = {
            name: start() for name, start in makers.items() if name not in self._without
        }

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

    def measure(self, batches: list[Any], repeats: int) -> dict[str, list[Took]]:
        """What every run took in every repeat."""
        runs = [
            (worker, run)
            for worker in self.workers
            for run in RUNS[worker]
            if not set(run.split()) & self._without
        ]
        if len(batches[0]) == 1:  # nothing to split
            runs = [(worker, run) for worker, run in runs if run != "BatchSplit"]
        took: dict[str, list[Took]] = {run: [] for _, run in runs}
        for repeat in range(-1, repeats):  # the first one warms up
            for worker, run in turns(runs, repeat):
                one = self.workers[worker].took(run, batches)
                if repeat >= 0:
                    took[run].append(one)
        return took

    def close(self) -> dict[str, dict[str, str]]:
        """End them; their versions."""
        for worker in self.workers.values():
            worker.close()
        return {name: worker.versions for name, worker in self.workers.items()}
