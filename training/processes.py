"""The processes of one run: each takes its share of every mini-batch, and together they make the
step that one would make.

`accelerate launch` (or torchrun) starts them. accelerate finds each its device and joins them; what
it has no place for is a mini-batch that is split unevenly, a loss that is a mean in one part and a
sum in the other, and experts that nobody routed through, which must keep no gradient. So gradients
are added up here, over those that there are: all processes draw the same routes, so these are the
same everywhere.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
from dataclasses import dataclass

import torch
from torch import nn

from training.errors import TrainingError


@dataclass(frozen=True)
class Processes:
    """This process's place among `count`; of a run of one, whose every method changes nothing, by
    default."""

    rank: int = 0
    count: int = 1
    device: torch.device | None = None

    @property
    def main(self) -> bool:
        """Whether this is the one that tells and writes."""
        return self.rank == 0

    def share(self, rows: int) -> tuple[list[int], float]:
        """The places of this process's rows in a mini-batch of `rows`, and which part of it they
        are; if none are left, one row that counts for 0."""
        places = list(range(self.rank, rows, self.count))
        return (places, len(places) / rows) if places else ([0], 0.0)

    def seed(self, seed: int) -> int:
        """A seed of this process's own, for what need not be alike in all: dropout."""
        return seed + self.rank * 2**63

    def sum(self, value: float) -> float:
        """The sum of a number of each."""
        if self.count == 1:
            return value
        return float(_sum(torch.tensor(value, dtype=torch.float64, device=self.device)))

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Give each the gradient of the whole mini-batch."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        total = _sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, summed in zip(
            gradients, torch.split(total, [g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(summed.view_as(gradient))


def join() -> Processes:
    """Join the others, if this is one of several processes; what all but the main one would print
    is not shown."""
    if not _several():
        return Processes()
    from accelerate import PartialState

    try:
        state = PartialState(cpu=not torch.cuda.is_available())
        # accelerate says nothing then, and each would write what the others write
        if state.num_processes < 2:
            raise RuntimeError(f"accelerate has no way between them on {state.device}")
    except Exception as error:
        # whatever torch and its backends raise where processes cannot be joined
        raise TrainingError(
            f"{os.environ['WORLD_SIZE']} processes cannot be joined:"
            f" {str(error).strip().partition(chr(10))[0]}; expected a GPU for each, or a machine"
            " without GPUs"
        ) from None
    atexit.register(state.destroy_process_group)
    if not state.is_main_process:
        sys.stdout = io.StringIO()
    return current()


def speaks_for_machine() -> bool:
    """Whether this is the process that tells an error: they all meet it, and one on each machine is
    enough."""
    return not _several() or os.environ.get("LOCAL_RANK", "0") == "0"


def current() -> Processes:
    """The processes that this one has joined."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Processes()
    from accelerate import PartialState

    state = PartialState()
    return Processes(state.process_index, state.num_processes, state.device)


def _several() -> bool:
    """Whether a launcher started more than this process."""
    return os.environ.get("WORLD_SIZE", "1") not in ("0", "1")


def _sum(tensor: torch.Tensor) -> torch.Tensor:
    from accelerate.utils import reduce

    total: torch.Tensor = reduce(tensor, "sum")
    return total
