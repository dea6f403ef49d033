"""The folder of a run: all that it was, and all that it takes to go on.

search.jsonl           what --search has tried
config.json            the command, the whole recipe, and what makes the run this one
environment.json       versions and hardware, an entry for each start
metrics.jsonl          a line a step, then the dev scores; the same in TensorBoard's
events.out.tfevents.*
checkpoint             what --resume goes on from
adapter.safetensors    where the method gives one
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import shlex
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from adapters.backbone import Backbone
from adapters.disk import LEFTOVER, write_atomically
from adapters.regular import is_there, read_text
from training.checkpoint import Checkpoints, check_same, identity
from training.config import Recipe
from training.data import Dataset
from training.errors import CheckpointError
from training.hardware import hardware
from training.metrics import Metrics
from training.processes import current

FILES = (
    "search.jsonl",
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "checkpoint",
    "adapter.safetensors",
)


@dataclass(frozen=True)
class Folders:
    """What the user wants: one folder, or one a seed in it; steps between checkpoints; whether to
    go on."""

    root: Path
    by_seed: bool
    checkpoint_every: int
    resume: bool

    @property
    def search(self) -> Path:
        """What `--search` has tried, for the runs of all seeds."""
        return self.root / "search.jsonl"

    def of(self, seed: int) -> Folder:
        path = self.root / f"seed-{seed}" if self.by_seed else self.root
        return Folder(path, Checkpoints(path / "checkpoint", self.checkpoint_every))

    def prepare(self, seeds: list[int]) -> None:
        """Before any training: the folders are there, and what lies in them is neither overwritten
        nor missed."""
        folders = [self.of(seed).path for seed in seeds]
        found = [folder for folder in folders if any(is_there(folder / name) for name in FILES)]
        if not found and is_there(self.search):  # of seeds whose trainings have not begun
            found = [self.root]
        if found and not self.resume:
            raise CheckpointError(
                f"{found[0]} holds a run already; expected --resume, or another folder"
            )
        if self.resume and not found:
            raise CheckpointError(f"{folders[0]} holds no run; expected one to go on with")
        for folder in folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for left in folder.glob(
                    f"{LEFTOVER}*"
                ):  # half-written by a run that was killed, perhaps a full model's size
                    left.unlink()
            except OSError as error:
                raise CheckpointError(
                    f"--run-dir {folder} cannot be made a folder: {error.strerror}"
                ) from None


@dataclass(frozen=True)
class Folder:
    """One run's."""

    path: Path
    checkpoints: Checkpoints

    @property
    def adapter(self) -> Path:
        return self.path / "adapter.safetensors"

    def begin(
        self,
        task: str,
        backbone: Backbone,
        sets: tuple[Dataset, Dataset],
        recipe: Recipe,
        subset: str,
    ) -> Metrics:
        """Write down what is about to run, or check that it is what the folder holds. Raises
        CheckpointError."""
        same = {"task": task, **identity(backbone, sets[0], recipe)}
        chosen = dataclasses.asdict(recipe)
        found = self._read("config.json", dict)
        if found is None:
            config = {
                "command": _command(),
                "recipe": chosen,
                **{name: value for name, value in same.items() if name not in chosen},
                "backbone_name": backbone.name,
                "problem_type": sets[0].problem_type,
                "labels": sets[0].labels,
                "rows": [len(part.texts) for part in sets],
                "subset": subset,
            }
            self._write("config.json", config)
        else:
            check_same(self.path, {**found.get("recipe", {}), **found}, same)
        self._write(
            "environment.json",
            [*(self._read("environment.json", list) or []), _environment(backbone)],
        )
        return Metrics(self.path)

    def _read(self, name: str, kind: type) -> Any:
        try:
            found = json.loads(read_text(self.path / name))
            if not isinstance(found, kind):
                raise ValueError(f"it holds a {type(found).__name__}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path / name} cannot be read: {error}; expected what a run wrote there"
            ) from None
        return found

    def _write(self, name: str, content: Any) -> None:
        try:
            write_atomically(
                self.path / name,
                (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode(),
            )
        except OSError as error:
            raise CheckpointError(
                f"{self.path / name} cannot be written: {error.strerror}"
            ) from None


def _command() -> str:
    return shlex.join(["python", "-m", "training", *sys.argv[1:]])


def _environment(backbone: Backbone) -> dict[str, Any]:
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "hardware": hardware(backbone.encoder.device),
        "processes": current().count,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {
            found.name: found.version
            for found in sorted(distributions(), key=lambda found: found.name.lower())
        },
    }
