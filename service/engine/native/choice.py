"""Whether the native kernels compute, or torch's operators."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from service.engine.linear import Plain, Prepacked, prepacks
from service.engine.native.library import Library, NativeError, load
from service.engine.native.linear import Native

Kernels = Literal["auto", "native", "torch"]

# What is measured: a layer of usual size, with the rows of a short text, of a longer one, and of a
# small batch. One choice holds for all of them, so that a row's numbers do not depend on how many
# rows its batch has.
INPUTS, OUTPUTS = 512, 2048
ROWS = (8, 32, 128)
REPEATS = 5
# The native kernels also save what torch's operators cost beside their products. They are left only
# where their products are this slow.
SLOW = 0.9
CLOSE = 1e-3  # float32 sums of INPUTS numbers, in another order


class Choice(NamedTuple):
    """The native kernels, or None for torch's operators, and why."""

    library: Library | None
    reason: str


def choose(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> Choice:
    """`auto` takes the native kernels where they are there and not slower. Raises NativeError if
    they are wanted and cannot be had."""
    if kernels == "torch":
        return Choice(None, "asked for")
    reason = None
    if device.type != "cpu":
        reason = f"native kernels are for the CPU; the device is {device.type!r}"
    elif dtype not in (torch.float32, torch.int8):
        reason = f"native kernels are for float32 and int8; the dtype is {dtype}"
    if reason is None:
        try:
            return Choice(load(), "asked for") if kernels == "native" else _measured()
        except NativeError as error:
            reason = str(error)
    if kernels == "native":
        raise NativeError(reason)
    return Choice(None, reason)


@lru_cache(maxsize=1)
def _measured() -> Choice:
    """Once in a process: it takes a twentieth of a second."""
    library = load()
    ratio = _ratio(library)
    reason = f"products at {ratio:.2f} times the speed of torch's"
    return Choice(library if ratio >= SLOW else None, reason)


@torch.inference_mode()
def _ratio(library: Library) -> float:
    """How many times as fast as torch's the native products are, as a geometric mean. Raises
    NativeError if they do not give the same."""
    generator = torch.Generator().manual_seed(0)  # of its own: the process's stays as it is
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator) / INPUTS**0.5
    bias = torch.randn(OUTPUTS, generator=generator)
    native = Native(library, weight, bias)
    other = Prepacked(weight, bias) if prepacks() else Plain(weight, bias)
    logs = []
    for rows in ROWS:
        x = torch.randn(rows, INPUTS, generator=generator)
        apart = (native(x) - other(x)).abs().max().item()
        if not apart < CLOSE:
            raise NativeError(
                f"the native kernels ({library.kind}) differ from torch's by {apart:.2g}; expected"
                f" less than {CLOSE}"
            )
        seconds = [(_seconds(other, x), _seconds(native, x)) for _ in range(REPEATS)]
        theirs, ours = (min(each) for each in zip(*seconds, strict=True))
        logs.append(math.log(theirs / ours))
    return math.exp(sum(logs) / len(logs))


def _seconds(layer: Callable[[Tensor], Tensor], x: Tensor) -> float:
    started = time.perf_counter()
    layer(x)
    return time.perf_counter() - started
