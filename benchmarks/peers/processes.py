"""Contestants in processes of their own, where need be with an environment of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
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
Rows = list[list[float]]


class Worker:
    """One script of `contestants/`, which does a repeat when told to."""

    def __init__(self, python: Path, script: str, *arguments: object, path: str = "") -> None:
        """`path` is its PYTHONPATH."""
        self._process = subprocess.Popen(
            [str(python), str(SCRIPTS / script), *map(str, arguments)],
            env=surroundings({"PYTHONPATH": path}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._script = script
        self.versions: dict[str, str] = self._read()

    def seconds(self, run: str, batches: list[Any]) -> float:
        """How long one repeat took."""
        return float(self._ask(run, batches, answers=False)["seconds"])

    def answers(self, run: str, batch: list[Any]) -> Rows:
        """The answers to one batch, outside of any measurement."""
        answers: list[Rows] = self._ask(run, [batch], answers=True)["answers"]
        return answers[0]

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, run: str, batches: list[Any], *, answers: bool) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps({"run": run, "batches": batches, "answers": answers}) + "\n"
        )
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
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
    wanted = "\n".join(REQUIREMENTS[name])
    if not stamp.exists() or stamp.read_text() != wanted:
        sys.stderr.write(f"installing {', '.join(REQUIREMENTS[name])} into {folder} (once)…\n")
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run(
            [str(folder / "bin" / "pip"), "install", "--quiet", *REQUIREMENTS[name]], check=True
        )
        stamp.write_text(wanted)
    return folder / "bin" / "python"
