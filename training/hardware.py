"""What a run runs on: the device that was asked for, and its name as a number's reader wants to
know it."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from training.errors import TrainingError
from training.processes import Processes


def device_of(name: str | None, processes: Processes) -> torch.device:
    """What `--device` means: by default the GPU if there is one; each of several processes has its
    own. Raises TrainingError."""
    if processes.device is not None:
        if name is not None:
            raise TrainingError(
                f"device is {name!r}, but there are {processes.count} processes; expected no"
                " --device: each is given its own"
            )
        return processes.device
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise TrainingError(f"device is {name!r}; expected cpu or cuda")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"device {name!r} cannot be used: {str(error).splitlines()[0]}; expected cpu or cuda"
        ) from None


def hardware(device: torch.device) -> str:
    """The GPU's name, or the processor's with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
