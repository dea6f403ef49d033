"""Times on a device, in turns, until the time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.contest import turns

Run = Callable[[], object]
WARM_UPS = 2  # the second one finds everything compiled, and the allocator's blocks


@dataclass(frozen=True)
class Clock:
    """`deadline`, by time.monotonic, ends repeats: of each run at least one is there."""

    device: torch.device
    deadline: float

    @property
    def is_up(self) -> bool:
        return time.monotonic() >= self.deadline

    def seconds(self, run: Run) -> float:
        """Of the device's current stream from before the call until its work is done, by CUDA
        events."""
        if self.device.type != "cuda":
            return self.wall(run)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        before.record()
        run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3

    def wall(self, run: Run) -> float:
        """Until the work of all streams is done, by this machine's own clock."""
        self.finish()
        started = time.perf_counter()
        run()
        self.finish()
        return time.perf_counter() - started

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def interleaved(self, runs: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
        """Seconds of every run in every repeat, another one first each time."""
        timed: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(-WARM_UPS, repeats):
            for name in turns(list(runs), repeat):
                seconds = self.seconds(runs[name])
                if repeat >= 0:
                    timed[name].append(seconds)
            if repeat >= 0 and self.is_up:
                break
        return timed
