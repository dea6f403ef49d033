"""A checkpoint: all that a run needs to go on as if it had never stopped, in one file that is whole
or not there.

The file holds the trained weights, the optimiser, the schedule, torch's random numbers and the
number of the step. Python's random numbers (order of the rows, routes) and the place in the epoch
follow from that number and the seed: `fit` repeats its draws. What the checkpoint must fit (recipe,
data, backbone) is kept in it as its `identity`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from adapters.backbone import Backbone
from adapters.disk import write_atomically
from adapters.regular import check_regular
from training.config import Recipe
from training.data import Dataset
from training.errors import CheckpointError
from training.progress import Progress

FORMAT = "adamix-checkpoint/2"
# What a recipe says of a run after its training: it may differ when one goes on.
AFTERWARDS = ("evaluate", "positive", "dtype")


class Stateful(Protocol):
    """An optimiser or a schedule."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Checkpoints:
    """What the user wants: the file that a run's checkpoint lies in, and after how many steps it is
    written anew."""

    path: Path
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise CheckpointError(f"checkpoint_every is {self.every}; expected 1 or more")

    def of(self, backbone: Backbone, data: Dataset, recipe: Recipe) -> Checkpoint:
        """The checkpoint of a run of `recipe` on `data`."""
        return Checkpoint(self.path, self.every, identity(backbone, data, recipe))


def identity(backbone: Backbone, data: Dataset, recipe: Recipe) -> dict[str, Any]:
    """What makes a run this run and no other."""
    choices = {
        name: value for name, value in dataclasses.asdict(recipe).items() if name not in AFTERWARDS
    }
    content = json.dumps([data.problem_type, data.labels, data.texts, data.targets])
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {**choices, "training data": digest, "backbone": backbone.fingerprint}


def check_same(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError if what `path` holds is of another run. A choice that there was not yet
    was its default."""
    for name, value in expected.items():
        known = found.get(name, getattr(Recipe, name, None))
        if known != value:
            raise CheckpointError(
                f"{path} is of a run with another {name} ({_short(known)}; now {_short(value)}); "
                "expected the same to go on from it"
            )


@dataclass(frozen=True)
class Checkpoint:
    """Where one run keeps its state."""

    path: Path
    every: int
    identity: dict[str, Any]

    def store(self, model: nn.Module, state: Mapping[str, Stateful], progress: Progress) -> None:
        """Write everything down; a reader finds this state or the one before, never a part of
        it."""
        buffer = io.BytesIO()
        content = {
            "format": FORMAT,
            "identity": json.dumps(self.identity),
            "progress": dataclasses.asdict(progress),
            "weights": {
                name: p.detach() for name, p in model.named_parameters() if p.requires_grad
            },
            **{name: part.state_dict() for name, part in state.items()},
            "random": torch.get_rng_state(),
            "random of the GPUs": (
                torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            ),
        }
        torch.save(content, buffer)
        try:
            write_atomically(self.path, buffer.getbuffer())
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error.strerror}") from None

    def restore(self, model: nn.Module, state: Mapping[str, Stateful]) -> Progress | None:
        """Put model, optimiser, schedule and random numbers where they were; None if nothing was
        stored yet."""
        if not self.path.exists():
            return None
        content = self._read()
        check_same(self.path, json.loads(content["identity"]), self.identity)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(content["weights"][name])
        for name, part in state.items():
            part.load_state_dict(content[name])
        torch.set_rng_state(content["random"])
        if (
            torch.cuda.is_available()
            and len(content["random of the GPUs"]) == torch.cuda.device_count()
        ):
            torch.cuda.set_rng_state_all(content["random of the GPUs"])
        return Progress(**content["progress"])

    def _read(self) -> dict[str, Any]:
        try:
            check_regular(self.path)
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            # whatever torch and its readers of zip and pickle raise on a damaged file
            # The first sentence: torch's next ones advise to load what may run code.
            reason = (
                str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
                or type(error).__name__
            )
            raise CheckpointError(
                f"{self.path} cannot be read: {reason}; expected a checkpoint: without this file,"
                " --resume begins anew"
            ) from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(f"{self.path} is no checkpoint; expected one of format {FORMAT}")
        return content


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 20 else shown[:13] + "…"
