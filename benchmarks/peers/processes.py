"""Contestants in processes of their own, where need be with an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.http.server import ROOT, surroundings

SCRIPTS = Path(__file__).parent / "contestants"
ENVIRONMENTS = ROOT / "var" / "peers"
TORCH = f"torch=={torch.__version__.partition('+')[0]}"  # the same for all
# The newest that the index served, November 2026. Infinity's v3, a server in Rust, is no Python
# package.
REQUIREMENTS = {
    "adapterhub": [TORCH, "adapters==1.3.0"],
    "infinity": [TORCH, "infinity-emb[server,torch]==0.0.78"],
}
LOCKED = ("onnxruntime", "openvino")  # these live with our versions of everything else: locks/
Rows = list[list[float]]


@dataclass(frozen=True)
class Took:
    """Seconds of one repeat: by the clock, and of the processor by all threads of the process."""

    wall: float
    processor: float


class Worker:
    """One script of `contestants/`, which does a repeat when told to."""

    def __init__(self, python: Path, script: str, *arguments: object, path: str = "") -> None:
        """`path` is its PYTHONPATH."""
        read, write = os.pipe()
        self._process = subprocess.Popen(
            [str(python), str(SCRIPTS / script), *map(str, arguments)],
            env=surroundings({"PYTHONPATH": path, "ANSWERS": str(write)}),
            stdin=subprocess.PIPE,
            stdout=2,  # libraries print while they are imported
            pass_fds=[write],
            text=True,
        )
        os.close(write)
        self._answers = os.fdopen(read)
        self._script = script
        self.versions: dict[str, str] = self._read()

    def took(self, run: str, batches: list[Any]) -> Took:
        """How long one repeat took."""
        answer = self._ask(run, batches, answers=False)
        return Took(answer["seconds"], answer["processor_seconds"])

    def answers(self, run: str, batch: list[Any]) -> Rows:
        """The answers to one batch, outside of any measurement."""
        answers: list[Rows] = self._ask(run, [batch], answers=True)["answers"]
        return answers[0]

    def close(self) -> None:
        self._process.communicate()
        self._answers.close()

    def _ask(self, run: str, batches: list[Any], *, answers: bool) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps({"run": run, "batches": batches, "answers": answers}) + "\n"
        )
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(
                f"contestant {self._script} ended with exit code {self._process.wait()}; its reason"
                " is above"
            )
        return json.loads(line)


def python_of(name: str) -> Path:
    """The interpreter of a contestant's own environment under var/peers, which is made at its first
    use."""
    folder = ENVIRONMENTS / name
    stamp = folder / "installed.txt"
    wanted = _wanted(name)
    if not stamp.exists() or stamp.read_text() != wanted:
        sys.stderr.write(f"installing {name} into {folder} (once)…\n")
        venv.create(folder, clear=True, with_pip=True)
        pip = str(folder / "bin" / "pip")
        if name in LOCKED:
            subprocess.run(
                ["sh", str(ROOT / "locks" / "install.sh"), "service", name],
                env={**os.environ, "PIP": pip},
                check=True,
            )
        else:
            subprocess.run([pip, "install", "--quiet", *REQUIREMENTS[name]], check=True)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def _wanted(name: str) -> str:
    if name not in LOCKED:
        return "\n".join(REQUIREMENTS[name])
    locks = ("torch", "service", name)
    return "".join((ROOT / "locks" / f"{lock}.txt").read_text() for lock in locks)
