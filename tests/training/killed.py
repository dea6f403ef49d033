"""A run that is killed, and goes on from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapters.backbone import Backbone
from tests.training.test_training import SINGLE
from training.checkpoint import Checkpoints
from training.config import Recipe
from training.one_run import Measured, measure
from training.progress import Progress


class Killed(Exception):
    """Ends a run in the middle."""


def resumed(
    backbone: Backbone,
    recipe: Recipe,
    checkpoint: Path,
    *,
    killed: int,
    seen: Callable[[Progress], None] = lambda _: None,
) -> Measured:
    """Kill a run at the step `killed`, and let another one go on from the checkpoint, which is
    written every three steps; `seen` is told of the second one's steps."""

    def die(at: Progress) -> None:
        if at.step == killed:
            raise Killed

    with pytest.raises(Killed):
        measure(backbone, SINGLE, SINGLE, recipe, die, Checkpoints(checkpoint, 3))
    torch.manual_seed(99)  # what it draws must come from the checkpoint
    return measure(backbone, SINGLE, SINGLE, recipe, seen, Checkpoints(checkpoint, 3))
